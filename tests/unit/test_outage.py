"""When a connection counts as down, and when it is Trackstar itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.outage import MIN_FAILURES, Tally, all_are_down, is_down

TALLIES = st.builds(Tally, good=st.integers(0, 1000), bad=st.integers(0, 1000))


@given(TALLIES)
def test_a_connection_is_down_only_by_a_clear_majority_of_enough_failures(tally: Tally) -> None:
    expected = tally.bad >= MIN_FAILURES and tally.bad >= 4 * tally.good

    assert expected == is_down(tally)


@given(TALLIES, st.integers(0, 100))
def test_more_failures_never_make_it_look_better(tally: Tally, more: int) -> None:
    assert is_down(Tally(tally.good, tally.bad + more)) >= is_down(tally)


@given(st.dictionaries(st.text(max_size=3), TALLIES, max_size=2))
def test_two_connections_are_never_all_of_trackstar(tallies: dict[str, Tally]) -> None:
    assert not all_are_down(tallies)


def test_connections_that_fail_alike_are_trackstars_fault() -> None:
    assert all_are_down({str(number): Tally(good=0, bad=5) for number in range(3)})


def test_one_healthy_connection_among_few_clears_trackstar() -> None:
    tallies = {str(number): Tally(good=0, bad=20) for number in range(5)}

    assert not all_are_down(tallies | {"fine": Tally(good=20, bad=0)})
