"""Events to endpoints over HTTP: one thread that takes turns, and one in which tries run.

Knows when a turn is due, and what runs; what a turn does, `webhook_turn` knows, and what a try is, `webhooks`.
"""

from __future__ import annotations

import random
import time
from collections import deque
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.delivery import Rules, Tried
from worker.inputs.receivers import read_receiver
from worker.ledger import deliveries, delivery_notes, feed
from worker.ledger.database import read_only
from worker.runtime.loop import Loop
from worker.runtime.webhook_shares import Running
from worker.runtime.webhook_tries import Tries
from worker.runtime.webhook_turn import Means, WebhookTurn
from worker.webhooks.request import request_to

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from worker.ledger.vault import Place
    from worker.runtime.webhook_shares import Key
    from worker.runtime.webhook_turn import Chosen
    from worker.telemetry.metrics import Metrics
    from worker.webhooks.sender import Network

SURVEY_SECONDS = 5.0  # where there is no endpoint
POLL_SECONDS = 1.0  # for what others have written, and what is due again
AGAIN_SECONDS = 0.05  # for what came while another worker, which may have just looked, holds who waits for it
SPACING_SECONDS = 0.01  # between two turns: answers gather meanwhile
RENEW_SECONDS = 10.0  # between two renewals of leases, far below the life of one
STOP_SECONDS = 2.0  # for tries that run when the worker ends


class Webhooks:
    """One thread that sends events to endpoints, and a thread of tries."""

    def __init__(
        self,
        ledger: Engine,
        owner: str,
        decrypt: Callable[[str, Place], str],
        network: Network,
        metrics: Metrics,
        *,
        concurrency: int,
        rules: Rules = Rules(),  # noqa: B008 - it is frozen
        announced: Callable[[], object] = lambda: None,
        poll: float = POLL_SECONDS,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._means = Means(owner=owner, rules=rules, decrypt=decrypt, concurrency=concurrency, dice=dice)
        self._network = network
        self._metrics = metrics
        self._announced = announced  # hears that events were written
        self._poll = poll
        self._tries = Tries(network)
        self._running: dict[Key, Running] = {}
        self._done: deque[tuple[Running, Tried]] = deque()
        self._held: set[str] = set()  # endpoints, under leases
        self._active = 0  # endpoints, when it was asked last
        self._look = True
        self._survey_at = self._poll_at = self._renew_at = self._not_before = 0.0  # monotonic
        self.loop = Loop("webhooks", self._tick, expected=(SQLAlchemyError, OSError), drain=self._drain)

    def wake(self) -> None:
        """Look for new events. Costs nothing where there is no endpoint."""
        if self._active:
            self._look = True
            self.loop.wake()

    # ---- turns

    def _tick(self) -> float:
        if time.monotonic() >= self._survey_at:
            self._survey()
        if not (self._active or self._held or self._done):
            return SURVEY_SECONDS
        time.sleep(max(0.0, self._not_before - time.monotonic()))
        looks = self._looks()
        if looks or self._done or (self._held and time.monotonic() >= self._renew_at):
            self._turn(looks=looks)
        return 0.0 if self._look else max(0.0, self._poll_at - time.monotonic())

    def _survey(self) -> None:
        with read_only(self._ledger) as db:
            self._active, failures = deliveries.survey(db, self._means.rules.limit)
        self._metrics.tell({"cancel_worker_webhook_consecutive_failures": {(): float(failures)}})
        self._survey_at = time.monotonic() + SURVEY_SECONDS

    def _looks(self) -> bool:
        """Whether endpoints are to be taken: something was announced, or it is time to look and there is work."""
        if not self._look and time.monotonic() < self._poll_at:
            return False
        self._look, self._poll_at = False, time.monotonic() + self._poll
        gave = self._give_places()
        with read_only(self._ledger) as db:
            found = deliveries.has_work(db)
        if gave and not found:
            self._poll_at = time.monotonic() + min(self._poll, AGAIN_SECONDS)
        return found

    def _give_places(self) -> bool:
        with read_only(self._ledger) as db:
            waits = feed.without_place(db)
        if waits:
            with self._ledger.begin() as db:
                self._look = feed.give_places(db) == feed.MAX_PLACED
        return waits

    def _turn(self, *, looks: bool) -> None:
        done = list(self._done)
        finished = {running.key for running, _ in done}
        busy = [each for key, each in self._running.items() if key not in finished]
        # Who is unknown or fails has one try, which runs: nothing can change before it is over.
        waiting = self._held - self._means.took.keys() - {running.due.endpoint_id for running, _ in done}
        with self._ledger.begin() as db:
            turn = WebhookTurn(db, self._means, self._held - waiting, busy)
            turn.keep(done)
            chosen = turn.choose(looks=looks)
            turn.leave(renew=time.monotonic() >= self._renew_at)
        self._held = waiting | turn.kept
        self._over(turn, done)
        for each in chosen:
            self._begin(each)

    def _over(self, turn: WebhookTurn, done: Sequence[tuple[Running, Tried]]) -> None:
        """Go on from a turn that is committed."""
        now = time.monotonic()
        self._not_before = now + SPACING_SECONDS
        if now >= self._renew_at:
            self._renew_at = now + RENEW_SECONDS
        self._look = self._look or turn.has_more
        for running, tried in done:
            self._done.popleft()
            del self._running[running.key]
            self._metrics.webhook(tried.status, tried.seconds)
        for tell in turn.after:
            tell()
        if turn.has_news:
            self._announced()

    def _begin(self, chosen: Chosen) -> None:
        running = Running(chosen.due, datetime.now(UTC), time.monotonic())
        self._running[running.key] = running
        try:
            receiver = read_receiver(chosen.url, allow_private=self._network.allow_private)
        except ValueError:  # a setting has changed since it was stated
            self._finished(running, Tried(reason="address_not_allowed", seconds=0.0))
            return
        request = request_to(receiver, chosen.event, chosen.keys, running.at)
        self._tries.begin(receiver, request, partial(self._finished, running))

    def _finished(self, running: Running, tried: Tried) -> None:
        self._done.append((running, tried))
        self.loop.wake()

    def _drain(self) -> None:
        """Wait a moment for what runs, keep what became of it, and give the endpoints back."""
        deadline = time.monotonic() + STOP_SECONDS
        while len(self._done) < len(self._running) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._tries.stop()
        if self._done:
            with self._ledger.begin() as db:
                turn = WebhookTurn(db, self._means, self._held, [])
                turn.keep(list(self._done))
                turn.leave(renew=False)
            self._done.clear()
            for tell in turn.after:
                tell()
        if self._held:
            with self._ledger.begin() as db:
                delivery_notes.release(db, self._owner)
            self._held.clear()
        self._running.clear()
