"""Ledger to Celery: whose turn it is, at whose pace, as far as this worker has threads. Any number run; no leader.

Each worker hands out to itself, so it knows exactly what it can take; a job that nobody has room for stays in the
ledger. Knows turns, permits and how to publish ids; does not know what an attempt is. All of it is safe to do twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import structlog
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.pace import LOOKAHEAD_SECONDS, SHARE
from worker.cancellation.sharing import deal, for_the_longest_waiting, most_for, reserved, rotated
from worker.health import LEDGER
from worker.ledger import holds, turns
from worker.ledger.engine import one_statement, reading
from worker.observability import report_bug
from worker.pause import Pause
from worker.trackstar.pacing import Permit

if TYPE_CHECKING:
    from collections import Counter

    from sqlalchemy import Engine

    from worker.berths import Berths
    from worker.health import Vitals
    from worker.ledger.turns import Sender
    from worker.trackstar.pacing import Pacing, Permits

log = structlog.get_logger()

LOOK_SECONDS = 1.0  # how late a row of another process' transaction, or of a connection that goes on, may be noticed
KNOWN_SECONDS = 10.0  # how late a rate that was changed while nothing was sent may be noticed
MAX_BATCH = 256  # ids in one Celery message; a message costs as much as a dozen of them
# A queued row whose message nobody took for this long is offered again: its message was lost.
QUEUED_LEASE_SECONDS = 10
# A worker without room waits for a good part of it, or this long: a gulp costs as much as a sip.
FULL_SECONDS = 0.05
GULP_PART, GULP_MOST = 4, 32  # so many threads are worth a message: a fourth of all, or that many
LEAST_REST_SECONDS = 0.005


class Dispatcher:
    """One thread that hands out what may be sent now."""

    def __init__(
        self,
        ledger: Engine,
        owner: str,
        pacing: Pacing,
        usual_rate: float,
        berths: Berths,
        publish: Callable[[Sequence[str]], None],
        vitals: Vitals,
        prepare: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._owner = owner
        self._pacing = pacing
        self._usual_rate = usual_rate
        self._berths = berths
        self._publish = publish
        self._vitals = vitals
        self._prepare = prepare  # once, as soon as the ledger answers
        self._lock = threading.Lock()
        self._arrived: set[str] = set()
        self._rates: dict[str, float] = {}  # of the connections that have something to send
        self._known: dict[str, float] = {}  # of all that had, lately
        self._sent: dict[str, tuple[int, int]] = {}  # in all, and by age
        self._last: str | None = None
        self._looked_at = self._learnt_at = float("-inf")
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def arrived(self, connection_ids: Iterable[str]) -> None:
        """Look now: these connections have something new to send."""
        with self._lock:
            self._arrived.update(connection_ids)
        self._wake.set()

    def halt(self) -> None:
        """Hand out nothing more."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """Hand out nothing more, and give back what nobody has claimed."""
        self.halt()
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
                    self._prepare()
                    prepared = True
                rest = self.tick()
            except (SQLAlchemyError, RedisError, OSError) as error:
                pause.wait("dispatcher.part_away", error)
                continue
            except Exception as error:  # noqa: BLE001 - a bug may not end the dispatcher
                report_bug("dispatcher.failed")
                pause.wait("dispatcher.failed", error)
                continue
            pause.over("dispatcher.back")
            self._wake.wait(rest)

    def tick(self) -> float:
        """Hand out what may be sent now; return the seconds until there may be more."""
        self._look()
        taken = self._berths.taken()
        seats = self._deal(taken)
        if not seats:
            return self._until_there_is_room() if self._rates else LOOK_SECONDS
        permits = self._pacing.reserve({name: (self._rates[name], count) for name, count in seats.items()})
        granted = {name: each.count for name, each in permits.items() if each.count}
        if granted:
            self._hand_out(granted, permits)
        if self._rates and granted == seats:
            return self._until_there_is_room()
        return self._rest(permits)

    def _look(self) -> None:
        """Learn who has something to send: everybody once a second, in between only those that were told of.

        Whose rate is known need not be looked up; if it is held by now, its rows stay where they are.
        """
        with self._lock:
            told, self._arrived = self._arrived, set()
        self._rates |= {name: self._known[name] for name in told & self._known.keys()}
        told -= self._rates.keys()
        complete = time.monotonic() - self._looked_at >= LOOK_SECONDS
        if not complete and not told:
            return
        with reading(self._ledger).connect() as connection:
            found = turns.senders(connection, None if complete else sorted(told))
        self._vitals.answered(LEDGER)
        known = {each.connection_id: self._rate(each) for each in found if not each.probing}
        self._rates = known if complete else self._rates | known
        self._known |= known
        if complete:
            if time.monotonic() - self._learnt_at >= KNOWN_SECONDS:
                self._learnt_at, self._known = time.monotonic(), known
            self._looked_at = time.monotonic()
            self._sent = {name: counts for name, counts in self._sent.items() if name in known}
            if probing := {each.connection_id: self._rate(each) for each in found if each.probing}:
                self._send_probes(probing)

    def _deal(self, taken: Counter[str]) -> dict[str, int]:
        order = rotated(self._rates, self._last)
        capacity = self._berths.capacity
        free = max(0, capacity - taken.total())
        if not free:
            return {}
        contenders = len(self._rates.keys() | taken.keys())
        # Who has nothing in flight is served first, from the reserve if need be.
        first = deal(free, [(name, 1) for name in order if not taken[name]])
        rest = max(0, free - len(first) - reserved(capacity))
        more = [(name, most_for(taken[name], free, capacity, contenders) - first.get(name, 0)) for name in order]
        for name, count in deal(rest, more).items():
            first[name] = first.get(name, 0) + count
        return first

    def _hand_out(self, granted: dict[str, int], permits: dict[str, Permits]) -> None:
        by_age = {
            name: old
            for name, count in granted.items()
            if (old := for_the_longest_waiting(*self._sent.get(name, (0, 0)), count))
        }
        with self._ledger.begin() if by_age else one_statement(self._ledger) as connection:
            queued = turns.queue(connection, granted, self._owner, QUEUED_LEASE_SECONDS, longest_waiting=by_age)
        self._last = next(reversed(granted))
        self._send(
            {
                row.id: (name, self._permit(permits[name], number))
                for name, rows in queued.items()
                for number, row in enumerate(rows)
            }
        )
        for name, count in granted.items():
            found = len(queued.get(name, []))
            sent, old = self._sent.get(name, (0, 0))
            self._sent[name] = (sent + found, old + by_age.get(name, 0))
            if found < count:
                self._rates.pop(name, None)  # until it is told of again, or the next look
                self._pacing.give_back(name, permits[name], count - found)

    def _permit(self, permits: Permits, number: int) -> Permit:
        return Permit(permits.moment(number), 1 / (permits.interval * SHARE), permits.saturated)

    def _rate(self, sender: Sender) -> float:
        return sender.writes_per_second or self._usual_rate

    def _send_probes(self, rates: dict[str, float]) -> None:
        """Send one job of each held connection whose hold may be over."""
        with self._ledger.begin() as connection:
            probes = dict.fromkeys(holds.claim_probes(connection), 1)
            queued = turns.queue(connection, probes, self._owner, QUEUED_LEASE_SECONDS, probes=True)
        # A probe takes a permit as any request does: right behind it the backlog may begin.
        permits = self._pacing.reserve({name: (rates.get(name, self._usual_rate), 1) for name in queued})
        for name, rows in queued.items():
            log.info("connection.probed", connection_id=name, id=rows[0].id)
        self._send({rows[0].id: (name, self._permit(permits[name], 0)) for name, rows in queued.items()})

    def _send(self, given: dict[str, tuple[str, Permit | None]]) -> None:
        ids = sorted(given, key=lambda each: permit.moment if (permit := given[each][1]) else 0.0)
        self._berths.hand_out(given, QUEUED_LEASE_SECONDS)
        for start in range(0, len(ids), MAX_BATCH):
            try:
                self._publish(ids[start : start + MAX_BATCH])
            except Exception:
                # Nothing of this is on its way. Should it be after all, the claim's guard drops it.
                self._berths.forget(ids[start:])
                with self._ledger.begin() as connection:
                    turns.hand_back(connection, ids[start:], self._owner)
                raise
            self._vitals.handed()

    def _until_there_is_room(self) -> float:
        self._berths.tell_when_free(max(1, min(self._berths.capacity // GULP_PART, GULP_MOST)), self._wake)
        return FULL_SECONDS

    def _rest(self, permits: dict[str, Permits]) -> float:
        # Half of what is given ahead is used up then: time enough for the next permits to get to their threads.
        now, ahead = time.monotonic(), LOOKAHEAD_SECONDS / 2
        times = [each.end - ahead - now for name, each in permits.items() if name in self._rates]
        soonest = max(LEAST_REST_SECONDS, min(times, default=LOOK_SECONDS))
        # Who got no seat this time waits for room, not for a permit.
        crowded = len(permits) < len(self._rates)
        return min(soonest, FULL_SECONDS if crowded else LOOK_SECONDS)
