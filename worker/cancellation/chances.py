"""What chance a cancel has, from outcomes: shares by the order's age and by the hour (UTC), with honest bounds.

Knows counts and the rule by which a chance is small; not where the counts come from. Pure.
"""

from __future__ import annotations

import math
from datetime import datetime
from functools import reduce
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Ages of an order when its cancel was first sent, in seconds: below the first, from the first to the second ...
AGE_EDGES = (900, 3_600, 4 * 3_600, 12 * 3_600, 86_400, 3 * 86_400)
# An order that is younger than this says that a clock or its offset is wrong: its age is not known.
MIN_AGE_SECONDS = -300
HOURS = 24

Z = 1.96  # of a confidence of 95 %
# A chance is small where at most this share can be hoped for, and so many cancels say so.
SMALL_SHARE = 0.25
MIN_TRIALS = 20


def wilson(successes: int, trials: int, z: float = Z) -> tuple[float, float]:
    """Return the bounds between which the true share lies (Wilson's score interval); 0 and 1 without a trial."""
    if trials <= 0:
        return 0.0, 1.0
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    margin = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    # Rounding may lead past the ends, where nothing is left to doubt on that side.
    low = 0.0 if successes == 0 else max(0.0, centre - margin)
    return low, 1.0 if successes == trials else min(1.0, centre + margin)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some cancels. `undecided`: not known yet, and no trial."""

    succeeded: int = 0
    failed: int = 0
    undecided: int = 0
    last_success: datetime | None = None  # when the newest one was sent that succeeded

    def __add__(self, other: Tally) -> Tally:
        known = [each for each in (self.last_success, other.last_success) if each]
        return Tally(
            succeeded=self.succeeded + other.succeeded,
            failed=self.failed + other.failed,
            undecided=self.undecided + other.undecided,
            last_success=max(known, default=None),
        )

    @property
    def trials(self) -> int:
        return self.succeeded + self.failed

    @property
    def bounds(self) -> tuple[float, float]:
        return wilson(self.succeeded, self.trials)

    @property
    def small(self) -> bool:
        """Whether a cancel has a small chance: the best that these outcomes allow is below SMALL_SHARE."""
        return self.trials >= MIN_TRIALS and self.bounds[1] < SMALL_SHARE


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The outcomes of one warehouse system, of orders of one range of ages, in one hour of the day."""

    system: str | None  # None: its connections do not say it
    age: int | None  # the number of AGE_EDGES that it has reached; None where it is not known
    hour: int  # UTC, in which the cancel was first sent
    tally: Tally


def total(cells: Iterable[Cell]) -> Tally:
    return reduce(Tally.__add__, (cell.tally for cell in cells), Tally())


def by_system(cells: Iterable[Cell]) -> dict[str | None, list[Cell]]:
    """Return the cells of each system, those with a name first and in order."""
    found: dict[str | None, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.system is None, cell.system or "")):
        found.setdefault(cell.system, []).append(cell)
    return found


def by_age(cells: Iterable[Cell]) -> dict[int | None, Tally]:
    """Return what is known of each range of ages, the youngest first, unknown ones last."""
    found: dict[int | None, Tally] = {}
    for cell in sorted(cells, key=lambda cell: (cell.age is None, cell.age or 0)):
        found[cell.age] = found.get(cell.age, Tally()) + cell.tally
    return found


def by_hour(cells: Iterable[Cell]) -> dict[int, Tally]:
    """Return what is known of each hour of the day, in order."""
    found: dict[int, Tally] = {}
    for cell in sorted(cells, key=lambda cell: cell.hour):
        found[cell.hour] = found.get(cell.hour, Tally()) + cell.tally
    return found


class SmallChance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a chance is small: always, in this hour, or for orders from an age on (the first two are None then)."""

    tally: Tally
    hour: int | None = None
    from_age: int | None = None  # seconds


def small_chance(cells: Iterable[Cell], hour: int) -> SmallChance | None:
    """Return why a cancel that is sent in this hour (UTC) has a small chance, the broadest reason; None: it has not.

    An order's age is not known before Trackstar was asked, so the last reason is a condition.
    """
    cells = list(cells)
    if (of_all := total(cells)).small:
        return SmallChance(tally=of_all)
    if (of_hour := by_hour(cells).get(hour, Tally())).small:
        return SmallChance(tally=of_hour, hour=hour)
    older = _from_each_age_on(by_age(cells))
    return next((SmallChance(tally=each, from_age=edge) for edge, each in older.items() if each.small), None)


def _from_each_age_on(ages: Mapping[int | None, Tally]) -> dict[int, Tally]:
    """Return for each edge, the lowest first, what became of all orders that were at least so old."""
    return {
        edge: reduce(Tally.__add__, (each for age, each in ages.items() if age is not None and age >= number), Tally())
        for number, edge in enumerate(AGE_EDGES, 1)
    }
