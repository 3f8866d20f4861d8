"""How fast: when the next requests of one connection may leave. Numbers only; seconds in, seconds out.

Each permit is a moment of its own, evenly spaced, and a backlog takes its permits a little ahead of their time. So no
capacity is lost while a job travels to its thread, and none arrives in a bunch that a sliding window would refuse.
`trackstar/pacing` runs the same arithmetic inside Redis, where all workers share it.
"""

from __future__ import annotations

import math

import msgspec

# Trackstar's limits for one access token.
DOCUMENTED_WRITES_PER_SECOND = 50.0
DOCUMENTED_READS_PER_SECOND = 10.0
# Of the limit. What is left absorbs jitter: with 50/s, 51 requests then span 1.02 s.
SHARE = 0.98
# How far ahead permits are given. It covers the way to a request thread, and is short for an urgent cancel.
LOOKAHEAD_SECONDS = 0.1


class Grant(msgspec.Struct, frozen=True):
    """Permits: the first moment, the distance between two, and how many."""

    first: float
    interval: float
    count: int

    @property
    def end(self) -> float:
        """The first moment that is still free."""
        return self.first + self.count * self.interval

    def moment(self, number: int) -> float:
        return self.first + number * self.interval


def interval(rate: float) -> float:
    """Return the seconds between two requests at `rate` per second."""
    return 1.0 / (rate * SHARE)


def reserve(free_from: float, now: float, rate: float, wanted: int, lookahead: float = LOOKAHEAD_SECONDS) -> Grant:
    """Give up to `wanted` permits from the first free moment on, none of them further ahead than `lookahead`."""
    step = interval(rate)
    first = max(free_from, now)
    ahead = now + lookahead - first
    return Grant(first, step, min(wanted, math.floor(ahead / step) + 1) if ahead >= 0 else 0)


def seconds_to_send(place: int, rate: float) -> float:
    """Return how long the job with `place` others before it waits while its connection sends at its pace."""
    return place * interval(rate)
