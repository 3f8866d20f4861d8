"""The dispatcher's choice of what to send."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.dispatcher import share_out

connections = st.dictionaries(st.text(min_size=1, max_size=5), st.booleans(), max_size=50)


@given(connections, st.integers(1, 100))
def test_every_connection_gets_a_turn_as_long_as_there_is_room(whose_turn: dict[str, bool], room: int) -> None:
    shares = share_out(whose_turn, room)

    assert min(len(whose_turn), room) == len(shares)
    assert all(share >= 1 for share in shares.values())
    assert sum(shares.values()) < room + len(whose_turn) + 1


@given(connections, st.integers(1, 100))
def test_a_held_connection_sends_one_probe_and_no_more(whose_turn: dict[str, bool], room: int) -> None:
    shares = share_out(whose_turn, room)

    assert {1} >= {share for name, share in shares.items() if whose_turn[name]}


def test_a_connection_alone_has_all_the_room() -> None:
    assert {"shop-1": 32} == share_out({"shop-1": False}, 32)
