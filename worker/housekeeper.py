"""What time brings: due retries, leases and deadlines that end, read-backs, events. Any number run; no leader.

Knows the ledger's agenda; does not know whose turn it is, nor what an attempt is. All of it is safe to do twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.lifecycle import Move, Policy, expire, give_up
from worker.cancellation.pace import seconds_to_send
from worker.ledger import agenda as due
from worker.ledger import claims
from worker.ledger.agenda import Overdue
from worker.ledger.claims import Claim
from worker.ledger.engine import reading
from worker.ledger.moving import apply_unsent
from worker.observability import report_bug
from worker.pause import LONGEST_SECONDS, Pause

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.ledger.agenda import Agenda

log = structlog.get_logger()

POLL_SECONDS = 1.0
HURRY_SECONDS = 5.0  # how often deadlines are compared with the backlog
MAX_SWEEP = 500  # rows in one statement
# After an outage of the ledger, answers that live workers kept are recorded before claims are taken over.
SETTLE_SECONDS = 2 * LONGEST_SECONDS


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """Where what is due goes to."""

    pending: Callable[[Iterable[str]], None]  # connections that have something to send again
    rescue: Callable[[list[Claim]], None]  # claims of lost workers
    read_back: Callable[[list[Claim]], None]  # ended cancellations to look at again
    publish_events: Callable[[], None]
    expired: Callable[[list[tuple[Overdue, Move]]], None]  # to be told


class Housekeeper:
    """One thread that does what is due."""

    def __init__(
        self, ledger: Engine, owner: str, lease_seconds: float, usual_rate: float, policy: Policy, doors: Doors
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._usual_rate = usual_rate
        self._policy = policy
        self._doors = doors
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._settled_at = 0.0
        self._hurried_at = float("-inf")
        self.thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        """Something may be due sooner than it was: look now."""
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self.thread.join(10)

    def _run(self) -> None:
        pause = Pause(self._stop)
        while not self._stop.is_set():
            self._wake.clear()
            try:
                rest = self.tick()
            except (SQLAlchemyError, OSError) as error:
                pause.wait("housekeeper.ledger_away", error)
                continue
            except Exception as error:  # noqa: BLE001 - a bug may not end the housekeeper
                report_bug("housekeeper.failed")
                pause.wait("housekeeper.failed", error)
                continue
            if pause.over("housekeeper.back"):
                self._settled_at = time.monotonic() + SETTLE_SECONDS
            self._wake.wait(rest)

    def tick(self) -> float:
        """Do what is due; return the seconds until there may be more."""
        with reading(self._ledger).connect() as connection:
            agenda = due.look(connection)
        done = self._promote() if agenda.is_due(agenda.run_at) else 0
        done += self._end(due.overdue, expire) if agenda.is_due(agenda.send_by) else 0
        horizon = timedelta(seconds=self._policy.retry_horizon)
        if agenda.sent_at is not None and agenda.is_due(agenda.sent_at + horizon):
            done += self._end(partial(due.worn_out, horizon_seconds=self._policy.retry_horizon), give_up)
        done += self._take_back() if agenda.is_due(agenda.lease_end) else 0
        done += self._look_again() if agenda.is_due(agenda.confirm_at) else 0
        if agenda.is_due(agenda.publish_at):
            self._doors.publish_events()
        self._warn(agenda)
        # After any progress the agenda is another one. Without it, looking again at once would be a hot loop.
        return 0.0 if done else min(POLL_SECONDS, agenda.seconds_to_next)

    def _promote(self) -> int:
        with self._ledger.begin() as connection:
            connection_ids = due.promote_due(connection, MAX_SWEEP)
        self._doors.pending(connection_ids)
        return len(connection_ids)

    def _end(self, find: Callable[..., list[Overdue]], decide: Callable[..., Move]) -> int:
        with self._ledger.begin() as connection:
            found = find(connection, limit=MAX_SWEEP)
            moves = [(row, decide(row.state, now=row.now, policy=self._policy)) for row in found]
            ended = apply_unsent(connection, [(row.id, move) for row, move in moves])
        self._doors.expired([(row, move) for row, move in moves if row.id in ended])
        return len(ended)

    def _take_back(self) -> int:
        with self._ledger.begin() as connection:
            returned = due.take_back_lost_messages(connection, MAX_SWEEP)
        self._doors.pending(returned)
        if time.monotonic() < self._settled_at:
            return len(returned)
        with self._ledger.begin() as connection:
            lost = claims.take_over(connection, self._owner, self._lease_seconds, MAX_SWEEP)
        if lost:
            self._doors.rescue(lost)
        return len(returned) + len(lost)

    def _look_again(self) -> int:
        with self._ledger.begin() as connection:
            found = claims.claim_read_backs(connection, self._lease_seconds, MAX_SWEEP)
        if found:
            self._doors.read_back(found)
        return len(found)

    def _warn(self, agenda: Agenda) -> None:
        if agenda.send_by is None or time.monotonic() - self._hurried_at < HURRY_SECONDS:
            return
        self._hurried_at = time.monotonic()
        with self._ledger.begin() as connection:
            rows = due.hurried(connection, MAX_SWEEP)
            expected = [
                (
                    row,
                    row.now + timedelta(seconds=seconds_to_send(row.place, row.writes_per_second or self._usual_rate)),
                )
                for row in rows
            ]
            late = [(row, moment) for row, moment in expected if moment >= row.send_by]
            warned = due.warn(connection, late) if late else 0
        if warned:
            log.warning("cancellation.wont_make_it", count=warned)
            self._doors.publish_events()
