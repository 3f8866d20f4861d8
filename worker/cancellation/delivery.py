"""When an event is tried again or set aside, and when an endpoint is failing. Pure: no clock, no dice, no network.

An event has a schedule of its own. An endpoint fails while no event reaches it: the steps of the same schedule, passed
one after another without any success, are its consecutive failures. So a minute without the receiver is a failure or
two, however many events met it, and one event that is always refused makes no failing endpoint of one that takes all
others.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

# Seconds after each failed try: three days in all.
SCHEDULE = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
JITTER = 0.25  # of a wait, up or down: events that failed together do not come back together
COUNTED_AFTER = 0.7  # of a step: below the shortest wait that jitter makes of it
MAX_RETRY_AFTER = 3600.0
MAX_GAP = 30.0  # between two tries of a failing endpoint, whatever its events
LEVELS = (50, 70, 90, 100)  # percent of the limit, told when they are reached
RECOVERED_FROM = 3  # steps; then what is scheduled for later is sent at once
OVERLOADED = frozenset({429, 503})
GONE = 410


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one try. `reason` is one of our own words."""

    reason: str
    seconds: float
    status: int | None = None  # of HTTP, where an answer came
    retry_after: float | None = None  # what the receiver asked for
    said: bytes = b""  # the beginning of the body, for a person who tries it; kept nowhere

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004

    @property
    def asked_wait(self) -> float:
        """Seconds for which the receiver wants to be left alone."""
        return min(self.retry_after or 0.0, MAX_RETRY_AFTER) if self.status in OVERLOADED else 0.0


class Standing(msgspec.Struct, frozen=True):
    """How an endpoint stands."""

    failures: int = 0  # consecutive
    since: datetime | None = None  # the first of them
    counted_at: datetime | None = None  # the last
    told: int = 0  # the level that was told last


class Rules(msgspec.Struct, frozen=True):
    """The schedule, and what follows from it."""

    waits: tuple[float, ...] = SCHEDULE

    @property
    def limit(self) -> int:
        """Tries of an event, and consecutive failures of an endpoint, until no more is tried by itself."""
        return len(self.waits) + 1

    def wait(self, failed: int, tried: Tried, dice: float) -> float | None:
        """Return the seconds until an event is tried again after `failed` tries (1 or more); None: never by itself.

        `dice` is uniform in [0, 1).
        """
        if failed >= self.limit:
            return None
        own = self.waits[failed - 1] * (1 + JITTER * (2 * dice - 1))
        return max(own, tried.asked_wait * (1 + JITTER * dice))

    def gap(self, standing: Standing, tried: Tried) -> float:
        """Return the seconds until an endpoint is tried at all after a failure."""
        step = self.waits[0] / 10 * 2.0 ** min(standing.failures - 1, len(self.waits))
        return max(min(step, MAX_GAP), tried.asked_wait)

    def after_failure(self, before: Standing, at: datetime) -> Standing:
        """Return how an endpoint stands after a failed try; failures within one step count once."""
        if before.counted_at is not None:
            step = self.waits[min(before.failures, len(self.waits)) - 1] * COUNTED_AFTER
            if at - before.counted_at < timedelta(seconds=step):
                return before
        failures = min(before.failures + 1, self.limit)
        return Standing(failures, before.since or at, at, before.told)

    def level(self, standing: Standing) -> int | None:
        """Return the level that is to be told now; None where none was reached since the last one."""
        reached = [each for each in LEVELS if standing.failures * 100 >= each * self.limit]
        return reached[-1] if reached and reached[-1] > standing.told else None
