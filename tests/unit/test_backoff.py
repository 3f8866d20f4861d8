"""How long to wait: bounds, floors, and jitter that survives both."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.backoff import backoff, ceiling

BASE, CAP = 1.0, 900.0

spent_tries = st.integers(0, 10**9)
jitters = st.floats(0.0, 1.0, exclude_max=True)
bases = st.floats(0.01, 60.0)
caps = st.floats(60.0, 86_400.0)
floors = st.floats(0.001, 86_400.0)

anything_goes = settings(deadline=None)


@pytest.mark.parametrize(
    ("expected", "spent"),
    [(1, 1), (2, 2), (4, 3), (8, 4), (512, 10), (900, 11), (900, 12), (900, 1000), (900, 10**12)],
    ids=str,
)
def test_the_ceiling_doubles_from_the_base_up_to_the_cap(expected: float, spent: int) -> None:
    assert expected == ceiling(spent, base=BASE, cap=CAP)


@pytest.mark.parametrize("spent", [0, -1])
def test_no_try_spent_waits_like_the_first(spent: int) -> None:
    assert BASE == ceiling(spent, base=BASE, cap=CAP)


def test_a_cap_below_the_base_wins() -> None:
    assert 3.0 == ceiling(1, base=10.0, cap=3.0)


@anything_goes
@given(spent=spent_tries, base=bases, cap=caps)
def test_the_ceiling_never_falls_as_tries_are_spent(spent: int, base: float, cap: float) -> None:
    assert ceiling(spent, base=base, cap=cap) <= ceiling(spent + 1, base=base, cap=cap) <= cap


@anything_goes
@given(spent=spent_tries, base=bases, cap=caps, jitter=jitters)
def test_a_wait_without_a_floor_lies_below_the_ceiling(spent: int, base: float, cap: float, jitter: float) -> None:
    assert 0.0 <= backoff(spent, base=base, cap=cap, jitter=jitter) <= ceiling(spent, base=base, cap=cap)


@anything_goes
@given(spent=spent_tries, base=bases, cap=caps, jitter=jitters, floor=floors)
def test_a_floor_is_never_undercut_nor_passed_by_more_than_the_base(
    spent: int, base: float, cap: float, jitter: float, floor: float
) -> None:
    assert floor <= backoff(spent, base=base, cap=cap, jitter=jitter, floor=floor) <= floor + base


@pytest.mark.parametrize("spent", [11, 12, 100, 10**9])
def test_jitter_survives_the_cap(spent: int) -> None:
    waits = [backoff(spent, base=BASE, cap=CAP, jitter=jitter) for jitter in (0.0, 0.25, 0.5, 0.75)]

    assert [0.0, 225.0, 450.0, 675.0] == waits


@pytest.mark.parametrize("spent", [1, 11, 10**9])
def test_jitter_survives_a_floor(spent: int) -> None:
    waits = [backoff(spent, base=BASE, cap=CAP, jitter=jitter, floor=30.0) for jitter in (0.0, 0.25, 0.5)]

    assert 30.0 == waits[0]
    assert waits == sorted(set(waits))


@anything_goes
@given(spent=spent_tries, low=jitters, high=jitters)
def test_a_higher_throw_never_waits_shorter(spent: int, low: float, high: float) -> None:
    low, high = sorted((low, high))

    assert backoff(spent, base=BASE, cap=CAP, jitter=low) <= backoff(spent, base=BASE, cap=CAP, jitter=high)
