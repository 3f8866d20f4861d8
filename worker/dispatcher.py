"""Ledger to Celery: looks at what is due, chooses whose turn it is, and hands it out. Any number may run; no leader.

Knows the ledger's agenda and how to publish ids; does not know what an attempt is. All of it is safe to do twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import structlog
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.lifecycle import Move, Policy, expire
from worker.health import LEDGER
from worker.ledger import claims, turns
from worker.ledger.claims import Claim
from worker.ledger.engine import reading
from worker.ledger.moving import apply_unsent
from worker.ledger.turns import Overdue
from worker.observability import report_bug
from worker.pause import LONGEST_SECONDS, Pause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from worker.health import Vitals
    from worker.ledger.turns import Agenda, Queued

log = structlog.get_logger()

POLL_SECONDS = 1.0  # how late a row of another process' transaction may be noticed
MAX_BATCH = 64  # ids in one Celery message: its cost is then small beside theirs
MAX_SWEEP = 500  # rows in one maintenance statement
# A queued row whose message nobody took for this long is offered again: its message was lost.
QUEUED_LEASE_SECONDS = 10
# After an outage of the ledger, answers that live workers kept are recorded before claims are taken over.
SETTLE_SECONDS = 2 * LONGEST_SECONDS


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """Where what is due goes to."""

    prepare: Callable[[], None]  # once, as soon as the ledger answers
    publish: Callable[[Sequence[str]], None]  # one Celery message of ids
    rescue: Callable[[list[Claim]], None]  # claims of lost workers
    read_back: Callable[[list[Claim]], None]  # ended cancellations to look at again
    publish_events: Callable[[], None]
    expired: Callable[[list[tuple[Overdue, Move]]], None]  # to be told


class Dispatcher:
    """One thread that hands out what is due, at most `room` rows ahead of the workers."""

    def __init__(
        self, ledger: Engine, owner: str, room: int, lease_seconds: float, policy: Policy, doors: Doors, vitals: Vitals
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._room = room
        self._lease_seconds = lease_seconds
        self._policy = policy
        self._doors = doors
        self._vitals = vitals
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._settled_at = 0.0
        self.thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        """Something may be due or there may be room: look now."""
        self._wake.set()

    def stop(self) -> None:
        """Hand out nothing more, and give back what nobody has claimed."""
        self._stop.set()
        self._wake.set()
        self.thread.join(10)
        try:
            with self._ledger.begin() as connection:
                turns.hand_back_all(connection, self._owner)
        except SQLAlchemyError as error:
            log.warning("dispatcher.not_handed_back", error=type(error).__name__)  # their short lease ends by itself

    def _run(self) -> None:
        pause = Pause(self._stop)
        prepared = False
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if not prepared:
                    self._doors.prepare()
                    prepared = True
                rest = self.tick()
            except (SQLAlchemyError, RedisError, BrokerError, OSError) as error:
                pause.wait("dispatcher.part_away", error)
                continue
            except Exception as error:  # noqa: BLE001 - a bug may not end the dispatcher
                report_bug("dispatcher.failed")
                pause.wait("dispatcher.failed", error)
                continue
            if pause.over("dispatcher.back"):
                self._settled_at = time.monotonic() + SETTLE_SECONDS
            self._wake.wait(rest)

    def tick(self) -> float:
        """Do what is due; return the seconds until there may be more."""
        with reading(self._ledger).connect() as connection:
            agenda = turns.look(connection, self._owner)
        self._vitals.answered(LEDGER)
        self._vitals.saw(work_due=bool(agenda.backlog or agenda.queued_here))
        done = self._promote() if agenda.is_due(agenda.run_at) else 0
        done += self._maintain(agenda)
        full = (agenda.backlog or done > 0) and self._hand_out(self._room - agenda.queued_here)
        # After any progress the agenda is another one. Without it, looking again at once would be a hot loop.
        return 0.0 if full or done else min(POLL_SECONDS, agenda.seconds_to_next)

    def _promote(self) -> int:
        with self._ledger.begin() as connection:
            return turns.promote_due(connection, MAX_SWEEP)

    def _hand_out(self, room: int) -> bool:
        # In gulps of half the room: one message for many rows costs as much as one for one.
        if room < max(1, self._room // 2):
            return False
        with self._ledger.begin() as connection:
            whose = turns.whose_turn(connection)
            queued = turns.queue(connection, share_out(whose, room), self._owner, QUEUED_LEASE_SECONDS)
            if probed := [name for name, probe in whose.items() if probe]:
                turns.note_probes(connection, probed)
        for start in range(0, len(queued), MAX_BATCH):
            self._publish(queued[start:], MAX_BATCH)
        return len(queued) >= room

    def _publish(self, queued: Sequence[Queued], size: int) -> None:
        try:
            self._doors.publish([row.id for row in queued[:size]])
        except Exception:
            # Nothing of this is on its way. Should it be after all, the claim's guard drops it.
            with self._ledger.begin() as connection:
                turns.hand_back(connection, [row.id for row in queued], self._owner)
            raise

    def _maintain(self, agenda: Agenda) -> int:
        done = 0
        if agenda.is_due(agenda.send_by):
            done += self._expire()
        if agenda.is_due(agenda.lease_end):
            done += self._take_back()
        if agenda.is_due(agenda.confirm_at):
            done += self._look_again()
        if agenda.is_due(agenda.publish_at):
            self._doors.publish_events()
        return done

    def _expire(self) -> int:
        with self._ledger.begin() as connection:
            found = turns.overdue(connection, MAX_SWEEP)
            moves = [(row, expire(row.state, now=row.now, policy=self._policy)) for row in found]
            ended = apply_unsent(connection, [(row.id, move) for row, move in moves])
        self._doors.expired([(row, move) for row, move in moves if row.id in ended])
        return len(ended)

    def _take_back(self) -> int:
        with self._ledger.begin() as connection:
            returned = turns.take_back_lost_messages(connection, MAX_SWEEP)
        if time.monotonic() < self._settled_at:
            return returned
        with self._ledger.begin() as connection:
            lost = claims.take_over(connection, self._owner, self._lease_seconds, MAX_SWEEP)
        if lost:
            self._doors.rescue(lost)
        return returned + len(lost)

    def _look_again(self) -> int:
        with self._ledger.begin() as connection:
            due = claims.claim_read_backs(connection, self._lease_seconds, MAX_SWEEP)
        if due:
            self._doors.read_back(due)
        return len(due)


def share_out(whose_turn: Mapping[str, bool], room: int) -> dict[str, int]:
    """Divide the room between the connections that may send; True marks one that may send a single probe.

    This is the dispatcher's choice of what to send: pace, turns and the circuit breaker belong here.
    """
    fair = max(1, -(-room // max(1, len(whose_turn))))
    return {name: 1 if probe else fair for name, probe in list(whose_turn.items())[: max(1, room)]}
