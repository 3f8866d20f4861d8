"""Bounds of a share, counts by age and hour, and the one rule by which a chance is called small."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.chances import (
    AGE_EDGES,
    MIN_TRIALS,
    SMALL_SHARE,
    Cell,
    SmallChance,
    Tally,
    by_age,
    by_hour,
    by_system,
    small_chance,
    total,
    wilson,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def cell(succeeded: int, failed: int, *, age: int | None = 0, hour: int = 12, system: str | None = "shiphero") -> Cell:
    return Cell(system=system, age=age, hour=hour, tally=Tally(succeeded=succeeded, failed=failed))


@pytest.mark.parametrize(
    ("low", "high", "successes", "trials"),
    [
        (0.0, 1.0, 0, 0),
        (0.0, 0.793, 0, 1),
        (0.207, 1.0, 1, 1),
        (0.0, 0.161, 0, 20),
        (0.237, 0.763, 5, 10),
        (0.404, 0.596, 50, 100),
        (0.839, 1.0, 20, 20),
    ],
)
def test_the_bounds_are_those_of_the_textbook(low: float, high: float, successes: int, trials: int) -> None:
    assert (low, high) == pytest.approx(wilson(successes, trials), abs=0.0006)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_share_lies_between_its_bounds_whatever_is_counted(successes: int, failures: int) -> None:
    low, high = wilson(successes, successes + failures)
    share = successes / (successes + failures) if successes + failures else 0.5

    assert 0.0 <= low <= share <= high <= 1.0


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(2, 10))
def test_more_of_the_same_makes_the_bounds_no_wider(successes: int, failures: int, times: int) -> None:
    few, many = (wilson(successes * n, (successes + failures) * n) for n in (1, times))

    assert many[1] - many[0] <= few[1] - few[0]


def test_counts_add_up_and_the_newest_success_stays() -> None:
    earlier = Tally(succeeded=1, failed=2, undecided=3, last_success=NOON)
    later = Tally(succeeded=10, failed=20, undecided=30, last_success=NOON + timedelta(1))
    both = Tally(succeeded=11, failed=22, undecided=33, last_success=NOON + timedelta(1))

    assert both == earlier + later == later + earlier == both + Tally()
    assert 33 == both.trials


def test_what_is_undecided_is_no_trial() -> None:
    assert (0.0, 1.0) == Tally(undecided=1000).bounds
    assert not Tally(undecided=1000).small


def test_cells_are_added_by_system_by_age_and_by_hour() -> None:
    cells = [
        cell(1, 0, age=2, hour=3, system=None),
        cell(2, 0, age=None, hour=3, system="b"),
        cell(4, 0, age=0, hour=5, system="a"),
        cell(8, 0, age=2, hour=3, system="a"),
    ]

    assert ["a", "b", None] == list(by_system(cells))
    assert [(0, 4), (2, 9), (None, 2)] == [(age, tally.succeeded) for age, tally in by_age(cells).items()]
    assert [(3, 11), (5, 4)] == [(hour, tally.succeeded) for hour, tally in by_hour(cells).items()]
    assert 15 == total(cells).succeeded


@pytest.mark.parametrize(
    ("small", "succeeded", "failed"),
    [
        (True, 0, MIN_TRIALS),
        (False, 0, MIN_TRIALS - 1),
        (False, 3, MIN_TRIALS - 3),  # at most 36 %
        (True, 10, 90),  # at most 17 %
        (False, 20, 80),  # at most 29 %
        (False, 90, 10),
    ],
)
def test_a_chance_is_small_where_enough_cancels_allow_no_better_share(
    small: bool, succeeded: int, failed: int
) -> None:
    tally = Tally(succeeded=succeeded, failed=failed)

    assert small == tally.small == (tally.trials >= MIN_TRIALS and tally.bounds[1] < SMALL_SHARE)


def test_a_system_that_knows_no_cancel_has_a_small_chance_always() -> None:
    cells = [cell(0, 15, hour=3), cell(0, 15, hour=4)]

    assert SmallChance(tally=Tally(failed=30)) == small_chance(cells, 12)


def test_an_hour_in_which_nothing_succeeds_has_a_small_chance_and_the_others_have_not() -> None:
    cells = [cell(300, 10, hour=9), cell(0, 30, hour=22)]

    assert SmallChance(tally=Tally(failed=30), hour=22) == small_chance(cells, 22)
    assert small_chance(cells, 9) is None
    assert small_chance(cells, 3) is None


def test_orders_from_an_age_on_have_a_small_chance_all_of_them_together() -> None:
    """Neither of the old ranges has enough cancels alone; the lowest edge from which on it holds is said."""
    cells = [cell(300, 10, age=1), cell(30, 10, age=2), cell(0, 15, age=4), cell(0, 15, age=6), cell(0, 99, age=None)]

    assert SmallChance(tally=Tally(failed=30), from_age=AGE_EDGES[2]) == small_chance(cells, 12)


def test_nothing_is_said_of_what_nobody_has_tried() -> None:
    assert small_chance([], 12) is None
