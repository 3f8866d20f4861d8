"""How fast: when the next requests of one connection may leave. Numbers only; seconds in, seconds out.

Each request has a send slot: a moment of its own, evenly spaced, reserved a little ahead. So no capacity is lost while
a job travels to its thread, and none arrives in a bunch that a sliding window would refuse.
`trackstar/pacing` runs the same arithmetic inside Redis, where all workers share it.
"""

from __future__ import annotations

import math

import msgspec

# Trackstar's limits for one access token.
DOCUMENTED_WRITES_PER_SECOND = 50.0
DOCUMENTED_READS_PER_SECOND = 10.0
# Of the limit. What is left absorbs jitter: with 50/s, 51 requests then span 1.02 s.
TARGET_UTILISATION = 0.98
# The longest time for which a server's word pauses a connection without a hold, which people can see and end.
LONGEST_PAUSE_SECONDS = 60.0
MIN_PAUSE_SECONDS = 1.0  # after a 429 without a `retry-after`: the window of the documented limit
# How far ahead send slots are reserved. It covers the way to a request thread, and is short for an urgent cancel.
LOOKAHEAD_SECONDS = 0.1


class Reservation(msgspec.Struct, frozen=True):
    """Send slots: the first moment, the seconds between two, and how many."""

    first: float
    interval: float
    count: int

    @property
    def end(self) -> float:
        """The first moment that is not reserved."""
        return self.first + self.count * self.interval

    def send_at(self, number: int) -> float:
        return self.first + number * self.interval


def interval(rate: float) -> float:
    """Return the seconds between two requests at `rate` per second."""
    return 1.0 / (rate * TARGET_UTILISATION)


def reserve(
    free_from: float, now: float, rate: float, wanted: int, lookahead: float = LOOKAHEAD_SECONDS
) -> Reservation:
    """Reserve up to `wanted` send slots from the first free moment on, none further ahead than `lookahead`."""
    step = interval(rate)
    first = max(free_from, now)
    ahead = now + lookahead - first
    return Reservation(first, step, min(wanted, math.floor(ahead / step) + 1) if ahead >= 0 else 0)


def is_long(retry_after: float | None) -> bool:
    """Whether a server asks for a pause of writes so long that its connection is held for it."""
    return (retry_after or 0.0) > LONGEST_PAUSE_SECONDS


def pause_of_writes(retry_after: float | None) -> float:
    """Return how many seconds nobody sends after a 429; beside a hold, only until that is written."""
    return MIN_PAUSE_SECONDS if is_long(retry_after) else max(retry_after or 0.0, MIN_PAUSE_SECONDS)


def pause_of_reads(retry_after: float | None) -> float:
    """Return how many seconds nobody reads after a 429 to a read. Writes go on, so no hold: it is clamped instead."""
    return min(max(retry_after or 0.0, MIN_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)


def seconds_to_send(place: int, rate: float) -> float:
    """Return how long the job with `place` others before it waits while its connection sends at its pace."""
    return place * interval(rate)
