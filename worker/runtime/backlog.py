"""Whether what is due goes out: looks at the ledger and at Redis every few seconds, and tells the vitals what stands.

Watches from outside of those who do the work, so it does not matter why nothing moves. Knows whom to ask; what a
standstill is, `cancellation/standstill` knows. Never on the way of a job.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.standstill import STANDSTILL_SECONDS, Heads, is_standing
from worker.inputs.faults import fault
from worker.ledger import backlog
from worker.ledger.database import read_only
from worker.runtime.loop import Loop
from worker.runtime.transport import Transport
from worker.streams import INBOX
from worker.telemetry.health import LEDGER, REDIS
from worker.telemetry.sentry import alert

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.standstill import Unmoved
    from worker.runtime.executor import Executor
    from worker.telemetry.health import Vitals
    from worker.trackstar.pacing import Pacing

POLL_SECONDS = 5.0
MAX_ASKED = 20  # paces that are read in one look; one connection that stands still is enough to say so


class Backlog:
    """One thread that watches the heads of the queues and the inboxes."""

    def __init__(
        self,
        redis: Redis,
        ledger: Engine,
        owner: str,
        pacing: Pacing,
        default_rate: float,
        executor: Executor,
        lease_seconds: float,
        vitals: Vitals,
        clock: Callable[[], float] = time.monotonic,
        inboxes: Callable[[], Sequence[str]] = lambda: (INBOX,),
    ) -> None:
        self._ledger = ledger
        self._inboxes = inboxes
        self._owner = owner
        self._pacing = pacing
        self._default_rate = default_rate
        self._threads = _Threads(executor, lease_seconds)
        self._vitals = vitals
        self._clock = clock
        self._transport = Transport(redis)
        self._heads = Heads()
        self._after = ""  # the connection behind which the next look begins
        self._standing: dict[str, float] = {}  # what stands at an inbox, and since when
        self._unready = False
        self.loop = Loop("backlog", self.tick, expected=(SQLAlchemyError, RedisError, OSError))

    def tick(self) -> float:
        """Look once; return the seconds until the next look."""
        try:
            self._look_at_heads()
        finally:
            try:
                self._look_at_inboxes()
            finally:
                self._tell()
        return POLL_SECONDS

    def _look_at_heads(self) -> None:
        with read_only(self._ledger) as db:
            heads, self._after = backlog.heads(db, self._after)
            unsent = backlog.unsent(db, self._heads.record_ids)
        self._vitals.responded(LEDGER)
        now = self._clock()
        self._heads.observe(now, heads, unsent, self._threads.at_work(now))
        unmoved = self._heads.unmoved(now, unsent)
        self._vitals.found("backlog", _in_words([why for each in unmoved[:MAX_ASKED] if (why := self._why(each))]))

    def _why(self, unmoved: Unmoved) -> str | None:
        name = unmoved.head.connection_id
        ahead = self._pacing.ahead(name)
        if not is_standing(unmoved, unmoved.head.rate or self._default_rate, ahead):
            return None
        due = unmoved.head.record_id
        what = f"Connection {name} has sent nothing for {unmoved.seconds:.0f} s, though {due} is due: "
        if ahead is None:
            return f"{what}its pace cannot be read: `DEL {self._pacing.key(name)}` in Redis."
        if ahead > STANDSTILL_SECONDS:
            return f"{what}its next send slot is {ahead:.0f} s ahead: `DEL {self._pacing.key(name)}` in Redis."
        return f"{what}this worker has threads free and does not take it."

    def _look_at_inboxes(self) -> None:
        try:
            looks = self._transport.look_at(self._inboxes(), self._owner, self._vitals.problems())
        except ResponseError as error:
            found = [f"Redis refuses what a worker must do ({fault(error)})"]
        else:
            said = (
                look.problem() or (look.first and f"The entry {look.first} of {look.stream} is not taken")
                for look in looks
            )
            found = [what for what in said if what]
        self._vitals.responded(REDIS)
        now = self._clock()
        self._standing = {what: self._standing.get(what, now) for what in found}
        since = {what: now - at for what, at in self._standing.items() if now - at > STANDSTILL_SECONDS}
        self._vitals.found("inbox", [f"{what}, for {seconds:.0f} s." for what, seconds in since.items()])

    def _tell(self) -> None:
        problems = self._vitals.problems()
        if problems and not self._unready:
            alert("worker.unready", problem=problems[0])
        elif self._unready and not problems:
            alert("worker.ready_again")
        self._unready = bool(problems)


class _Threads:
    """Whether the threads of this worker explain that a connection waits."""

    def __init__(self, executor: Executor, lease_seconds: float) -> None:
        self._executor = executor
        self._lease_seconds = lease_seconds
        self._released_at = executor.released_at
        self._served_at: float | None = None

    def at_work(self, now: float) -> Callable[[str], bool]:
        in_use = self._executor.in_use()
        if not in_use or self._served_at is None or self._released_at != self._executor.released_at:
            self._released_at, self._served_at = self._executor.released_at, now
        # No request outlives its lease. Threads of which none came free for so long are not at work.
        alive = now - self._served_at <= self._lease_seconds
        full = in_use.total() * 2 >= self._executor.threads
        return lambda name: alive and (full or name in in_use)


def _in_words(found: list[str]) -> list[str]:
    others = f" ({len(found) - 1} more connections stand still.)" if len(found) > 1 else ""
    return [found[0] + others] if found else []
