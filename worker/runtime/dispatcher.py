"""Ledger to Celery: claims what may be sent now and hands it to this worker. Any number of workers run; no leader.

    demand → fairness → pace → claim → reserve a thread → publish

Each worker takes as much as it has threads for; what nobody has room for stays in the ledger. Knows who is ready, send
slots and how to publish ids; does not know what an attempt is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import structlog
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.fairness import aging_quota, fair_limit, reserve_size, round_robin, round_robin_order
from worker.cancellation.pace import LOOKAHEAD_SECONDS
from worker.ledger import holds
from worker.ledger.database import autocommit
from worker.ledger.transitions import claim_next, claim_shares, release_unsent
from worker.runtime.demand import FULL_SCAN_SECONDS, Demand
from worker.runtime.executor import Send
from worker.runtime.loop import Loop
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.ledger.claims import AttemptClaim, Lease
    from worker.runtime.executor import Executor
    from worker.telemetry.health import Vitals
    from worker.trackstar.pacing import Pacing, SlotReservation

log = structlog.get_logger()

MAX_BATCH = 256  # ids in one Celery message; a message itself costs as much as handling a dozen ids
# A message that was not consumed for so long is taken for lost, and its claims are given back.
CONSUME_WITHIN_SECONDS = 10.0
# A message costs the same for 1 id as for 32: a worker without room waits until so many threads are free (a fraction
# of all, or that many), or for so long.
REFILL_FRACTION, REFILL_MAX = 4, 32
FULL_SECONDS = 0.05
MIN_REST_SECONDS = 0.005


class Dispatcher:
    """One thread that hands out what may be sent now."""

    def __init__(
        self,
        ledger: Engine,
        owner: str,
        lease_seconds: float,
        start_within: float,
        pacing: Pacing,
        default_rate: float,
        executor: Executor,
        publish: Callable[[Sequence[str]], None],
        vitals: Vitals,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._ledger = ledger
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._consume_within = min(CONSUME_WITHIN_SECONDS, start_within)
        self._pacing = pacing
        self._default_rate = default_rate
        self._executor = executor
        self._publish = publish
        self._demand = Demand(ledger, default_rate, vitals)
        self._sent: dict[str, tuple[int, int]] = {}  # of each connection: in all, and by age
        self._last: str | None = None  # the connection that was served last
        self._to_release: list[Lease] = []
        self.loop = Loop("dispatcher", self.tick, expected=(SQLAlchemyError, RedisError, OSError))

    def arrived(self, connection_ids: Iterable[str]) -> None:
        """Look now: these connections have something new to send."""
        self._demand.arrived(connection_ids)
        self.loop.wake()

    def stop(self) -> None:
        """Hand out nothing more, and give back what was not consumed."""
        if not self.loop.stop(10):
            return  # it hangs in the ledger, and so would this: the leases end by themselves
        try:
            self._give_back_unconsumed(all_of_them=True)
        except SQLAlchemyError as error:
            log.warning("dispatcher.not_given_back", error=type(error).__name__)  # their leases end by themselves

    def tick(self) -> float:
        """Hand out what may be sent now; return the seconds until there may be more."""
        self._give_back_unconsumed()
        if probing := self._demand.refresh():
            self._hand_out_probes(probing)
        rates = self._demand.rates
        wanted = self._divide_threads(rates)
        if not wanted:
            return self._until_there_is_room() if rates else FULL_SCAN_SECONDS
        slots = self._pacing.reserve({name: (rates[name], count) for name, count in wanted.items()})
        granted = {name: each.count for name, each in slots.items() if each.count}
        if granted:
            self._claim_and_hand_out(granted, slots)
        if rates and granted == wanted:
            return self._until_there_is_room()
        return self._until_the_next_slot(slots)

    def _divide_threads(self, rates: dict[str, float]) -> dict[str, int]:
        """Say how many of the free threads each connection may take now."""
        in_use = self._executor.in_use()
        threads = self._executor.threads_for_cancels
        free = max(0, threads - in_use.total())
        if not free:
            return {}
        order = round_robin_order(rates, self._last)
        contenders = len(rates.keys() | in_use.keys())
        # Who has nothing in flight is served first, from the reserve if need be.
        shares = round_robin(free, [(name, 1) for name in order if not in_use[name]])
        rest = max(0, free - len(shares) - reserve_size(threads))
        more = [(name, fair_limit(in_use[name], free, threads, contenders) - shares.get(name, 0)) for name in order]
        for name, count in round_robin(rest, more).items():
            shares[name] = shares.get(name, 0) + count
        return shares

    def _claim_and_hand_out(self, granted: dict[str, int], slots: dict[str, SlotReservation]) -> None:
        aged = {
            name: old for name, count in granted.items() if (old := aging_quota(*self._sent.get(name, (0, 0)), count))
        }
        claimed, asked_at = claim_shares(self._ledger, granted, self._owner, self._lease_seconds, aged)
        self._last = next(reversed(granted))
        self._hand_out(claimed, slots, asked_at)
        for name, count in granted.items():
            found = len(claimed.get(name, []))
            sent, old = self._sent.get(name, (0, 0))
            self._sent[name] = (sent + found, old + aged.get(name, 0))
            if found < count:
                self._demand.served(name)
                self._pacing.return_unused(name, slots[name], count - found)

    def _hand_out_probes(self, rates: dict[str, float]) -> None:
        """Hand out one job of each held connection whose hold may be over."""
        with self._ledger.begin() as db:
            asked_at = time.monotonic()
            due = dict.fromkeys(holds.claim_probes(db), 1)
            claimed = claim_next(db, due, self._owner, self._lease_seconds, probes=True)
        # A probe takes a send slot as any request does: right behind it the backlog may begin. Without one nothing is
        # sent: the next tick gives its claim back.
        try:
            slots = self._pacing.reserve({name: (rates.get(name, self._default_rate), 1) for name in claimed})
        except RedisError:
            self._to_release += _leases(claimed.values())
            raise
        self._to_release += _leases(claims for name, claims in claimed.items() if not slots[name].count)
        probes = {name: claims for name, claims in claimed.items() if slots[name].count}
        for claim, *_ in probes.values():
            log.info("connection.probed", **claim.named)
        self._hand_out(probes, slots, asked_at)

    def _hand_out(
        self, claimed: dict[str, list[AttemptClaim]], slots: dict[str, SlotReservation], asked_at: float
    ) -> None:
        sends = sorted(
            (
                Send(claim, asked_at, slots[name].slot(number))
                for name, claims in claimed.items()
                for number, claim in enumerate(claims)
            ),
            key=lambda send: send.slot.send_at,
        )
        self._executor.reserve(sends, self._consume_within)
        ids = [send.claim.id for send in sends]
        if ids:
            self._metrics.claim_batch.observe(len(ids))
            self._metrics.slots_used("write", len(ids))
        for start in range(0, len(ids), MAX_BATCH):
            try:
                self._publish(ids[start : start + MAX_BATCH])
            except Exception:
                # They go back in the next tick. Should the message come after all, it finds nothing.
                self._executor.expire(ids[start:])
                raise

    def _give_back_unconsumed(self, *, all_of_them: bool = False) -> None:
        self._to_release += self._executor.take_unconsumed(all_of_them=all_of_them)
        if not self._to_release:
            return
        with autocommit(self._ledger) as db:
            connection_ids = release_unsent(db, self._to_release)
        self._metrics.interrupted.inc(len(self._to_release))
        log.warning("dispatcher.given_back", count=len(self._to_release))
        self._executor.forget(self._to_release)
        self._to_release = []
        self._demand.arrived(connection_ids)

    def _until_there_is_room(self) -> float:
        refill = max(1, min(self._executor.threads // REFILL_FRACTION, REFILL_MAX))
        self._executor.notify_when_free(refill, self.loop.wake)
        return FULL_SECONDS

    def _until_the_next_slot(self, slots: dict[str, SlotReservation]) -> float:
        rates = self._demand.rates
        # Half of what is reserved ahead is used up then: time enough for the next slots to get to their threads.
        now, ahead = time.monotonic(), LOOKAHEAD_SECONDS / 2
        times = [each.end - ahead - now for name, each in slots.items() if name in rates]
        soonest = max(MIN_REST_SECONDS, min(times, default=FULL_SCAN_SECONDS))
        # Who got no thread this time waits for room, not for a slot.
        crowded = len(slots) < len(rates)
        return min(soonest, FULL_SECONDS if crowded else FULL_SCAN_SECONDS)


def _leases(groups: Iterable[Sequence[AttemptClaim]]) -> list[Lease]:
    return [claim.lease for claims in groups for claim in claims]
