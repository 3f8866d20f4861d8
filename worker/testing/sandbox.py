"""What a test of an OMS holds in its hands: what Trackstar answers, what time it is, and who is away.

Knows the words of a test; what follows from them, production's own rules and statements say.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from worker import shared_settings
from worker.cancellation.event import write_event
from worker.cancellation.request import parse_request
from worker.dev.sandbox import World
from worker.dev.sandbox.script import parse_all
from worker.ledger import holds, transitions
from worker.ledger.schema import events
from worker.ledger.told import select_told, told_of
from worker.testing.client import SandboxClient
from worker.testing.ledger import open_at
from worker.testing.wire import InProcessTrackstar
from worker.testing.worker import CRAWL_SECONDS, InProcessWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.client import CancelClient
    from worker.dev.sandbox.options import OrderOptions

LONG_ENOUGH = 1_000  # answers: more than are asked for within the retry horizon

# What becomes of an order's cancel, in one word each; `docs/integrate.md` tells what an OMS sees of it, and when.
OUTCOMES: dict[str, OrderOptions | None] = {
    "cancelled": {},
    "retried": {"script": ["503"]},
    "lost": {"script": ["applied_then:reset"]},  # it landed, and nobody heard the answer
    "accepted_then_cancelled": {"script": ["open:1800"]},
    "accepted_then_shipped": {"script": ["open:ship:1800"]},
    "accepted_then_open": {"script": ["open"]},
    "refused": {"script": ["422:integration"]},
    "shipped": {"status": "fulfilled"},
    "cancelled_elsewhere": {"script": ["applied_then:400:integration"]},
    "unsupported": {"script": ["501:integration"]},
    "not_found": None,
    "no_access": {"script": ["401"]},
    "unavailable": {"script": ["503"] * LONG_ENOUGH},
}


class TrackstarSandbox:
    """What the fixture `trackstar_sandbox` is. Nothing is sent before time passes: by `advance`, or a client's `wait`.

    `now` is its time, which begins with the test and stands still. `down` holds who is away just now. In `engine`, at
    `database_url`, is the ledger; an OMS may have tables of its own there, and enqueue in its own transaction.
    """

    def __init__(self, database_url: str) -> None:
        self.now = datetime.now(UTC)
        self.down: set[Literal["redis", "database", "trackstar"]] = set()
        self.database_url = database_url
        self.engine = open_at(database_url, lambda: self.now)
        self._answers: dict[str, OrderOptions | None] = {}
        self._clients: list[CancelClient] = []
        self._world = World(
            "sandbox",
            clock=self._seconds,
            writes_per_second=None,
            reads_per_second=None,
            crawl_length=CRAWL_SECONDS,
        )
        trackstar = InProcessTrackstar(self._world, lambda: "trackstar" in self.down)
        self._worker = InProcessWorker(self.engine, self._world, trackstar, shared_settings.policy(), self._make_order)
        self._alone = RLock()

    def client(self, **options: Any) -> CancelClient:
        """Return another client of this sandbox; `options` are those of `CancelClient`."""
        self._clients.append(SandboxClient(self, **options))
        return self._clients[-1]

    # -- what is answered

    def answers(self, order_id: str, *outcome: str) -> None:
        """Say what becomes of an order's cancel: one word of `OUTCOMES`, or the sandbox's steps one after another.

        Whatever is not said is "cancelled". Said of an order that was sent, it is from now on: "shipped" lets the
        goods leave, and Trackstar learns it by the next crawl. Raises ValueError.
        """
        known = len(outcome) == 1 and outcome[0] in OUTCOMES
        options = OUTCOMES[outcome[0]] if known else {"script": _steps(outcome)}
        for order in [each for each in self._world.orders() if each.order_id == order_id]:
            if options is None:
                raise ValueError(f"Trackstar knows order {order_id!r} already: say this before it is sent.")
            changes: OrderOptions = {"script": (), **options}
            self._world.alter_order(order.connection_id, order_id, **changes)
        self._answers[order_id] = options

    def hold(self, connection_id: str) -> None:
        """Hold a connection as an operator does: its jobs wait."""
        with self.engine.begin() as db:
            self._worker.add_connection(db, connection_id)
            holds.hold_by_operator(db, connection_id)

    def resume(self, connection_id: str) -> None:
        """End a connection's hold, whatever its reason."""
        with self.engine.begin() as db:
            holds.resume(db, [connection_id], holds.ALL)

    # -- time

    def advance(self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> None:
        """Let time pass, and all happen that is due by then; nothing at all: what is due now."""
        self.run(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds())

    def advance_to(self, instant: datetime) -> None:
        """Let time pass until then, as to the `known_by` of an answer."""
        self.run((instant - self.now).total_seconds())

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass from one thing that is due to the next, so many seconds at most; stop where `until` holds."""
        with self._alone:
            end = self.now + timedelta(seconds=max(0.0, seconds))
            self._worker.work()
            while not until():
                due = self._worker.next_due()
                if due is None or due > end:
                    self.now = end
                    return
                self.now = due
                self._worker.work()

    def _seconds(self) -> float:
        return self.now.timestamp()

    # -- what came of it

    def events(self) -> list[dict[str, str]]:
        """Return what stands on `cancellations:events` about cancellations, as a reader of that stream gets it."""
        with self.engine.connect() as db:
            rows = db.execute(select_told().where(events.c.cancellation_id.is_not(None))).all()
            return [
                {"type": told.event.type, "event": write_event(told.event).decode(), "event_id": str(told.number)}
                for told in told_of(db, rows)
            ]

    def receive(self, jobs: Sequence[bytes]) -> None:
        """Take these jobs in, as a worker takes them from the inbox. Raises InvalidRequest."""
        requests = [parse_request(job) for job in jobs]
        transitions.accept_batch(self.engine, requests)

    def close(self) -> None:
        """Close every connection that was opened."""
        for client in self._clients:
            client.close()
        self.engine.dispose()

    def _make_order(self, connection_id: str, order_id: str) -> None:
        options = self._answers.get(order_id, {})
        if options is not None and self._world.find(connection_id, order_id) is None:
            self._world.add_order(connection_id, order_id, **options)


def _steps(words: Sequence[str]) -> list[str]:
    try:
        parse_all(words)
    except ValueError as error:
        raise ValueError(f"An outcome is one of {', '.join(OUTCOMES)}; or steps of the sandbox: {error}") from None
    return list(words)
