"""Whose turn it is: no connection takes all threads, none waits for ever, and what is free is lent."""

from __future__ import annotations

from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from worker.cancellation.sharing import LUMP, deal, for_the_longest_waiting, most_for, reserved, rotated

SIZES = st.integers(1, 500)


@given(SIZES, st.data())
def test_a_connection_with_nothing_in_flight_always_gets_a_free_thread(capacity: int, data: st.DataObject) -> None:
    free = data.draw(st.integers(1, capacity))

    assert most_for(0, free, capacity, data.draw(st.integers(1, 1000))) >= 1


@given(SIZES, st.data())
def test_nobody_gets_more_than_is_free(capacity: int, data: st.DataObject) -> None:
    free = data.draw(st.integers(0, capacity))
    own = data.draw(st.integers(0, capacity - free))

    assert 0 <= most_for(own, free, capacity, data.draw(st.integers(1, 1000))) <= free


@given(st.integers(2, 500))
def test_alone_it_borrows_everything_but_the_reserve(capacity: int) -> None:
    own, free = 0, capacity
    while more := most_for(own, free, capacity, 1):
        own, free = own + more, free - more

    assert own == max(1, capacity - reserved(capacity))
    assert free >= 1


@given(st.integers(2, 500), st.integers(2, 20))
def test_floods_end_up_within_their_even_shares(capacity: int, floods: int) -> None:
    assume(capacity >= 4 * floods)
    own = dict.fromkeys(range(floods), 0)
    for _ in range(capacity):
        for name, mine in own.items():
            free = capacity - sum(own.values())
            own[name] = mine + min(1, most_for(mine, free, capacity, floods))

    assert max(own.values()) - min(own.values()) <= 1
    assert capacity - sum(own.values()) >= 1


@given(st.integers(0, 300), st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 50), max_size=20))
def test_seats_are_dealt_in_turn_and_none_is_left_while_somebody_wants_one(room: int, wants: dict[str, int]) -> None:
    dealt = deal(room, list(wants.items()))

    assert sum(dealt.values()) == min(room, sum(wants.values()))
    assert all(dealt[name] <= wants[name] for name in dealt)
    hungry = [dealt.get(name, 0) for name, want in wants.items() if dealt.get(name, 0) < want]
    if hungry:
        assert max(dealt.values(), default=0) - min(hungry) <= 1


@given(st.lists(st.integers(1, 40), max_size=300))
def test_every_eighth_permit_goes_by_waiting_time_give_or_take_a_lump(counts: list[int]) -> None:
    sent = by_age = 0
    for count in counts:
        old = for_the_longest_waiting(sent, by_age, count)
        assert 0 <= old <= min(count, LUMP + count // 8)
        sent, by_age = sent + count, by_age + old

        assert by_age <= sent / 8 <= by_age + LUMP + 5


@given(st.lists(st.text(min_size=1, max_size=3), unique=True, max_size=10))
def test_whoever_was_served_last_is_last_in_the_next_round(names: list[str]) -> None:
    last, served = None, Counter[str]()
    for _ in range(3 * len(names)):
        last = rotated(names, last)[0]
        served[last] += 1

    assert set(served.values()) <= {3}
