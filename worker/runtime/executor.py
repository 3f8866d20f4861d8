"""Runs attempts on the request threads of this process, and alone knows what the process has in hand.

A claim is in hand from its reservation (it was claimed, its message to this worker is on its way) until its result is
recorded. Knows threads and claims; what an attempt does, `attempt` knows, and whose turn it is, the dispatcher.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from worker.ledger.claims import AttemptClaim, Claim, ConfirmClaim, Lease, RefusalClaim, SendClaim
from worker.runtime.attempt import LedgerClock, attempt, batches_of_reads, confirm, give_back, read_refused, rescue
from worker.runtime.request_threads import RequestThreads
from worker.telemetry.sentry import report_bug
from worker.trackstar.pacing import SendSlot

if TYPE_CHECKING:
    from worker.cancellation.lifecycle import Transition
    from worker.ledger.results import AttemptResult, Result
    from worker.runtime.attempt import AttemptContext

log = structlog.get_logger()

IDLE_SECONDS = 20.0  # after so long without a publish there is no telling whether anybody consumes
# So many of the threads (a fraction) read back what has ended, at most: reads that hang may not delay a cancel.
READ_BACK_FRACTION = 2


class Send(msgspec.Struct, frozen=True):
    """One claim that is to be attempted."""

    claim: AttemptClaim
    asked_at: float  # monotonic, just before the claim's statement: its lease is counted from here
    slot: SendSlot  # its place in its connection's pace

    @property
    def clock(self) -> LedgerClock:
        return LedgerClock(self.claim.claimed_at, self.asked_at)


class Subscriber(Protocol):
    """Who follows each cancellation, such as Flower."""

    def claimed(self, claims: Iterable[AttemptClaim]) -> None: ...
    def decided(
        self, record_id: str, transition: Transition, *, runtime: float = 0.0, order: tuple[str, str] | None = None
    ) -> None: ...


class Executor:
    """The request threads, and every claim that this process has in hand."""

    def __init__(
        self,
        threads: int,
        context: AttemptContext,
        record: Callable[[Result], None],
        subscriber: Subscriber,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.threads = 0  # until `start`
        self._threads_wanted = threads
        self._context = context
        self._record = record
        self._subscriber = subscriber
        self._clock = clock
        self._requests = RequestThreads()
        self._changed = threading.Condition()
        self._reserved: dict[str, tuple[Send, float]] = {}  # by record id, with the time until which it is kept
        self._running: Counter[str] = Counter()  # by connection
        self._started: dict[str, tuple[AttemptClaim, float]] = {}  # the same, by record id, with their time of day
        self._in_hand: set[Lease] = set()
        self._to_read_back: deque[tuple[list[ConfirmClaim], LedgerClock]] = deque()
        self._reading_back = 0  # threads
        self._reserved_at = float("-inf")
        self._unconsumed_since: float | None = None
        self.released_at = float("-inf")  # when a thread was given back last, by the clock
        self._wanted: tuple[int, Callable[[], None]] | None = None

    def start(self) -> None:
        """Start the request threads. Raises RuntimeError where the system allows not a single one."""
        self.threads = self._requests.start(self._threads_wanted)

    # -- what the dispatcher asks and says

    @property
    def threads_for_cancels(self) -> int:
        """How many threads read nothing back."""
        return max(1, self.threads - self._reading_back)

    def in_use(self) -> Counter[str]:
        """Return how many threads each connection has, or is about to have."""
        with self._changed:
            return self._running + Counter(send.claim.connection_id for send, _ in self._reserved.values())

    def notify_when_free(self, threads: int, notify: Callable[[], None]) -> None:
        """Call this, once, when so many threads are nobody's."""
        with self._changed:
            self._wanted = (threads, notify)

    def reserve(self, sends: Sequence[Send], seconds: float) -> None:
        """Keep threads for these claims, whose message is about to be published, for so many seconds."""
        now = self._clock()
        with self._changed:
            for send in sends:
                self._reserved[send.claim.id] = (send, now + seconds)
                self._in_hand.add(send.claim.lease)
            if self._unconsumed_since is None or now - self._reserved_at > IDLE_SECONDS:
                self._unconsumed_since = now
            self._reserved_at = now

    def expire(self, ids: Iterable[str]) -> None:
        """Note that the message with these ids could not be published."""
        with self._changed:
            for record_id in ids:
                if reserved := self._reserved.get(record_id):
                    self._reserved[record_id] = (reserved[0], float("-inf"))

    def take_unconsumed(self, *, all_of_them: bool = False) -> list[Lease]:
        """Take out the reservations whose message has not come in time (or all); it finds nothing if it comes later.

        They stay in hand until `forget`: whoever takes them gives their claims back to the ledger first.
        """
        now = self._clock()
        with self._changed:
            lost = [each for each, (_, until) in self._reserved.items() if all_of_them or until < now]
            return [self._reserved.pop(record_id)[0].claim.lease for record_id in lost]

    def unconsumed_seconds(self) -> float:
        """Return for how long messages have been published while none was consumed; 0 when all is well."""
        now, since = self._clock(), self._unconsumed_since
        if since is None or now - self._reserved_at > IDLE_SECONDS:
            return 0.0
        return now - since

    # -- what Celery says

    def run(self, ids: Iterable[str]) -> None:
        """Attempt what was reserved under these ids; returns as soon as all is handed to threads.

        Ids that are not reserved are dropped: their message came too late, or was not ours. So is what is no id:
        whoever may write to the list of this worker could put anything between two ids that are reserved.
        """
        with self._changed:
            self._unconsumed_since = None
            sends = [self._reserved.pop(each)[0] for each in ids if isinstance(each, str) and each in self._reserved]
            self._running.update(send.claim.connection_id for send in sends)
            now = time.time()
            self._started.update((send.claim.id, (send.claim, now)) for send in sends)
        self._subscriber.claimed([send.claim for send in sends])
        clocks = {send.claim.id: send.clock for send in sends}
        for batch in batches_of_reads([send.claim for send in sends if isinstance(send.claim, RefusalClaim)]):
            self._requests.submit(self._read_refused, batch, clocks[batch[0].id])
        for send in sends:
            if isinstance(send.claim, SendClaim):
                self._requests.submit(self._attempt, send.claim, clocks[send.claim.id], send.slot)

    # -- what people ask

    def running(self) -> list[tuple[AttemptClaim, float]]:
        """Return what is on a request thread, each with the Unix time at which it was handed to one."""
        with self._changed:
            return list(self._started.values())

    def reserved(self) -> list[AttemptClaim]:
        """Return what is claimed and whose message to this worker is on its way."""
        with self._changed:
            return [send.claim for send, _ in self._reserved.values()]

    # -- what the housekeeper says

    def confirm(self, due: Sequence[ConfirmClaim]) -> None:
        """Read back what has ended; what gets no thread in time is left out: its next time stands in the ledger."""
        clock = LedgerClock(due[0].claimed_at, time.monotonic())
        with self._changed:
            self._to_read_back.extend((batch, clock) for batch in batches_of_reads(due))
            self._read_back_more()

    def _read_back_more(self) -> None:
        """Hand what waits to threads, as far as it may have them; the lock is held."""
        while self._to_read_back and self._to_read_back[0][1].elapsed() > self._context.start_within:
            self._to_read_back.popleft()
        while self._to_read_back and self._reading_back < max(1, self.threads // READ_BACK_FRACTION):
            batch, clock = self._to_read_back.popleft()
            self._reading_back += 1
            self._requests.submit(self._confirm, batch, clock)

    def rescue(self, lost: Iterable[AttemptClaim]) -> None:
        """Decide about claims whose lease has ended, but for those that are in hand: their answer comes."""
        for claim in lost:
            if claim.lease in self._in_hand:
                continue  # as after a pause of this process, or while the ledger was away
            log.warning("cancellation.rescued", **claim.named)
            self._record(rescue(claim, self._context))

    # -- the end of a claim, and of the process

    def forget(self, leases: Iterable[Lease]) -> None:
        """Note that these are no longer in hand: their results are recorded, or their claims were given back."""
        with self._changed:
            self._in_hand.difference_update(leases)

    def drain(self) -> None:
        """Wait until nothing is running, and end the threads. Who waits long for a send slot gives its claim back."""
        self._context.pace.end_waiting()
        with self._changed:
            self._to_read_back.clear()
            self._changed.wait_for(lambda: not self._running)
        self._requests.shutdown()

    # -- on the request threads

    def _attempt(self, claim: SendClaim, clock: LedgerClock, slot: SendSlot) -> None:
        def when_its_slot_comes() -> list[AttemptResult]:
            until = clock.monotonic + self._context.start_within
            in_time = self._context.pace.wait_to_write(claim.connection_id, slot, until)
            one = attempt if in_time else give_back
            return [one(claim, clock, self._context)]

        self._run_batch([claim], when_its_slot_comes)

    def _read_refused(self, batch: list[RefusalClaim], clock: LedgerClock) -> None:
        self._run_batch(batch, lambda: read_refused(batch, clock, self._context))

    def _run_batch(self, batch: Sequence[AttemptClaim], work: Callable[[], list[AttemptResult]]) -> None:
        try:
            for result in work():
                self._record(result)
        except Exception:  # noqa: BLE001
            # A bug: the claim's lease ends, and the rescue takes it from there as in doubt.
            self.forget(claim.lease for claim in batch)
            report_bug("cancellation.attempt_failed", **_named(batch))
        finally:
            self._release(batch)

    def _confirm(self, batch: list[ConfirmClaim], clock: LedgerClock) -> None:
        try:
            for result in confirm(batch, clock, self._context):
                self._record(result)
        except Exception:  # noqa: BLE001 - a bug: its next time stands in the ledger already
            report_bug("cancellation.read_back_failed", **_named(batch))
        finally:
            with self._changed:
                self._reading_back -= 1
                self._read_back_more()
                self._notify_if_free()

    def _release(self, batch: Sequence[AttemptClaim]) -> None:
        with self._changed:
            self.released_at = self._clock()
            for claim in batch:
                self._started.pop(claim.id, None)
                self._running[claim.connection_id] -= 1
                if not self._running[claim.connection_id]:
                    del self._running[claim.connection_id]
            self._changed.notify_all()
            self._notify_if_free()

    def _notify_if_free(self) -> None:
        """Call who waits for threads, if there are so many; the lock is held."""
        free = self.threads_for_cancels - self._running.total() - len(self._reserved)
        if self._wanted and free >= self._wanted[0]:
            self._wanted[1]()
            self._wanted = None


def _named(batch: Sequence[Claim]) -> dict[str, Any]:
    """Say which cancellations these are: all of one connection."""
    traces = [claim.traceparent for claim in batch if claim.traceparent]
    which = {"connection_id": batch[0].connection_id, "ids": [claim.id for claim in batch]}
    return {**which, "traceparents": traces} if traces else which
