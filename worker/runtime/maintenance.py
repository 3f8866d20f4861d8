"""What time brings: due retries, leases and deadlines that end, read-backs, events, and what is past its retention.

Every worker does it; there is no leader. Knows the ledger's deadlines; does not know whose turn it is, nor what an
attempt is. All of it is safe to do twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.freshness import Crawls
from worker.cancellation.lifecycle import Moment, Transition, expire, give_up
from worker.cancellation.pace import seconds_to_send
from worker.cancellation.policy import Retention
from worker.ledger import claims, deadlines, documents, holds, migrations, transitions
from worker.ledger.claims import AttemptClaim, ConfirmClaim
from worker.ledger.database import read_only
from worker.ledger.deadlines import Lapsed
from worker.runtime.loop import MAX_SECONDS, Loop
from worker.runtime.reporting import alert_on_resumed
from worker.runtime.retention import Forgetting
from worker.telemetry.sentry import report_bug

if TYPE_CHECKING:
    from worker.cancellation.policy import Policy
    from worker.ledger.deadlines import NextDeadlines

log = structlog.get_logger()

POLL_SECONDS = 1.0
DEADLINE_CHECK_SECONDS = 5.0  # how often deadlines are compared with the backlog
MAX_SWEEP = 500  # rows in one statement
MAX_MOVED = 200  # documents in one poll: a few ms of the database in a second
# After an outage of the ledger, answers that live workers kept are recorded before claims are taken over.
SETTLE_SECONDS = 2 * MAX_SECONDS
CLOCK_STEP_SECONDS = 1.0  # a smaller step is within what a lease has to spare


FOR_EVER = Retention(facts=0, documents=0, dead_letters=0)


class Handlers(msgspec.Struct, frozen=True, kw_only=True):
    """What the housekeeper calls for each thing that is due."""

    at_start: Callable[[Engine], None]  # once, as soon as the ledger answers
    on_ready: Callable[[Iterable[str]], None]  # connections that have something to send again
    rescue: Callable[[list[AttemptClaim]], None]  # claims of lost workers
    confirm: Callable[[list[ConfirmClaim]], None]  # ended cancellations to read back
    publish_events: Callable[[], None]
    expired: Callable[[list[tuple[Lapsed, Transition]]], None]  # to be told
    crawls: Callable[[str], Crawls | None] = lambda _connection_id: None  # what is known of a connection's crawls
    warned: Callable[[int], None] = lambda _count: None  # how many cannot be sent in time


class Maintenance:
    """One thread, the housekeeper, that does what is due."""

    def __init__(
        self,
        ledger: Engine,
        owner: str,
        lease_seconds: float,
        default_rate: float,
        policy: Policy,
        handlers: Handlers,
        kept: Retention = FOR_EVER,
    ) -> None:
        self._forgetting = Forgetting(ledger, kept)
        self._ledger = ledger
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._default_rate = default_rate
        self._policy = policy
        self._handlers = handlers
        self._fits = False  # whether the tables are known to be those of this code
        self._started = False
        self._start_failed = False
        self._ledger_clock: tuple[datetime, float] | None = None  # as it was read last, and a monotonic time before
        self._rescue_after = float("-inf")  # monotonic: no claim is taken over before
        self._checked_at = float("-inf")
        self.loop = Loop("housekeeper", self.tick, expected=(SQLAlchemyError, OSError))

    def tick(self) -> float:
        """Do what is due; return the seconds until there may be more."""
        if not self._fits:
            self._check_schema()
        asked_at = time.monotonic()
        with read_only(self._ledger) as db:
            due = deadlines.next_deadlines(db)
        self._watch_clock(due.now, asked_at)
        self._start()
        done = self._promote() if due.is_due(due.run_at) else 0
        done += self._end_pauses() if due.is_due(due.hold_end) else 0
        done += self._end(deadlines.past_send_by, expire) if due.is_due(due.send_by) else 0
        horizon = timedelta(seconds=self._policy.retry_horizon)
        if due.sent_at is not None and due.is_due(due.sent_at + horizon):
            past_horizon = partial(deadlines.past_retry_horizon, horizon_seconds=self._policy.retry_horizon)
            done += self._end(past_horizon, give_up)
        done += self._reclaim_expired_leases() if due.is_due(due.lease_end) else 0
        done += self._confirm() if due.is_due(due.confirm_at) else 0
        if due.is_due(due.publish_at):
            self._handlers.publish_events()
        self._warn(due)
        self._forgetting.run()
        if due.old_documents:
            self._move_documents()
        # After any progress the next times are others. Without it, looking again at once would be a hot loop.
        return 0.0 if done else min(POLL_SECONDS, due.seconds_to_next)

    def _check_schema(self) -> None:
        try:
            with read_only(self._ledger) as db:
                migrations.refuse_unfit(db)
        except migrations.SchemaError as error:
            log.warning("ledger.schema_unfit", problem=str(error))  # with each try: nobody reads a log from its start
            raise
        self._fits = True

    def _start(self) -> None:
        """Do once what the settings ask for. Where that fails, it is told, and nobody else waits for it."""
        if self._started:
            return
        try:
            self._handlers.at_start(self._ledger)
            self._started = True
        except (SQLAlchemyError, OSError) as error:  # tried again with the next tick
            if not self._start_failed:
                log.warning("housekeeper.start_failed", error=type(error).__name__)
            self._start_failed = True
        except Exception:  # noqa: BLE001 - whatever it is, the other connections have their due
            self._started = True
            report_bug("housekeeper.start_crashed")

    def _watch_clock(self, now: datetime, asked_at: float) -> None:
        """Notice that the ledger's clock has jumped ahead: leases then seem to have ended whose requests still run.

        `asked_at` is a monotonic time before the ledger looked at its clock.
        """
        before, at_least = self._ledger_clock or (now, asked_at)
        self._ledger_clock = (now, asked_at)
        jump = (now - before).total_seconds() - (time.monotonic() - at_least)
        if jump > CLOCK_STEP_SECONDS:
            self._rescue_after = time.monotonic() + self._lease_seconds
            log.warning("ledger.clock_stepped", seconds=round(jump))

    def _promote(self) -> int:
        with self._ledger.begin() as db:
            connection_ids = transitions.promote_due(db, MAX_SWEEP)
        self._handlers.on_ready(connection_ids)
        return len(connection_ids)

    def _end_pauses(self) -> int:
        """End the holds whose time is over, as every worker does: whoever comes second finds none."""
        with self._ledger.begin() as db:
            resumed = holds.end_pauses(db)
        self._handlers.on_ready(resumed)
        alert_on_resumed(resumed)
        self._handlers.publish_events()
        return len(resumed)

    def _end(self, find: Callable[..., list[Lapsed]], decide: Callable[..., Transition]) -> int:
        with self._ledger.begin() as db:
            found = find(db, limit=MAX_SWEEP)
            decided = [(row, decide(row.state, self._moment(row))) for row in found]
            ended = transitions.end_unsent(db, [(row.id, transition) for row, transition in decided])
        self._handlers.expired([(row, transition) for row, transition in decided if row.id in ended])
        return len(ended)

    def _moment(self, row: Lapsed) -> Moment:
        return Moment(now=row.now, policy=self._policy, crawls=self._handlers.crawls(row.connection_id))

    def _reclaim_expired_leases(self) -> int:
        with self._ledger.begin() as db:
            returned = transitions.requeue_unclaimed(db, MAX_SWEEP)
        self._handlers.on_ready(returned)
        settled = max(self.loop.recovered_at + SETTLE_SECONDS, self._rescue_after)
        if self.loop.away or time.monotonic() < settled:
            return len(returned)
        with self._ledger.begin() as db:
            lost = claims.take_over(db, self._owner, self._lease_seconds, MAX_SWEEP)
        if lost:
            self._handlers.rescue(lost)
        return len(returned) + len(lost)

    def _confirm(self) -> int:
        with self._ledger.begin() as db:
            found = claims.claim_read_backs(db, self._lease_seconds, MAX_SWEEP)
        if found:
            self._handlers.confirm(found)
        return len(found)

    def _move_documents(self) -> None:
        """Move some, and the next ones with the next poll: nobody waits for them."""
        with self._ledger.begin() as db:
            documents.move_old(db, MAX_MOVED)

    def _warn(self, due: NextDeadlines) -> None:
        if due.send_by is None or time.monotonic() - self._checked_at < DEADLINE_CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        with self._ledger.begin() as db:
            expected = [(row, row.now + self._time_to_send(row)) for row in deadlines.at_risk(db, MAX_SWEEP)]
            late = [(row, expected_at) for row, expected_at in expected if expected_at >= row.send_by]
            warned = deadlines.warn(db, late) if late else 0
        if warned:
            log.warning("cancellation.wont_make_it", count=warned)
            self._handlers.warned(warned)
            self._handlers.publish_events()

    def _time_to_send(self, row: deadlines.DeadlineAtRisk) -> timedelta:
        return timedelta(seconds=seconds_to_send(row.place, row.writes_per_second or self._default_rate))
