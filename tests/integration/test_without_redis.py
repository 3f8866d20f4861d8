"""A Redis that is away: a cancel goes out without its pace."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from worker.cancellation.answer import NoReply, Reply
from worker.trackstar.pacing import LATE_SECONDS, Pace, SendSlot

if TYPE_CHECKING:
    from conftest import Logged

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def pace() -> Pace:
    """The pace of a worker whose Redis is away."""
    return Pace(Redis.from_url(NOWHERE), 50, 10)


def test_a_cancel_that_is_late_for_its_slot_goes_out_without_another(pace: Pace, logged: Logged) -> None:
    late = SendSlot(time.monotonic() - 10 * LATE_SECONDS, 50.0, saturated=True)

    assert pace.wait_to_write("shop-1", late, time.monotonic() + 10)

    line = logged.wait_for("pace.redis_away")
    assert ("warning", "ConnectionError") == (line["level"], line["error"])
    assert [] == logged.events()  # it asked once


def test_a_cancel_whose_slot_is_still_good_does_not_ask_redis(pace: Pace, logged: Logged) -> None:
    slot = SendSlot(time.monotonic() + 0.05, 50.0, saturated=False)

    assert pace.wait_to_write("shop-1", slot, slot.send_at + 10)
    assert time.monotonic() >= slot.send_at
    assert [] == logged.events()


def test_an_order_is_read_back_without_a_slot(pace: Pace, logged: Logged) -> None:
    assert pace.wait_to_read("shop-1")
    assert ["pace.redis_away"] == logged.events()


@pytest.mark.parametrize("kind", ["cancel", "read"])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Reply(status=HTTPStatus.TOO_MANY_REQUESTS, retry_after=3.0), id="too fast"),
        pytest.param(Reply(status=HTTPStatus.OK, rate_limit=5.0), id="a lower limit"),
    ],
)
def test_what_the_server_says_of_the_pace_is_lost_and_the_answer_is_not(
    pace: Pace, logged: Logged, kind: str, answer: Reply
) -> None:
    pace.observe(kind, "shop-1", answer)

    assert ["pace.redis_away"] == logged.events()


def test_no_answer_says_nothing_of_the_pace(pace: Pace, logged: Logged) -> None:
    pace.observe("cancel", "shop-1", NoReply("timeout", sent=True))

    assert [] == logged.events()
