"""Send slots in a real Redis: the same arithmetic as the pure one, atomic for any number of workers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from harness.slots import SlotLog
from redis import Redis

from worker.cancellation.answer import Reply
from worker.cancellation.pace import LOOKAHEAD_SECONDS, interval
from worker.trackstar import pacing as module
from worker.trackstar.pacing import Pace, Pacing, SendSlot, SlotReservation


@pytest.fixture
def pacing(redis: Redis) -> Pacing:
    return Pacing(redis, "w")


def moments(slots: SlotReservation) -> list[float]:
    """Return the moments of send slots by Redis' own clock."""
    return [int(slots.end_token) / 1e6 - (slots.count - number) * slots.interval for number in range(slots.count)]


def test_an_idle_connection_may_send_at_once_and_then_at_its_pace(pacing: Pacing) -> None:
    now = time.monotonic()
    first = pacing.reserve({"shop-1": (50.0, 100)})["shop-1"]

    assert now - 0.01 <= first.first <= time.monotonic()
    assert first.interval == pytest.approx(interval(50), rel=0.001)
    assert first.count == int(LOOKAHEAD_SECONDS / first.interval) + 1

    # Whoever asks again gets the moments behind those, however long this machine took to ask.
    again = pacing.reserve({"shop-1": (50.0, 100)})["shop-1"]
    behind = moments(again)[0] if again.count else int(again.end_token) / 1e6
    assert behind == pytest.approx(moments(first)[-1] + first.interval, abs=1e-4)


def test_connections_do_not_share_a_pace_and_each_has_its_own_rate(pacing: Pacing) -> None:
    granted = pacing.reserve({"shop-1": (50.0, 100), "shop-2": (500.0, 100), "shop-3": (50.0, 2)})

    assert [5, 49, 2] == [granted[name].count for name in ("shop-1", "shop-2", "shop-3")]


def test_any_number_of_workers_together_keep_the_pace(redis_url: str) -> None:
    def work(_: int) -> list[float]:
        with Redis.from_url(redis_url) as own:
            pacing, taken = Pacing(own, "w"), []
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                taken += moments(pacing.reserve({"shop-1": (200.0, 3)})["shop-1"])
            return taken

    with ThreadPoolExecutor(4) as pool:
        taken = sorted(send_at for part in pool.map(work, range(4)) for send_at in part)

    assert all(later - earlier > interval(200) * 0.999 for earlier, later in pairwise(taken))
    assert 0.9 * 196 <= len(taken) <= 196 * (1 + LOOKAHEAD_SECONDS) + 5


def test_slots_that_nobody_needed_are_reserved_again(redis: Redis) -> None:
    pacing = Pacing(redis, "w", lookahead=60.0)  # so far ahead that none is past before it is asked for again
    first = pacing.reserve({"shop-1": (1.0, 30)})["shop-1"]
    pacing.return_unused("shop-1", first, 10)
    again = pacing.reserve({"shop-1": (1.0, 5)})["shop-1"]

    assert moments(again)[0] == pytest.approx(moments(first)[20], abs=1e-4)


def test_slots_below_those_of_another_worker_are_not_reserved_again(pacing: Pacing) -> None:
    first = pacing.reserve({"shop-1": (50.0, 2)})["shop-1"]
    second = pacing.reserve({"shop-1": (50.0, 2)})["shop-1"]
    pacing.return_unused("shop-1", first, 2)
    third = pacing.reserve({"shop-1": (50.0, 1)})["shop-1"]

    assert moments(third)[0] >= moments(second)[-1]


def test_a_paused_connection_gives_no_permit_to_anyone_and_another_goes_on(pacing: Pacing) -> None:
    pacing.pause("shop-1", 30)
    granted = pacing.reserve({"shop-1": (50.0, 1), "shop-2": (50.0, 1)})

    assert [0, 1] == [granted[name].count for name in ("shop-1", "shop-2")]
    assert pytest.approx(30, abs=1) == granted["shop-1"].first - time.monotonic()


def test_the_servers_lower_limit_is_kept_and_a_higher_one_changes_nothing(pacing: Pacing) -> None:
    pacing.cap_rate("shop-1", 10)
    pacing.cap_rate("shop-2", 900)
    granted = pacing.reserve({"shop-1": (50.0, 100), "shop-2": (50.0, 100)})

    assert interval(10) == pytest.approx(granted["shop-1"].interval, rel=0.001)
    assert interval(50) == pytest.approx(granted["shop-2"].interval, rel=0.001)


def test_a_limit_that_redis_forgot_is_kept_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(redis, 50, 10)
    told = []
    for again in (module.CAP_AGAIN_SECONDS, 0.0):
        monkeypatch.setattr(module, "CAP_AGAIN_SECONDS", again)
        for _ in range(2):
            pace.observe("cancel", "shop-1", Reply(status=200, rate_limit=20.0))
            told.append(pace.writes.limit("shop-1"))
            redis.flushall()

    assert [20, None, 20, 20] == told, "at most once in that time: it comes with every answer"


def test_a_limit_between_the_usual_rate_and_a_connections_own_is_kept(redis: Redis) -> None:
    pace = Pace(redis, 50, 10)
    pace.observe("cancel", "shop-1", Reply(status=200, rate_limit=80.0))

    assert interval(80) == pytest.approx(pace.writes.reserve({"shop-1": (100.0, 1)})["shop-1"].interval, rel=0.001)


def test_reads_have_a_pace_of_their_own(redis: Redis, pacing: Pacing) -> None:
    pacing.pause("shop-1", 30)

    assert 1 == Pacing(redis, "r").reserve({"shop-1": (10.0, 1)})["shop-1"].count


def test_an_emptied_redis_goes_on_at_the_pace(redis: Any, pacing: Pacing) -> None:
    pacing.reserve({"shop-1": (50.0, 100)})
    redis.flushall()
    redis.script_flush()
    began = time.monotonic()

    first, second = (pacing.reserve({"shop-1": (50.0, 100)})["shop-1"].count for _ in range(2))
    assert 5 == first
    # Redis reads its clock once for a round of its event loop, so the first may be counted a moment too early.
    assert second <= 1 + 50.0 * (time.monotonic() - began), "no more than the time between them lets go"


def test_whose_permit_came_too_late_waits_for_another_and_is_never_sent_without(redis: Redis) -> None:
    pace = Pace(redis, 50, 10)
    pace.writes.reserve({"shop-1": (50.0, 100)})
    late = SendSlot(time.monotonic() - 1.0, 50.0, saturated=True)

    def send(_: int) -> float:
        assert pace.wait_to_write("shop-1", late, time.monotonic() + 10)
        return time.monotonic()

    with ThreadPoolExecutor(20) as pool:
        sent = sorted(pool.map(send, range(20)))

    # All of them at once would take no time; at the pace it is twenty times its interval, behind the five before.
    assert sent[-1] - sent[0] >= 19 * interval(50) * 0.9


def test_the_log_of_slots_that_tests_measure_by_counts_what_was_reserved_and_no_pause(
    pacing: Pacing, redis_url: str
) -> None:
    with SlotLog(redis_url, "shop-1", 50.0) as log:
        kept = pacing.reserve({"shop-1": (50.0, 3)})["shop-1"]
        pacing.pause("shop-1", 1.0)

    assert [pytest.approx(moment, abs=1e-4) for moment in moments(kept)] == [slot.send_at for slot in log.slots]
