"""Who has the request threads of this process: what was handed out to it, and what is in flight. Counts, no rules.

With what was handed out it keeps the permit to send it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from worker.trackstar.pacing import Permit


class _Handed(msgspec.Struct):
    connection_id: str
    permit: Permit | None
    until: float


class Berths:
    """Counts threads by connection."""

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self._clock = clock
        self._handed: dict[str, _Handed] = {}
        self._in_flight: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._wanted: tuple[int, threading.Event] | None = None

    def hand_out(self, permits: Mapping[str, tuple[str, Permit | None]], seconds: float) -> None:
        """Note jobs, (connection, permit) by id, that are on their way here; forgotten unless claimed in time."""
        until = self._clock() + seconds
        with self._changed:
            for record_id, (connection_id, permit) in permits.items():
                self._handed[record_id] = _Handed(connection_id, permit, until)

    def forget(self, ids: Iterable[str]) -> None:
        """Note that these will not come, or were not ours any more."""
        with self._changed:
            for record_id in ids:
                self._handed.pop(record_id, None)

    def board(self, record_id: str, connection_id: str) -> Permit | None:
        """Note that a job was claimed and is in flight from now on; return its permit, None where none is known."""
        with self._changed:
            handed = self._handed.pop(record_id, None)
            self._in_flight[connection_id] += 1
            return handed.permit if handed else None

    def leave(self, connection_id: str) -> None:
        with self._changed:
            self._in_flight[connection_id] -= 1
            if not self._in_flight[connection_id]:
                del self._in_flight[connection_id]
            self._changed.notify_all()
            if self._wanted and self._free() >= self._wanted[0]:
                self._wanted[1].set()
                self._wanted = None

    def tell_when_free(self, threads: int, event: threading.Event) -> None:
        """Set this event, once, when so many threads are nobody's."""
        with self._changed:
            self._wanted = (threads, event)

    def _free(self) -> int:
        return self.capacity - self._in_flight.total() - len(self._handed)

    def taken(self) -> Counter[str]:
        """Return how many threads each connection has, or is about to have."""
        now = self._clock()
        with self._changed:
            for record_id in [each for each, handed in self._handed.items() if handed.until < now]:
                del self._handed[record_id]  # its message was lost, and its row goes back by itself
            return self._in_flight + Counter(handed.connection_id for handed in self._handed.values())

    def wait_until_empty(self) -> None:
        """Wait until nothing is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight)
