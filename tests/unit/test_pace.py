"""The arithmetic of pace: evenly spaced send slots that no sliding second of a server can find too many."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.pace import LOOKAHEAD_SECONDS, interval, reserve, seconds_to_send

RATES = st.floats(min_value=0.5, max_value=5000)


def moments(rate: float, wishes: list[tuple[float, int]]) -> list[float]:
    """Ask for send slots again and again, each time (seconds later, how many); return their moments."""
    free_from, now, taken = 0.0, 0.0, []
    for later, wanted in wishes:
        now += later
        slots = reserve(free_from, now, rate, wanted)
        if slots.count:
            free_from = slots.end
            taken += [slots.send_at(number) for number in range(slots.count)]
    return taken


@given(RATES, st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 1000)), max_size=60))
def test_send_slots_are_never_closer_than_the_rate_allows(rate: float, wishes: list[tuple[float, int]]) -> None:
    taken = moments(rate, wishes)

    assert all(later - earlier >= interval(rate) * 0.999 for earlier, later in itertools.pairwise(taken))


@given(RATES, st.floats(0, 10), st.floats(0, 10), st.integers(0, 1000))
def test_no_send_slot_lies_before_now_or_further_ahead_than_the_lookahead(
    rate: float, free_from: float, now: float, wanted: int
) -> None:
    slots = reserve(free_from, now, rate, wanted)

    assert 0 <= slots.count <= wanted
    if slots.count:
        assert slots.first >= now
        assert slots.send_at(slots.count - 1) <= now + LOOKAHEAD_SECONDS + 1e-9


@given(st.floats(1, 5000))
def test_an_idle_connection_sends_its_first_request_at_once(rate: float) -> None:
    assert 100.0 == reserve(0.0, 100.0, rate, 1).first


@settings(deadline=None)
@given(st.sampled_from([1.0, 5.0, 50.0, 200.0]))
def test_a_backlog_that_is_asked_for_in_time_uses_98_percent_of_the_limit(rate: float) -> None:
    taken = moments(rate, [(0.05, 10_000)] * 2000)

    assert len(taken) >= 0.975 * rate * 100
    fullest = max(
        sum(start <= other < start + 1 for other in taken[n : n + 5000]) for n, start in enumerate(taken[:200])
    )
    assert fullest <= max(1, rate)


@given(st.integers(0, 100_000), RATES)
def test_the_expected_wait_is_the_backlog_ahead_divided_by_the_pace(place: int, rate: float) -> None:
    assert abs(seconds_to_send(place, rate) - place / (rate * 0.98)) < 1e-6 * max(1, place)
