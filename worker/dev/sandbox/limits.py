"""Trackstar's limit on one token, in a sliding one-second window. Time comes in as an argument."""

import math
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one token sent: all requests, those refused with 429 by the limit, and the fullest sliding second."""

    writes: int
    writes_refused: int
    peak_writes: int
    reads: int
    reads_refused: int
    peak_reads: int


class Budget:
    """Counts every arrival; lets through at most `limit` in any sliding second (None: all of them)."""

    __slots__ = ("_accepted", "_arrived", "limit", "peak", "refused", "total")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.total = 0
        self.refused = 0
        self.peak = 0
        self._accepted: deque[float] = deque()
        self._arrived: deque[float] = deque()

    def take(self, now: float) -> bool:
        _forget(self._accepted, now)
        _forget(self._arrived, now)
        self._arrived.append(now)
        self.total += 1
        self.peak = max(self.peak, len(self._arrived))
        # A refused request spends nothing, or a client that knocks on would never get through.
        if self.limit is not None and len(self._accepted) >= self.limit:
            self.refused += 1
            return False
        if self.limit is not None:
            self._accepted.append(now)
        return True

    def headers(self, now: float) -> tuple[tuple[str, str], ...]:
        if self.limit is None:
            return ()
        oldest = self._accepted[0] if self._accepted else now
        return (
            ("x-ratelimit-limit", str(self.limit)),
            ("x-ratelimit-remaining", str(self.limit - len(self._accepted))),
            ("x-ratelimit-reset", str(math.ceil(oldest + WINDOW_SECONDS))),
        )

    def retry_after(self, now: float) -> str:
        oldest = self._accepted[0] if self._accepted else now
        return str(max(1, math.ceil(oldest + WINDOW_SECONDS - now)))


def _forget(times: deque[float], now: float) -> None:
    while times and times[0] <= now - WINDOW_SECONDS:
        times.popleft()
