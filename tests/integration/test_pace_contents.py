"""Whatever stands in our keys of Redis, one connection alone begins anew, by its name; the others never hear of it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from worker.cancellation.answer import Reply
from worker.cancellation.lifecycle import State, Transition
from worker.cancellation.outage import Tally
from worker.cancellation.pace import LONGEST_PAUSE_SECONDS, MIN_PAUSE_SECONDS, interval
from worker.cancellation.status import Evidence, Status, Verdict
from worker.inputs.headers import LimitProblem, RetryAfter
from worker.ledger.attempts import AttemptRow
from worker.ledger.claims import Lease, SendClaim
from worker.ledger.results import AttemptResult
from worker.runtime import outages
from worker.runtime.outages import AnswerTally, OutageDecision
from worker.trackstar.pacing import Pace, Pacing, SendSlot

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Logged
    from redis import Redis

    from worker.ledger.results import Result

KEY = "cancellations:pace:w:shop-1"
BOTH = {"shop-1": (50.0, 2), "shop-2": (50.0, 2)}
SOON = 5.0
HOUR = 3600


@pytest.fixture
def pacing(redis: Redis) -> Pacing:
    return Pacing(redis, "w")


@pytest.fixture
def pace(redis: Redis) -> Pace:
    return Pace(redis, 50, 10)


def microseconds(redis: Any, ahead: float = 0.0) -> int:
    seconds, rest = redis.time()
    return int(seconds * 1_000_000 + rest + ahead * 1_000_000)


# -- the pace of one connection

RUBBISH = [
    "",
    "soon",
    "-1",
    "-1e300",
    "1e999",
    "inf",
    "-inf",
    "nan",
    "9" * 400,
    "1_0",
    "\uff15",
    "\x00",
    "99999999999999999",
]


@pytest.mark.parametrize("field", ["next", "limit"])
@pytest.mark.parametrize("value", RUBBISH)
def test_rubbish_in_one_pace_resets_that_connection_by_name_and_no_other(
    redis: Redis, pacing: Pacing, logged: Logged, field: str, value: str
) -> None:
    redis.hset(KEY, field, value)
    granted = pacing.reserve(BOTH)

    assert [2, 2] == [granted[name].count for name in BOTH]
    assert [pytest.approx(interval(50), rel=0.001)] * 2 == [granted[name].interval for name in BOTH]
    line = logged.wait_for("pace.reset")
    assert ("warning", "shop-1", KEY) == (line["level"], line["connection_id"], line["key"])

    pacing.reserve(BOTH)
    assert [] == logged.events()  # it was one event, and is over


@pytest.mark.parametrize("limit", ["0", "0.01", "1e-300", "1000001"])
def test_a_limit_in_redis_that_no_pace_can_keep_is_rubbish_too(
    redis: Redis, pacing: Pacing, logged: Logged, limit: str
) -> None:
    redis.hset(KEY, "limit", limit)

    assert 2 == pacing.reserve(BOTH)["shop-1"].count
    assert "shop-1" == logged.wait_for("pace.reset")["connection_id"]


OTHER_TYPES: dict[str, Callable[[Any, str], Any]] = {
    "string": lambda redis, key: redis.set(key, "rubbish"),
    "list": lambda redis, key: redis.rpush(key, "a", "b"),
    "set": lambda redis, key: redis.sadd(key, "a"),
    "sorted set": lambda redis, key: redis.zadd(key, {"a": 1}),
    "stream": lambda redis, key: redis.xadd(key, {"a": "b"}),
}
any_other_type = pytest.mark.parametrize("make", OTHER_TYPES.values(), ids=OTHER_TYPES)


@any_other_type
def test_another_type_in_the_place_of_one_pace_resets_that_connection_by_name_and_no_other(
    redis: Redis, pacing: Pacing, logged: Logged, make: Callable[[Any, str], Any]
) -> None:
    make(redis, KEY)
    granted = pacing.reserve(BOTH)

    assert [2, 2] == [granted[name].count for name in BOTH]
    assert "shop-1" == logged.wait_for("pace.reset")["connection_id"]
    assert [] == logged.events()
    assert b"hash" == redis.type(KEY)


@any_other_type
def test_a_pause_and_a_limit_are_kept_whatever_stood_in_their_place(
    redis: Redis, pacing: Pacing, logged: Logged, make: Callable[[Any, str], Any]
) -> None:
    make(redis, KEY)
    pacing.pause("shop-1", 30)
    assert 0 == pacing.reserve(BOTH)["shop-1"].count

    redis.delete(KEY)
    make(redis, KEY)
    pacing.cap_rate("shop-1", 10)
    granted = pacing.reserve(BOTH)["shop-1"]

    assert interval(10) == pytest.approx(granted.interval, rel=0.001)
    assert ["pace.reset", "pace.reset"] == logged.events()

    make(redis, KEY.replace("shop-1", "shop-3"))
    pacing.return_unused("shop-3", granted, 1)  # returned to nobody


@pytest.mark.parametrize("ahead", [LONGEST_PAUSE_SECONDS + 5, HOUR, 31_536_000, 1e9])
def test_a_moment_that_nobody_wrote_by_this_clock_parks_no_connection(
    redis: Redis, pacing: Pacing, logged: Logged, ahead: float
) -> None:
    """As after Redis' clock was set back, or a version that paused for as long as a server asked."""
    redis.hset(KEY, "next", microseconds(redis, ahead))

    assert 2 == pacing.reserve(BOTH)["shop-1"].count
    assert "shop-1" == logged.wait_for("pace.reset")["connection_id"]


def test_a_moment_in_the_past_is_now_as_after_the_clock_was_set_forward(
    redis: Redis, pacing: Pacing, logged: Logged
) -> None:
    redis.hset(KEY, "next", microseconds(redis, -HOUR))

    assert 2 == pacing.reserve(BOTH)["shop-1"].count
    assert [] == logged.events()


@pytest.mark.parametrize("seconds", [MIN_PAUSE_SECONDS, 2.5, LONGEST_PAUSE_SECONDS])
def test_a_pause_up_to_a_minute_is_believed(pacing: Pacing, logged: Logged, seconds: float) -> None:
    pacing.pause("shop-1", seconds)
    granted = pacing.reserve(BOTH)

    assert [0, 2] == [granted[name].count for name in BOTH]
    assert seconds == pytest.approx(granted["shop-1"].first - time.monotonic(), abs=0.5)
    assert [] == logged.events()


# -- what the server says


@pytest.mark.parametrize(
    ("expected", "kind", "retry_after"),
    [
        (MIN_PAUSE_SECONDS, "cancel", None),
        (30.0, "cancel", 30.0),
        (MIN_PAUSE_SECONDS, "cancel", 900.0),  # the rest is a hold
        (30.0, "read", 30.0),
        (LONGEST_PAUSE_SECONDS, "read", 900.0),  # of reads alone: writes go on
    ],
)
def test_no_429_pauses_redis_for_longer_than_a_minute(
    redis: Redis, pace: Pace, expected: float, kind: str, retry_after: RetryAfter | None
) -> None:
    pace.observe(kind, "shop-1", Reply(status=429, retry_after=retry_after))
    found = Pacing(redis, kind[0].replace("c", "w")).reserve(BOTH)["shop-1"]

    assert 0 == found.count
    assert expected == pytest.approx(found.first - time.monotonic(), abs=0.5)


def test_a_limit_that_is_no_limit_is_told_once_and_changes_nothing(redis: Redis, pace: Pace, logged: Logged) -> None:
    for problem in (LimitProblem.TOO_LOW, LimitProblem.TOO_LOW, LimitProblem.UNREADABLE, LimitProblem.TOO_LOW):
        pace.observe("cancel", "shop-1", Reply(status=200, rate_limit=problem))

    lines = [logged.wait_for("pace.limit_ignored") for _ in range(2)]
    assert [("shop-1", "cancel", "too_low"), ("shop-1", "cancel", "unreadable")] == [
        (line["connection_id"], line["kind"], line["problem"]) for line in lines
    ]
    assert [] == logged.events()
    assert not redis.exists(KEY)


# -- a request that is late for its slot


def late() -> SendSlot:
    return SendSlot(time.monotonic() - 0.02, 50.0, saturated=True)


def test_a_late_request_that_meets_a_pause_does_not_sleep_past_its_claims_margin(pace: Pace) -> None:
    pace.writes.pause("shop-1", 60)
    began = time.monotonic()

    assert not pace.wait_to_write("shop-1", late(), began + 25)
    assert time.monotonic() - began < SOON


def test_a_late_request_whose_slot_comes_within_its_margin_waits_for_it(pace: Pace) -> None:
    pace.writes.pause("shop-1", 1)
    began = time.monotonic()

    assert pace.wait_to_write("shop-1", late(), began + 25)
    assert 0.9 <= time.monotonic() - began < SOON


def test_a_request_that_is_always_late_ends_with_its_margin_and_not_after_so_many_tries(
    pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def renewed(_connection_id: str, _rate: float) -> tuple[float, bool]:
        nonlocal tries
        tries += 1
        return time.monotonic() - 1, True  # by when it has its slot, that is gone

    monkeypatch.setattr(pace, "_renewed", renewed)

    assert not pace.wait_to_write("shop-1", late(), time.monotonic() + 1)
    assert tries > 100


def test_the_end_of_the_process_ends_every_long_wait(pace: Pace) -> None:
    pace.writes.pause("shop-1", 60)
    asks = threading.Event()
    renew = pace._renewed

    def renewed(connection_id: str, rate: float) -> tuple[float, bool]:
        asks.set()
        return renew(connection_id, rate)

    pace._renewed = renewed  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(pace.wait_to_write, "shop-1", late(), time.monotonic() + 90)
        assert asks.wait(SOON)
        pace.end_waiting()
        assert not waits.result(SOON)


# -- the tally of answers


@pytest.fixture
def tally(redis: Redis) -> AnswerTally:
    return AnswerTally(redis)


NOW = datetime(2030, 1, 1, tzinfo=UTC)
ENDED = Transition(
    status=Status.SUCCEEDED, attempts=1, reason="accepted", verdict=Verdict.CANCELLED, evidence=Evidence.RESPONSE
)
NOBODY = OutageDecision()


def down(*names: str) -> OutageDecision:
    return OutageDecision(frozenset(names))


def answers(connection_id: str, *, good: int = 0, bad: int = 0) -> list[Result]:
    claim = SendClaim(
        lease=Lease("00000000-0000-5000-8000-000000000001", "w-1", 1),
        connection_id=connection_id,
        order_id="o-1",
        generation=1,
        claimed_at=NOW,
        encrypted_token=None,
        hold_reason=None,
        state=State(attempts=0, first_sent_at=NOW),
    )
    rows = [
        AttemptRow(kind="cancel", started_at=NOW, reason="for_a_test", status=status)
        for status in [200] * good + [503] * bad
    ]
    return [AttemptResult(claim=claim, attempts=(row,), transition=ENDED) for row in rows]


def period_key(redis: Any) -> str:
    return f"cancellations:answers:{redis.time()[0] // outages._PERIOD_SECONDS}"


def fill(redis: Any, write: Callable[[str], Any]) -> None:
    """Write into the count of this period and the next: no test may fall between the two."""
    for ahead in (0, 1):
        prefix, _, number = period_key(redis).rpartition(":")
        write(f"{prefix}:{int(number) + ahead}")


@pytest.mark.parametrize("value", ["", "many", "-5", "1.5", "nan", "9" * 30, "9223372036854775807", "99999999999"])
def test_rubbish_in_one_count_resets_that_connection_by_name_and_no_other(
    redis: Any, tally: AnswerTally, logged: Logged, value: str
) -> None:
    fill(redis, lambda key: redis.hset(key, mapping={"shop-1 bad": value, "shop-2 bad": value}))

    assert down("shop-1", "shop-3") == tally.count(answers("shop-1", bad=10) + answers("shop-3", bad=10))
    named = {logged.wait_for("tally.reset")["connection_id"] for _ in range(2)}
    assert {"shop-1", "shop-2"} == named  # one that was just counted, and one that was only read
    assert "shop-2" not in AnswerTally(redis).count(answers("shop-2", bad=1, good=9)).connections


@pytest.mark.parametrize(
    "field", [b"", b"bad", b"shop-1", b"shop-1 worse", b"\xff bad", b" bad", b"x" * 300 + b" bad"]
)
def test_a_field_that_is_no_count_is_dropped_without_repeating_it(
    redis: Any, tally: AnswerTally, logged: Logged, field: bytes
) -> None:
    fill(redis, lambda key: redis.hset(key, field, "5"))

    assert down("shop-3") == tally.count(answers("shop-3", bad=10))
    assert logged.wait_for("tally.reset")["connection_id"] is None


@any_other_type
def test_another_type_in_the_place_of_a_count_is_replaced(
    redis: Any, tally: AnswerTally, logged: Logged, make: Callable[[Any, str], Any]
) -> None:
    fill(redis, lambda key: make(redis, key))

    assert down("shop-3") == tally.count(answers("shop-3", bad=10))
    assert period_key(redis).rpartition(":")[0] in logged.wait_for("tally.reset")["key"]


@any_other_type
def test_another_type_does_not_keep_a_hold_from_ending(
    redis: Any, tally: AnswerTally, make: Callable[[Any, str], Any]
) -> None:
    tally.count(answers("shop-1", bad=10))
    prefix, _, number = period_key(redis).rpartition(":")
    make(redis, f"{prefix}:{int(number) - 2}")
    tally.reset(["shop-1"])

    assert NOBODY == AnswerTally(redis).count(answers("shop-1", bad=1))


def test_a_count_of_more_connections_than_there_can_be_begins_anew(
    redis: Any, tally: AnswerTally, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "_MAX_FIELDS", 100)
    fill(redis, lambda key: redis.hset(key, mapping={f"shop-{number} good": 1 for number in range(100)}))
    tally.count(answers("a", bad=10))

    assert logged.wait_for("tally.reset")["connection_id"] is None
    assert {} == tally._tallies(tally._keys(redis.time()[0] // outages._PERIOD_SECONDS))


def test_many_rubbish_counts_are_a_few_lines_of_log(redis: Any, tally: AnswerTally, logged: Logged) -> None:
    fill(redis, lambda key: redis.hset(key, mapping={f"shop-{number} good": "x" for number in range(5000)}))
    tally.count(answers("a", bad=1))
    keys = tally._keys(redis.time()[0] // outages._PERIOD_SECONDS)

    assert {"a": Tally(good=0, bad=1)} == tally._tallies(keys)
    assert 2 * outages._MAX_TOLD >= len(logged.events())
