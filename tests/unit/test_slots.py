"""Free request threads are counted, and nobody who waits for one is forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from worker.slots import Slots


def test_a_taker_gets_what_there_is_and_never_more() -> None:
    slots = Slots(5)

    assert [3, 2] == [slots.take(3), slots.take(9)]


def test_who_finds_nothing_free_waits_until_something_is_given_back() -> None:
    slots = Slots(2)
    slots.take(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(slots.take, 2)
        slots.give_back(1)

        assert waiting.result(5) == 1


def test_closing_sends_waiting_takers_away_and_waits_for_what_is_out() -> None:
    slots = Slots(1)
    slots.take(1)
    closed = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(slots.take, 1)
        closing = pool.submit(lambda: (slots.close(), closed.set()))

        assert waiting.result(5) == 0
        assert not closed.is_set()
        slots.give_back(1)
        closing.result(5)
        assert closed.is_set()
