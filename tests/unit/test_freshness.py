"""Which crawls are known to have completed, whatever Trackstar tells and leaves out; and when the next ones will."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.cancellation.freshness import (
    Crawls,
    CrawlStatus,
    Schedule,
    ahead_of,
    broken,
    crawls_since,
    needs_forcing,
    observe,
)

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = 3600.0
LENGTH = 300.0


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def seen(start: float | None, end: float | None, status: CrawlStatus = CrawlStatus.ENABLED, **more: Any) -> Schedule:
    frequency = more.pop("frequency", HOUR)
    return Schedule(
        None if start is None else at(start), None if end is None else at(end), frequency=frequency, status=status
    )


def known(*steps: tuple[Schedule | None, float]) -> Crawls:
    crawls: Crawls | None = None
    for schedule, now in steps:
        crawls = observe(crawls, schedule, at(now))
    assert crawls is not None
    return crawls


def running(start: float, end: float | None) -> Schedule:
    return seen(start, end, CrawlStatus.IN_PROGRESS)


# ---- what has completed


def test_a_crawl_that_began_and_ended_is_known() -> None:
    crawls = known((seen(0, LENGTH), 400))

    assert (at(0), at(LENGTH), None) == (crawls.began_at, crawls.ended_at, crawls.before_began_at)
    assert (HOUR, LENGTH, CrawlStatus.ENABLED) == (crawls.frequency, crawls.length, crawls.status)
    assert at(400) == crawls.seen_at


def test_two_crawls_are_two_and_a_third_pushes_out_the_first() -> None:
    crawls = known((seen(0, 300), 400), (seen(3600, 3900), 4000), (seen(7200, 7500), 7600))

    assert (at(3600), at(7200)) == (crawls.before_began_at, crawls.began_at)
    assert [2, 2, 1, 1, 0] == [crawls_since(crawls, at(instant)) for instant in (0, 3599, 3600, 7199, 7200)]


def test_a_crawl_that_is_asked_for_twice_is_one() -> None:
    assert 1 == crawls_since(known((seen(0, 300), 400), (seen(0, 300), 430)), at(-1))


@pytest.mark.parametrize("instants", [(400.0, 400.9), (0.0, 0.9)], ids=["a slow answer", "told finer"])
def test_a_crawl_is_the_same_however_its_instants_are_told(instants: tuple[float, float]) -> None:
    first, second = instants
    crawls = known((seen(first, 700), 800), (seen(second, 700.5), 830))

    assert 1 == crawls_since(crawls, at(-1))


@pytest.mark.parametrize("drift", [-50.0, -1.5, 0.0, 1.5, 50.0])
def test_a_crawl_is_the_same_however_far_two_readings_of_trackstars_clock_are_apart(drift: float) -> None:
    schedule = seen(10_000, 10_300)
    crawls = known(
        (schedule.in_ledger_time(10_000.0), 400),
        (schedule.in_ledger_time(10_000.0 + drift), 430),
    )

    assert (at(0), None) == (crawls.began_at, crawls.before_began_at)


def test_nothing_is_counted_while_a_crawl_is_running() -> None:
    crawls = known((running(0, None), 30), (running(0, -3300), 60))

    assert 0 == crawls_since(crawls, at(-10_000))
    assert at(0) == crawls.running_since


def test_nothing_is_counted_while_a_crawl_is_running_though_an_end_is_told() -> None:
    assert 0 == crawls_since(known((running(0, -1), 30), (running(0, 300), 310)), at(-10_000))


def test_a_crawl_that_was_seen_running_and_failed_is_not_counted() -> None:
    assert 0 == crawls_since(known((running(0, -1), 30), (seen(0, 300, CrawlStatus.ERROR), 310)), at(-1))


def test_a_crawl_that_was_seen_running_is_counted_when_it_has_ended() -> None:
    crawls = known((running(0, -3300), 30), (seen(0, 300), 330))

    assert (at(0), None) == (crawls.began_at, crawls.running_since)


def test_a_crawl_that_ended_before_the_next_began_is_counted_though_nobody_looked_in_between() -> None:
    crawls = known((running(0, -3300), 30), (running(3600, 300), 3610))

    assert (at(0), at(300), at(3600)) == (crawls.began_at, crawls.ended_at, crawls.running_since)


def test_a_crawl_that_was_given_up_and_begun_again_is_one() -> None:
    crawls = known((running(0, -3300), 30), (seen(60, 360), 400))

    assert 1 == crawls_since(crawls, at(-1))
    assert at(60) == crawls.began_at


def test_a_crawl_that_was_given_up_is_none_while_the_next_is_running() -> None:
    assert 0 == crawls_since(known((running(0, -1), 30), (running(60, -1), 90)), at(-1))


FAILED = (seen(0, 300, CrawlStatus.ERROR), 400)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param((FAILED, (running(3600, 300), 3610), (running(7200, 3900), 7210)), id="after a failure"),
        pytest.param(((running(0, -3300), 30), (seen(3600, 300, CrawlStatus.ERROR), 3610)), id="in error now"),
    ],
)
def test_an_end_before_the_next_begin_is_no_crawl_where_crawls_fail(steps: tuple[tuple[Schedule, float], ...]) -> None:
    assert 0 == crawls_since(known(*steps), at(-10_000))


def test_a_crawl_that_failed_is_none_also_when_the_connection_is_well_again() -> None:
    crawls = known((seen(0, 300, CrawlStatus.ERROR), 400), (seen(0, 300), 430))

    assert 0 == crawls_since(crawls, at(-1))
    assert 1 == crawls_since(observe(crawls, seen(3600, 3900), at(4000)), at(-1))


def test_an_end_that_is_the_begin_to_the_second_is_the_same_crawls_where_none_runs() -> None:
    assert 1 == crawls_since(known((seen(0, 0), 10)), at(-1))
    assert 0 == crawls_since(known((seen(0, 0, CrawlStatus.UNKNOWN), 10)), at(-1))


def test_an_instant_in_the_future_is_not_believed() -> None:
    assert 0 == crawls_since(known((seen(0, 106), 100)), at(-1))
    assert 1 == crawls_since(known((seen(0, 105), 100)), at(-1))
    assert known((seen(106, 110), 100)).began_at is None


@pytest.mark.parametrize("empty", [None, Schedule(), Schedule(ahead=3.0), seen(None, None), seen(None, 9000)])
def test_what_was_completed_stays_so_when_fields_go_missing(empty: Schedule | None) -> None:
    crawls = known((seen(0, 300), 400), (seen(3600, 3900), 4000), (empty, 10_000))

    assert (2, HOUR) == (crawls_since(crawls, at(-1)), crawls.frequency)
    assert at(10_000) == crawls.seen_at


def test_the_status_is_always_that_which_was_seen_last() -> None:
    assert CrawlStatus.UNKNOWN is known((seen(0, 300), 400), (None, 430)).status
    assert CrawlStatus.DISABLED is known((seen(0, 300), 400), (seen(0, 300, CrawlStatus.DISABLED), 430)).status


def test_a_begin_that_goes_back_counts_nothing_and_takes_nothing() -> None:
    crawls = known((seen(0, 300), 400), (seen(3600, 3900), 4000), (seen(0, 300), 4030), (seen(1800, 2100), 4060))

    assert (at(0), at(3600)) == (crawls.before_began_at, crawls.began_at)


def test_an_end_without_a_begin_tells_of_no_crawl_after_any_instant() -> None:
    crawls = known((seen(None, 300), 400), (seen(None, 3900), 4000))

    assert (0, at(3900)) == (crawls_since(crawls, at(-1)), crawls.ended_at)


@pytest.mark.parametrize("said", [None, Schedule(), Schedule(ahead=2.0)])
def test_where_nothing_was_ever_said_nothing_is_known(said: Schedule | None) -> None:
    assert observe(None, said, NOON) is None
    assert 0 == crawls_since(None, NOON)


def test_the_length_rises_at_once_and_falls_slowly() -> None:
    steps = [(seen(0, 100), 150), (seen(1000, 1500), 1600), (seen(2000, 2100), 2200)]

    assert [100, 500, 300] == [known(*steps[: count + 1]).length for count in range(3)]


def test_what_is_kept_survives_being_written() -> None:
    crawls = known((seen(0, 300), 400), (running(3600, 300), 3700))

    assert crawls == msgspec.json.decode(msgspec.json.encode(crawls), type=Crawls)


# ---- any sequence of crawls, seen at any moments, through any fields


Crawl = tuple[float, float, str]  # begin, end, and how it ended: "done", "failed" or "aborted"


def true_crawls(rng: Random) -> list[Crawl]:
    crawls, begin = [], 0.0
    for _ in range(rng.randint(1, 12)):
        begin += rng.choice([0.0, 1.0, 30.0, HOUR]) + rng.random() * rng.choice([1, 100])
        how = rng.choice(["done", "done", "done", "failed", "aborted"])
        if how == "aborted":
            begin += 1.0  # in the very second in which the one before ended, nothing could tell
        end = begin + rng.choice([0.0, 1.0, 20.0, LENGTH]) * rng.random()
        crawls.append((begin, end, how))
        begin = end
    return crawls


def as_told(crawls: list[Crawl], now: float, rng: Random, *, at_begin: bool, whole: bool) -> Schedule:
    """What Trackstar would say: of a begin at once or with its end, to the second or finer, fields left out."""
    begun = [crawl for crawl in crawls if crawl[0] <= now]
    over = [crawl for crawl in begun if crawl[1] <= now]
    ended = [crawl for crawl in over if crawl[2] == "done"]
    last = (begun if at_begin else ended)[-1:]
    runs = bool(begun) and begun[-1][1] > now
    status = CrawlStatus.IN_PROGRESS if runs else CrawlStatus.ENABLED
    if not runs and over and over[-1][2] == "failed":
        status = CrawlStatus.ERROR
    start = int(last[0][0]) if whole and last else last[0][0] if last else None
    end = int(ended[-1][1]) if whole and ended else ended[-1][1] if ended else None
    left_out = rng.choice([0.0, 0.0, 0.3])
    if rng.random() < left_out:
        start = None
    if rng.random() < left_out:
        end = None
    if rng.random() < left_out and status is not CrawlStatus.ERROR:
        status = CrawlStatus.UNKNOWN
    return seen(start, end, status, frequency=rng.choice([None, HOUR]))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**63), st.booleans(), st.booleans())
def test_no_crawl_is_counted_that_did_not_begin_after_the_instant_and_end_by_now(
    seed: int, at_begin: bool, whole: bool
) -> None:
    rng = Random(seed)
    crawls = true_crawls(rng)
    skew = rng.choice([0.0, -7200.0, 300.0])
    known_now: Crawls | None = None
    now = rng.random() * 100
    for _ in range(rng.randint(1, 40)):
        told = as_told(crawls, now, rng, at_begin=at_begin, whole=whole)
        date = at(int(now + skew))
        theirs = told.in_ledger_time(-skew)
        asked = now - rng.choice([0.0, 0.2, 20.0]) * rng.random()
        known_now = observe(known_now, theirs.in_ledger_time(ahead_of(date, at(asked))), at(now))
        for instant in (rng.random() * now, *(begin for begin, _, _ in crawls if begin <= now)):
            true = sum(begin > instant and end <= now and how == "done" for begin, end, how in crawls)
            assert true >= crawls_since(known_now, at(instant))
        now += rng.choice([1.0, 30.0, 30.0, 1800.0]) * rng.random()


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(1, 300), st.floats(0, 29))
@example(2, 1.0, 0.0)
def test_crawls_that_last_longer_than_a_look_apart_are_all_counted(count: int, length: float, offset: float) -> None:
    crawls: Crawls | None = None
    now, found = offset, set()
    while now < count * HOUR:
        begin = HOUR * int(now // HOUR)
        over = now >= begin + length
        end = begin + length if over else begin - HOUR + length
        status = CrawlStatus.ENABLED if over else CrawlStatus.IN_PROGRESS
        crawls = observe(crawls, seen(begin, end, status), at(now))
        found |= {crawls.began_at} if crawls and crawls.began_at else set()
        now += 30.0

    assert count == len(found)


# ---- two clocks


@pytest.mark.parametrize(
    ("expected", "date", "asked"),
    [
        (1.0, 0.0, 0.0),
        (3.0, 2.0, 0.0),
        (-1.5, 0.0, 2.5),
        (0.0, 86_400.0, 0.0),
        (0.0, -1e9, 0.0),
        (86_400.0, 86_399, 0),
    ],
)
def test_a_date_tells_the_most_that_trackstars_clock_may_be_ahead(expected: float, date: float, asked: float) -> None:
    assert expected == ahead_of(at(date), at(asked))


def test_without_a_date_the_clocks_are_taken_to_agree() -> None:
    assert 0.0 == ahead_of(None, NOON)


def test_instants_are_turned_into_the_ledgers_time_and_what_is_missing_stays_so() -> None:
    turned = Schedule(at(100), None, HOUR).in_ledger_time(40.0)

    assert Schedule(at(60), None, HOUR, ahead=40.0) == turned


# ---- what comes


CRAWLS = known((seen(0, LENGTH), 400))


@pytest.mark.parametrize(
    ("first", "second", "after"),
    [
        (300, 3900, -1),
        (3900, 7500, 0),
        (3900, 7500, 3599),
        (7500, 11_100, 3600),
        (7500, 11_100, 3601),
        (36_300, 39_900, 35_999),
    ],
)
def test_the_next_crawls_end_a_period_and_a_length_after_the_last_began(first: int, second: int, after: int) -> None:
    assert at(first) == CRAWLS.next_end(at(after))
    assert at(second) == CRAWLS.end_of_second(at(after))


def test_a_running_crawl_is_one_of_the_next() -> None:
    crawls = known((seen(0, LENGTH), 400), (running(2000, LENGTH), 2010))

    assert (at(2300), at(5900)) == (crawls.next_end(at(1999)), crawls.end_of_second(at(1999)))
    assert (at(300), at(2300)) == (crawls.next_end(at(-1)), crawls.end_of_second(at(-1)))
    assert at(5900) == crawls.next_end(at(2000))


@pytest.mark.parametrize("schedule", [seen(0, 300, frequency=None), running(0, None), seen(None, 300)])
def test_without_a_begin_or_a_frequency_no_end_is_expected(schedule: Schedule) -> None:
    crawls = known((schedule, 400))

    assert crawls.next_end(at(0)) is None
    assert crawls.end_of_second(at(0)) is None


@pytest.mark.parametrize(("overdue", "now"), [(False, 7500.0), (True, 7500.1)])
def test_two_periods_and_a_length_without_a_crawl_are_too_long(overdue: bool, now: float) -> None:
    crawls = known((seen(0, LENGTH), 400), (seen(0, LENGTH), now))

    assert overdue is crawls.overdue(at(now))
    assert ("crawls_overdue" if overdue else None) == broken(crawls, at(now))


def test_crawls_that_begin_and_never_complete_are_overdue_too() -> None:
    assert known((seen(0, LENGTH), 400), (running(7200, LENGTH), 7600)).overdue(at(7600))


def test_a_first_crawl_that_runs_for_two_periods_is_overdue() -> None:
    assert [False, True] == [known((running(0, None), now)).overdue(at(now)) for now in (7200, 7201)]


def test_an_end_counts_where_no_begin_is_told() -> None:
    assert [False, True] == [known((seen(None, 300), now)).overdue(at(now)) for now in (7500, 7501)]


def test_whoever_has_not_asked_for_long_has_missed_no_crawl() -> None:
    assert not CRAWLS.overdue(at(1_000_000))


def test_without_a_frequency_nothing_is_overdue() -> None:
    assert not known((seen(0, 300, frequency=None), 1_000_000)).overdue(at(1_000_000))


def test_crawls_that_are_disabled_or_in_error_are_broken_and_those_that_run_are_not() -> None:
    found = {status: broken(known((seen(0, 300, status), 400)), at(400)) for status in CrawlStatus}

    assert {
        CrawlStatus.ENABLED: None,
        CrawlStatus.DISABLED: "crawls_disabled",
        CrawlStatus.IN_PROGRESS: None,
        CrawlStatus.ERROR: "crawls_failing",
        CrawlStatus.UNKNOWN: None,
    } == found
    assert broken(None, NOON) is None


# ---- what is forced


@pytest.mark.parametrize(
    ("forced", "now"),
    [(True, 400), (True, 3479), (False, 3480), (False, 3600), (False, 3719), (True, 3720), (False, 7080)],
)
def test_a_crawl_is_forced_where_none_is_due_within_two_minutes(forced: bool, now: int) -> None:
    assert forced is needs_forcing(CRAWLS, at(now))


@pytest.mark.parametrize("crawls", [None, known((seen(0, 300, frequency=None), 400)), known((seen(None, 300), 400))])
def test_a_crawl_is_forced_where_nothing_is_known_of_the_next(crawls: Crawls | None) -> None:
    assert needs_forcing(crawls, at(3600))


@pytest.mark.parametrize("status", [CrawlStatus.DISABLED, CrawlStatus.ERROR])
def test_a_crawl_is_forced_where_none_comes_by_itself(status: CrawlStatus) -> None:
    assert needs_forcing(known((seen(0, 300, status), 3590)), at(3590))


@pytest.mark.parametrize(
    "schedule", [running(1800, 300), running(0, 300), seen(1800, 300, CrawlStatus.UNKNOWN), running(0, None)]
)
def test_no_crawl_is_forced_while_one_is_running(schedule: Schedule) -> None:
    assert not needs_forcing(known((seen(0, 300), 400), (schedule, 1810)), at(1810))
