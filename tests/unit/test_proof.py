"""What a read proves of an order whose cancellation has ended; what is not proven has a date or a person."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from worker.cancellation.answer import Order
from worker.cancellation.freshness import Crawls, CrawlStatus, crawls_since
from worker.cancellation.lifecycle import Moment, State, Transition, decide, expire, give_up, must_read, withdraw
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.policy import Policy
from worker.cancellation.proof import (
    PASSING,
    READ_SECONDS,
    Confirmation,
    NeedsPerson,
    Prospect,
    Unproven,
    confirm,
    foresee,
    known_by_at_the_latest,
    next_read_back,
    prospect,
)
from worker.cancellation.status import FINAL, Evidence, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

anything_goes = settings(deadline=None)

ENDED = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = Policy()
HOUR, DAY = 3600.0, 86_400.0
LAST_STEP = POLICY.read_back[-1]
PROVEN = {Verdict.CANCELLED, Verdict.NOT_CANCELLED}
SEEN = {
    OrderState.CANCELLED: Order(id="A-1", status="cancelled", shipped=False, document='{"status":"cancelled"}'),
    OrderState.SHIPPED: Order(id="A-1", status="fulfilled", shipped=True, document='{"status":"fulfilled"}'),
    OrderState.OPEN: Order(id="A-1", status="open", shipped=False, document='{"status":"open"}'),
}
ACCEPTED = Unproven(verdict=Verdict.ACCEPTED, evidence=Evidence.RESPONSE, ended_at=ENDED)
REPLAYED = structs.replace(ACCEPTED, evidence=Evidence.REPLAYED_RESPONSE)
UNKNOWN = Unproven(verdict=Verdict.UNKNOWN, evidence=None, ended_at=ENDED)
CANCELLED = Unproven(verdict=Verdict.CANCELLED, evidence=Evidence.RESPONSE, ended_at=ENDED, as_of=ENDED)
not_proven = pytest.mark.parametrize("known", [ACCEPTED, REPLAYED, UNKNOWN], ids=["accepted", "replayed", "unknown"])


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def at(count: float) -> datetime:
    """Return the moment so many seconds after the end."""
    return ENDED + seconds(count)


def crawls(*began: float, **changes: Any) -> Crawls:
    """Return what is known of an hourly crawl that takes two minutes: begins of those completed, seen from the end."""
    before, latest = [None, None, *(at(each) for each in began)][-2:]
    told = {"began_at": latest, "before_began_at": before, "frequency": HOUR, "length": 120.0}
    return Crawls(**{**told, "status": CrawlStatus.ENABLED, "seen_at": at(0), **changes})


def read(shows: OrderState, **fields: Any) -> ReadBack:
    return ReadBack(**{"shows": shows, "reason": f"read_{shows}", "order": SEEN.get(shows)} | fields)


def found(
    known: Unproven, shows: OrderState, passed: float, of: Crawls | None = None, policy: Policy = POLICY, **fields: Any
) -> Confirmation:
    return confirm(known, read(shows, **fields), now=at(passed), crawls=of, policy=policy)


# ---- the times to read back


@pytest.mark.parametrize(
    ("expected", "passed"),
    [(120, 0), (120, 119.9), (900, 120), (900, 899), (4200, 900), (None, 4200), (None, 10**6)],
)
def test_an_unproven_end_is_read_back_after_2_15_and_70_minutes(expected: float | None, passed: float) -> None:
    assert (None if expected is None else at(expected)) == next_read_back(ENDED, at(passed), POLICY)


# ---- proof at any age

OF_ANY_KIND = [None, crawls(), crawls(-600), crawls(1, 2), crawls(status=CrawlStatus.DISABLED)]


@not_proven
@pytest.mark.parametrize("of", OF_ANY_KIND)
@pytest.mark.parametrize("passed", [0.0, 120.0, LAST_STEP, 30 * DAY])
def test_a_read_that_shows_the_order_cancelled_is_proof_at_any_age(
    known: Unproven, of: Crawls | None, passed: float
) -> None:
    expected = Confirmation(
        verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, as_of=at(passed), order=SEEN[OrderState.CANCELLED]
    )

    assert expected == found(known, OrderState.CANCELLED, passed, of)


@not_proven
@pytest.mark.parametrize("of", OF_ANY_KIND)
@pytest.mark.parametrize("passed", [0.0, 120.0, LAST_STEP, 30 * DAY])
def test_goods_that_left_are_proof_at_any_age_and_contradict_only_a_yes(
    known: Unproven, of: Crawls | None, passed: float
) -> None:
    expected = Confirmation(
        verdict=Verdict.NOT_CANCELLED,
        evidence=Evidence.READ_BACK,
        as_of=at(passed),
        order=SEEN[OrderState.SHIPPED],
        contradicted=known.verdict is Verdict.ACCEPTED,
    )

    assert expected == found(known, OrderState.SHIPPED, passed, of)


# ---- an order that is still open


@pytest.mark.parametrize(
    ("expected", "of"),
    [
        pytest.param(False, crawls(-7200, -3600), id="none has begun since"),
        pytest.param(False, crawls(-1, 0), id="one began just then"),
        pytest.param(False, crawls(-1, 5), id="one is not enough: it may miss what is applied late"),
        pytest.param(False, crawls(-1, 5, running_since=at(3605)), id="one, and one that is running"),
        pytest.param(True, crawls(1, 5), id="two have begun since"),
        pytest.param(True, crawls(1, 5, status=CrawlStatus.DISABLED), id="two, and no more will come"),
        pytest.param(True, crawls(1, 5, status=CrawlStatus.ERROR), id="two, and the next failed"),
        pytest.param(True, crawls(1, 5, status=CrawlStatus.IN_PROGRESS), id="two, and the next is running"),
    ],
)
def test_an_open_order_was_not_cancelled_once_two_crawls_have_begun_after_the_end(expected: bool, of: Crawls) -> None:
    seen = found(UNKNOWN, OrderState.OPEN, 7000, of)

    proof = (Verdict.NOT_CANCELLED, Evidence.FRESH_READ_BACK, None, None, None)
    assert expected is (
        proof == (seen.verdict, seen.evidence, seen.confirm_at, seen.known_by, seen.needs_person)
    )  # fmt: skip
    assert expected is (seen.verdict is not Verdict.UNKNOWN)


def test_an_open_order_is_known_as_of_the_first_of_two_crawls_for_the_second_may_have_missed_the_rest() -> None:
    assert at(5) == found(UNKNOWN, OrderState.OPEN, 7000, crawls(5, 3605)).as_of


def test_what_is_known_of_a_copy_counts_from_the_end_of_our_request_and_not_from_its_begin() -> None:
    during = crawls(-20, -10)  # our request began before both, and had not ended
    known = structs.replace(UNKNOWN, ended_at=ENDED)

    assert Verdict.UNKNOWN is found(known, OrderState.OPEN, 7000, during).verdict
    begun = structs.replace(UNKNOWN, ended_at=ENDED - seconds(30))
    assert Verdict.NOT_CANCELLED is found(begun, OrderState.OPEN, 7000, during).verdict


NO_DATA = {
    "nothing": None,
    "nothing but that it was asked": Crawls(seen_at=ENDED),
    "no status": crawls(1, 2, status=CrawlStatus.UNKNOWN),
    "no period": crawls(1, 2, frequency=None),
    "no crawl": crawls(),
}


@pytest.mark.parametrize("of", NO_DATA.values(), ids=NO_DATA)
@pytest.mark.parametrize(
    ("expected", "passed", "read_next"),
    [
        (Verdict.UNKNOWN, 120.0, 900.0),
        (Verdict.UNKNOWN, LAST_STEP - 1, LAST_STEP),
        (Verdict.NOT_CANCELLED, LAST_STEP, None),
    ],
)
def test_where_nobody_tells_of_crawls_the_last_step_of_the_ladder_decides(
    expected: Verdict, passed: float, read_next: float | None, of: Crawls | None
) -> None:
    seen = found(UNKNOWN, OrderState.OPEN, passed, of)

    assert (expected, at(read_next) if read_next else None) == (seen.verdict, seen.confirm_at)
    assert (at(LAST_STEP + READ_SECONDS) if read_next else None) == seen.known_by
    if expected is Verdict.NOT_CANCELLED:
        assert ENDED < (seen.as_of or ENDED) < at(passed)  # of an hourly copy


def test_the_ladder_of_a_connection_that_was_slower_once_ends_as_much_later() -> None:
    daily = crawls(-600, frequency=DAY, status=CrawlStatus.UNKNOWN)
    end = LAST_STEP + DAY - HOUR

    early = found(UNKNOWN, OrderState.OPEN, LAST_STEP, daily)
    assert (Verdict.UNKNOWN, at(end), at(end + READ_SECONDS)) == (early.verdict, early.confirm_at, early.known_by)
    assert Verdict.NOT_CANCELLED is found(UNKNOWN, OrderState.OPEN, end, daily).verdict


@pytest.mark.parametrize("status", [CrawlStatus.DISABLED, CrawlStatus.ERROR], ids=str)
@pytest.mark.parametrize("frequency", [None, HOUR], ids=["no period", "hourly"])
def test_no_time_decides_where_trackstar_says_that_no_crawl_comes(
    status: CrawlStatus, frequency: float | None
) -> None:
    none_comes = crawls(-600, status=status, frequency=frequency)

    assert Verdict.UNKNOWN is found(UNKNOWN, OrderState.OPEN, 30 * DAY, none_comes).verdict


@pytest.mark.parametrize(
    ("expected", "of"),
    [
        pytest.param(7200 - 600 + 120, crawls(-4200, -600), id="the second that begins after the end"),
        pytest.param(3605 + 120, crawls(-600, 5), id="the next, where one has begun since"),
        pytest.param(7200 - 600 + 900, crawls(-600, length=900.0), id="with its usual length"),
        pytest.param(2 * 60 - 30 + 120, crawls(-30, frequency=60.0), id="or sooner, where crawls come each minute"),
    ],
)
def test_what_waits_for_crawls_is_known_when_the_second_has_ended_and_was_read(expected: float, of: Crawls) -> None:
    seen = found(ACCEPTED, OrderState.OPEN, 10, of)

    assert at(expected + READ_SECONDS) == seen.known_by
    assert min(at(120), at(expected + READ_SECONDS)) == seen.confirm_at


def test_a_crawl_that_is_late_is_waited_for_a_quarter_of_its_period_more() -> None:
    end = 5 + HOUR + 120  # of the second, where one has begun since
    late = crawls(-3595, 5, seen_at=at(end + 1200))
    known = structs.replace(UNKNOWN, known_by=at(end + READ_SECONDS))

    waits = [found(known, OrderState.OPEN, end + passed, late).known_by for passed in (1, 600, 899, 900, 1200)]
    assert [at(end + seconds + READ_SECONDS) for seconds in (900, 900, 900, 1800, 1800)] == waits


@pytest.mark.parametrize("shows", [OrderState.LATER, OrderState.NO_ACCESS], ids=str)
@pytest.mark.parametrize("of", [None, crawls(-600), crawls(-600, 5), crawls(1, 5)])
def test_reads_that_fail_every_minute_do_not_move_every_minute_by_when_it_is_known(
    shows: OrderState, of: Crawls | None
) -> None:
    known, told = UNKNOWN, set()
    for minute in range(1, 61):
        then = found(known, shows, LAST_STEP + 60 * minute, of and structs.replace(of, seen_at=at(0)))
        told.add(then.known_by)
        known = structs.replace(known, known_by=then.known_by)

    assert len(told) <= 6


@pytest.mark.parametrize(("expected", "told"), [(6780, None), (6725, 6725), (6780, 6719), (6780, 6781)])
def test_an_instant_that_was_told_is_kept_where_the_new_one_is_hardly_later(
    expected: float, told: float | None
) -> None:
    known = structs.replace(UNKNOWN, known_by=None if told is None else at(told))

    assert at(expected) == found(known, OrderState.OPEN, 1000, crawls(-600)).known_by
    assert at(expected) == foresee(known, at(1000), crawls(-600), POLICY, held=False).known_by


@pytest.mark.parametrize("passed", [3731, 3740, 3789])
def test_once_the_second_crawl_has_ended_the_instant_that_was_told_stays_until_it_is_read(passed: float) -> None:
    ends = 3610 + 120.0
    known = structs.replace(UNKNOWN, known_by=at(ends + READ_SECONDS))

    then = foresee(known, at(passed), crawls(10, 3610, seen_at=at(passed)), POLICY, held=False)
    assert (at(passed), known.known_by) == (then.confirm_at, then.known_by)


# ---- a person


@not_proven
@pytest.mark.parametrize(
    ("expected", "of"),
    [
        pytest.param("crawls_disabled", crawls(-600, status=CrawlStatus.DISABLED), id="disabled"),
        pytest.param("crawls_disabled", Crawls(status=CrawlStatus.DISABLED, seen_at=ENDED), id="and never was one"),
        pytest.param("crawls_failing", crawls(-600, status=CrawlStatus.ERROR), id="failing"),
        pytest.param("crawls_overdue", crawls(-600, seen_at=at(7000)), id="two periods without one"),
    ],
)
@pytest.mark.parametrize("shows", [OrderState.OPEN, OrderState.ABSENT, OrderState.UNREADABLE], ids=str)
def test_where_no_crawl_comes_a_person_is_asked_and_it_is_still_read(
    known: Unproven, expected: str, of: Crawls, shows: OrderState
) -> None:
    seen = found(known, shows, 7000 - LAST_STEP, structs.replace(of, seen_at=max(of.seen_at, at(0))))
    late = found(known, shows, 7000, of)

    assert (known.verdict, expected, None) == (late.verdict, late.needs_person, late.known_by)
    assert seen.confirm_at is not None


SETTLED_BY_A_PERSON = {
    (OrderState.OPEN, Verdict.ACCEPTED): "accepted_but_open",  # a warehouse may apply it late
    (OrderState.ABSENT, Verdict.ACCEPTED): "order_not_in_copy",
    (OrderState.ABSENT, Verdict.UNKNOWN): "order_not_in_copy",
    (OrderState.UNREADABLE, Verdict.ACCEPTED): "unreadable",
    (OrderState.UNREADABLE, Verdict.UNKNOWN): "unreadable",
}


@pytest.mark.parametrize(("shows", "verdict"), SETTLED_BY_A_PERSON, ids=str)
@pytest.mark.parametrize(("of", "passed"), [(crawls(1, 5), 600), (None, LAST_STEP)], ids=["two crawls", "last step"])
def test_what_a_fresh_copy_does_not_settle_is_for_a_person_and_not_read_again(
    shows: OrderState, verdict: Verdict, of: Crawls | None, passed: float
) -> None:
    seen = found(structs.replace(UNKNOWN, verdict=verdict), shows, passed, of)

    assert (verdict, SETTLED_BY_A_PERSON[shows, verdict]) == (seen.verdict, seen.needs_person)
    assert (None, None) == (seen.confirm_at, seen.known_by)


def test_what_a_person_was_asked_is_still_proven_by_what_changes_later() -> None:
    asked = structs.replace(ACCEPTED, needs_person=NeedsPerson.ACCEPTED_BUT_OPEN)

    assert Verdict.CANCELLED is found(asked, OrderState.CANCELLED, DAY, crawls(1, 5)).verdict
    assert found(asked, OrderState.SHIPPED, DAY, crawls(1, 5)).contradicted


def test_each_reason_for_a_person_is_in_the_runbook_with_what_to_do() -> None:
    runbook = (Path(__file__).resolve().parents[2] / "ops" / "runbook.md").read_text()

    assert [] == [reason for reason in NeedsPerson if f"| `{reason}` |" not in runbook]


# ---- a read that failed


def test_a_read_that_failed_moves_no_instant_that_still_lies_ahead() -> None:
    told = structs.replace(UNKNOWN, known_by=at(LAST_STEP + READ_SECONDS))
    early = [
        found(told, OrderState.LATER, LAST_STEP + passed, spends_attempt=False).known_by for passed in (-1, 1, 57)
    ]
    late = found(told, OrderState.LATER, LAST_STEP + READ_SECONDS, spends_attempt=False).known_by

    assert [told.known_by] * 3 == early
    assert late is not None
    assert at(LAST_STEP + READ_SECONDS) < late


@not_proven
@pytest.mark.parametrize("shows", [OrderState.LATER, OrderState.NO_ACCESS], ids=str)
@pytest.mark.parametrize(("expected", "retry_after"), [(60, None), (60, 1.0), (90, 90.0), (900, 900.0)], ids=str)
@pytest.mark.parametrize("of", [None, crawls(-600), crawls(1, 5), crawls(status=CrawlStatus.DISABLED)])
def test_a_read_that_failed_changes_nothing_and_is_asked_again_when_the_server_asks_and_known_after_that(
    known: Unproven, shows: OrderState, expected: float, retry_after: float | None, of: Crawls | None
) -> None:
    seen = found(known, shows, LAST_STEP, of, retry_after=retry_after)

    assert (known.verdict, known.evidence, at(LAST_STEP + expected)) == (seen.verdict, seen.evidence, seen.confirm_at)
    assert seen.needs_person or (seen.known_by or ENDED) >= at(LAST_STEP + expected + READ_SECONDS)


def test_a_read_for_which_there_is_no_room_is_asked_again_soon() -> None:
    crowded = found(UNKNOWN, OrderState.LATER, 120, reason="read_paced", spends_attempt=False)

    assert at(122) == crowded.confirm_at


@pytest.mark.parametrize(
    ("expected", "shows"), [("unreadable", OrderState.LATER), ("no_access", OrderState.NO_ACCESS)], ids=str
)
def test_reads_that_always_fail_end_with_the_horizon_and_a_person(expected: str, shows: OrderState) -> None:
    seen = found(UNKNOWN, shows, POLICY.retry_horizon - 60)

    assert (Verdict.UNKNOWN, None, None, expected) == (
        seen.verdict, seen.confirm_at, seen.known_by, seen.needs_person,
    )  # fmt: skip


# ---- a proof


@pytest.mark.parametrize(
    ("expected", "of", "passed"),
    [
        pytest.param(Verdict.CANCELLED, crawls(-600), 7000, id="the copy is older than the proof"),
        pytest.param(Verdict.CANCELLED, crawls(-600, 0), 7000, id="or as old"),
        pytest.param(Verdict.NOT_CANCELLED, crawls(-600, 1), 7000, id="the copy is younger"),
        pytest.param(Verdict.NOT_CANCELLED, crawls(1, 5), 14 * DAY, id="days later too"),
        pytest.param(Verdict.CANCELLED, None, HOUR, id="nobody tells of crawls, and it is within the hour"),
        pytest.param(Verdict.NOT_CANCELLED, None, HOUR + 1, id="nobody tells of crawls, and the hour is over"),
        pytest.param(Verdict.CANCELLED, crawls(running_since=at(1)), DAY, id="none has completed"),
        pytest.param(Verdict.CANCELLED, Crawls(status=CrawlStatus.DISABLED, seen_at=at(1)), DAY, id="none comes"),
    ],
)
def test_a_cancelled_order_is_contradicted_only_by_a_copy_that_is_younger(
    expected: Verdict, of: Crawls | None, passed: float
) -> None:
    seen = found(CANCELLED, OrderState.SHIPPED, passed, of)

    fell = expected is Verdict.NOT_CANCELLED
    assert (expected, fell) == (seen.verdict, seen.contradicted)
    assert (Evidence.READ_BACK if fell else Evidence.RESPONSE) == seen.evidence


@pytest.mark.parametrize("shows", sorted(set(OrderState) - {OrderState.CANCELLED, OrderState.SHIPPED}), ids=str)
@pytest.mark.parametrize(
    "known", [CANCELLED, structs.replace(CANCELLED, verdict=Verdict.NOT_CANCELLED, evidence=Evidence.REFUSAL)]
)
def test_nothing_else_that_a_read_shows_changes_a_proof(known: Unproven, shows: OrderState) -> None:
    unchanged = Confirmation(verdict=known.verdict, evidence=known.evidence, as_of=known.as_of)

    assert [unchanged] * 2 == [found(known, shows, 7000, of) for of in (None, crawls(1, 5))]


# ---- whatever is known of crawls, and whatever is read

statuses = st.sampled_from(CrawlStatus)
instants = st.none() | st.floats(-2 * DAY, 2 * DAY).map(at)


@st.composite
def what_is_known_of_crawls(draw: st.DrawFn) -> Crawls | None:
    if draw(st.integers(0, 9)) == 0:
        return None
    first, second = sorted((draw(instants) or ENDED, draw(instants) or ENDED))
    both, one = draw(st.booleans()), draw(st.booleans())
    return Crawls(
        began_at=second if one or both else None,
        before_began_at=first if both and first < second else None,
        running_since=draw(instants),
        frequency=draw(st.none() | st.floats(60.0, 7 * DAY)),
        length=draw(st.floats(0.0, HOUR)),
        status=draw(statuses),
        seen_at=draw(instants) or ENDED,
    )


reads = st.builds(
    read,
    st.sampled_from(OrderState),
    retry_after=st.none() | st.floats(0.0, 3600.0),
    spends_attempt=st.booleans(),
)
knowns = st.sampled_from([ACCEPTED, REPLAYED, UNKNOWN])
times = st.floats(0.0, 3 * DAY)


@anything_goes
@given(knowns | st.just(CANCELLED), reads, times, what_is_known_of_crawls())
def test_a_verdict_only_rises_but_for_goods_that_left(
    known: Unproven, seen: ReadBack, passed: float, of: Crawls | None
) -> None:
    then = confirm(known, seen, now=at(passed), crawls=of, policy=POLICY)

    if then.verdict != known.verdict:
        assert then.verdict in PROVEN
        assert then.evidence in {Evidence.READ_BACK, Evidence.FRESH_READ_BACK}
    if known.verdict is Verdict.CANCELLED and then.verdict is not Verdict.CANCELLED:
        assert (OrderState.SHIPPED, Verdict.NOT_CANCELLED, True) == (seen.shows, then.verdict, then.contradicted)
    if then.verdict not in PROVEN:
        assert (known.verdict, known.evidence) == (then.verdict, then.evidence)


@anything_goes
@given(knowns, times, what_is_known_of_crawls())
def test_an_open_order_proves_something_only_after_two_crawls_or_where_nobody_tells_of_any(
    known: Unproven, passed: float, of: Crawls | None
) -> None:
    then = found(known, OrderState.OPEN, passed, of)

    if then.verdict is Verdict.NOT_CANCELLED:
        assert Evidence.FRESH_READ_BACK is then.evidence
        assert Verdict.UNKNOWN is known.verdict
        assert then.as_of is not None
        assert ENDED < then.as_of
        nobody_tells = of is None or not (of.known or of.status in {CrawlStatus.DISABLED, CrawlStatus.ERROR})
        assert passed >= LAST_STEP if nobody_tells else 2 == crawls_since(of, ENDED)
    assert then.verdict is not Verdict.CANCELLED


# ---- the walk: there is no third way


def assert_settled(then: Transition | Confirmation, now: datetime) -> None:
    """What has ended is proven, or has an instant in the future by which it was read, or a person."""
    proven = then.verdict in PROVEN
    assert 1 == proven + (then.known_by is not None) + (then.needs_person is not None), then
    assert then.as_of is not None or not proven
    if proven:
        assert then.confirm_at is None
    if then.known_by is not None:
        assert now < then.known_by
        assert then.confirm_at is not None
        assert now < then.confirm_at <= then.known_by


def assert_dated(state: State, then: Transition, now: datetime) -> None:
    """What has not ended is known by then at the latest."""
    latest = known_by_at_the_latest(
        received_at=state.received_at or state.first_sent_at,
        first_sent_at=state.first_sent_at,
        send_by=state.send_by,
        stands_still=then.hold_connection,
        now=now,
        policy=POLICY,
    )
    assert latest is not None
    assert now < latest
    assert then.needs_person is None
    assert (then.known_by is not None) is (then.reason == "order_not_found_yet")
    assert then.known_by is None or now < then.known_by


def of_every_kind(now: datetime) -> list[Crawls | None]:
    """Return what may be known of crawls at this moment; `now` is also when Trackstar was asked."""

    def known(*began: datetime, **changes: Any) -> Crawls:
        before, latest = [None, None, *began][-2:]
        told: dict[str, Any] = {"began_at": latest, "before_began_at": before, "frequency": HOUR, "length": 120.0}
        return Crawls(**{**told, "status": CrawlStatus.ENABLED, "seen_at": now, **changes})

    old = ENDED - seconds(600)
    since = [ENDED + (now - ENDED) / 3, ENDED + (now - ENDED) / 2]
    return [
        None,
        Crawls(seen_at=now),
        known(old, status=CrawlStatus.UNKNOWN),
        known(old, status=CrawlStatus.UNKNOWN, frequency=DAY),
        known(old, frequency=None),
        known(running_since=now, status=CrawlStatus.IN_PROGRESS),
        *(known(old, status=status) for status in (CrawlStatus.DISABLED, CrawlStatus.ERROR)),
        Crawls(status=CrawlStatus.DISABLED, seen_at=now),
        known(now - seconds(3 * HOUR)),  # overdue
        known(now - seconds(300)),
        known(now - seconds(7 * HOUR), frequency=DAY),
        known(old, since[1]),
        known(*since),
        known(*since, status=CrawlStatus.DISABLED),
    ]


READS = [
    *(read(shows) for shows in OrderState),
    read(OrderState.LATER, retry_after=900.0),
    read(OrderState.LATER, spends_attempt=False),
]
OUTCOMES = [
    *(Outcome(kind=Kind.ACCEPTED, reason="accepted", order=order) for order in (None, *SEEN.values())),
    *(
        Outcome(kind=Kind.REFUSED, reason=reason, read_first=read_first)
        for reason, read_first in product(("refused", "order_not_found"), (False, True))
    ),
    Outcome(kind=Kind.IN_DOUBT, reason="not_json", read_first=True),
    *(Outcome(kind=kind, reason="other") for kind in sorted(set(Kind) - {Kind.ACCEPTED, Kind.REFUSED})),
    Outcome(kind=Kind.SLOW_DOWN, reason="rate_limited", retry_after=120.0),  # type: ignore[arg-type]
]


def states() -> Iterator[State]:
    """Yield every kind of state that a claim finds; its first request may have been long ago."""
    for age, send_by, doubt, unread in product((0.0, HOUR, DAY), (None, 0.0, HOUR), (False, True), (False, True)):
        yield State(
            attempts=1,
            first_sent_at=ENDED - seconds(age),
            received_at=ENDED - seconds(2 * age),
            send_by=None if send_by is None else at(send_by),
            verdict=Verdict.UNKNOWN if doubt or unread else None,
            evidence=Evidence.REFUSAL if unread else None,
        )


def decisions() -> Iterator[tuple[State, Transition]]:
    """Yield every decision at the moment ENDED."""
    for state, of in product(states(), of_every_kind(ENDED)):
        moment = Moment(now=ENDED, policy=POLICY, crawls=of, jitter=0.5)
        for ends in (expire, give_up, withdraw):
            if (then := ends(state, moment)) is not None:
                yield state, then
        for outcome in [state.remembered_refusal] if state.awaits_read else OUTCOMES:
            for seen in READS if must_read(state, outcome) else [None]:
                yield state, decide(state, outcome, seen, moment)


def unproven(then: Transition | Confirmation) -> Unproven:
    assert then.verdict is not None
    return Unproven(
        verdict=then.verdict,
        evidence=then.evidence,
        ended_at=ENDED,
        as_of=then.as_of,
        known_by=then.known_by,
        needs_person=then.needs_person,
    )


def foreseen(known: Unproven, then: Prospect, confirm_at: datetime | None) -> Confirmation:
    """Return what the ledger keeps after it was said anew by when it is known."""
    return Confirmation(
        verdict=known.verdict,
        evidence=known.evidence,
        as_of=known.as_of,
        confirm_at=confirm_at or then.confirm_at,
        known_by=then.known_by,
        needs_person=then.needs_person,
    )


def steps(known: Unproven, now: datetime) -> Iterator[Confirmation]:
    """Yield what may follow at this moment: a read, or that what is known of crawls or of access has changed."""
    for of in of_every_kind(now):
        for seen in READS:
            yield confirm(known, seen, now=now, crawls=of, policy=POLICY)
        if known.known_by is not None or known.needs_person in PASSING:
            yield foreseen(known, foresee(known, now, of, POLICY, held=False), None)
            if (known.known_by or now) <= now:
                yield foreseen(known, foresee(known, now, of, POLICY, held=True), None)


WALKED = [at(passed) for passed in (1, 121, 901, LAST_STEP, 3 * HOUR, DAY + 1, 15 * DAY)]


def test_every_state_that_can_be_reached_is_proven_or_has_a_date_or_a_person() -> None:
    ways: dict[object, Unproven] = {}
    for state, then in decisions():
        if then.status not in FINAL:
            assert_dated(state, then, ENDED)
            continue
        assert_settled(then, ENDED)
        ways[_kind_of(then)] = unproven(then)
    reached = set(ways)
    for now in WALKED:  # from all that was reached so far, whatever came before
        for known in list(ways.values()):
            for then in steps(known, now):
                assert_settled_after(then, now)
                ways.setdefault(_kind_of(then), unproven(then))
        reached |= set(ways)

    ended = {(verdict, person) for verdict, _, _, person in reached}
    assert {(verdict, None) for verdict in Verdict} < ended
    assert {Verdict.ACCEPTED, Verdict.UNKNOWN} == {verdict for verdict, person in ended if person}
    # What was never sent and stands still is not ended.
    assert set(NeedsPerson) - {NeedsPerson.CONNECTION_HELD} == {person for _, person in ended if person}


def assert_settled_after(then: Confirmation, now: datetime) -> None:
    if then.confirm_at == now:  # foreseen, and due
        then = structs.replace(then, confirm_at=now + seconds(1))
    assert_settled(then, now)


def _kind_of(then: Transition | Confirmation) -> tuple[Verdict | None, Evidence | None, bool, NeedsPerson | None]:
    return then.verdict, then.evidence, then.known_by is not None, then.needs_person


@anything_goes
@given(
    st.sampled_from([ACCEPTED, UNKNOWN]),
    st.lists(
        st.tuples(times, reads, what_is_known_of_crawls(), st.sampled_from(["read", "open", "held"])), max_size=8
    ),
    st.booleans(),
)
def test_however_reads_and_crawls_come_what_is_not_proven_has_a_date_or_a_person(
    known: Unproven, way: list[tuple[float, ReadBack, Crawls | None, str]], none_told: bool
) -> None:
    for passed, seen, of, step in sorted(way, key=lambda each: each[0]):
        now, known_crawls = at(passed), None if none_told else of
        waits = known.known_by is not None or known.needs_person in PASSING
        if step == "read":
            then = confirm(known, seen, now=now, crawls=known_crawls, policy=POLICY)
        elif waits:
            then = foreseen(known, foresee(known, now, known_crawls, POLICY, held=step == "held"), None)
        else:
            continue
        assert_settled_after(then, now)
        known = unproven(then)


@pytest.mark.parametrize("reason", sorted(PASSING), ids=str)
def test_a_reason_for_a_person_that_passes_goes_away_when_crawls_come_again(reason: NeedsPerson) -> None:
    asked = structs.replace(UNKNOWN, needs_person=reason)
    now = at(3 * HOUR)
    healthy = crawls(2 * HOUR, 3 * HOUR - 300, seen_at=now)

    then = foresee(asked, now, healthy, POLICY, held=False)
    assert (None, True) == (then.needs_person, (then.known_by or now) > now)
    assert Verdict.NOT_CANCELLED is found(asked, OrderState.OPEN, 3 * HOUR, healthy).verdict


@pytest.mark.parametrize(("expected", "known_by"), [("no_access", None), ("no_access", at(99)), (None, at(101))])
def test_what_cannot_be_read_is_for_a_person_once_its_time_has_passed(
    expected: str | None, known_by: datetime | None
) -> None:
    waits = structs.replace(UNKNOWN, known_by=known_by)

    assert expected == foresee(waits, at(100), crawls(-600), POLICY, held=True).needs_person


# ---- what has not ended


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        pytest.param(DAY, {"first_sent_at": ENDED}, id="sent: the retry horizon"),
        pytest.param(2 * DAY, {}, id="never sent: it is sent within a horizon, and given up after another"),
        pytest.param(600, {"send_by": at(600)}, id="its send_by"),
        pytest.param(600, {"send_by": at(600), "stands_still": True}, id="its send_by, held or not"),
        pytest.param(DAY, {"first_sent_at": ENDED, "stands_still": True}, id="sent and held: it is given up"),
        pytest.param(100, {"send_by": at(50)}, id="what is past is now"),
        pytest.param(None, {"stands_still": True}, id="held and never sent: nobody can tell"),
    ],
)
def test_what_has_not_ended_is_known_when_it_has_ended_and_the_last_read_was_made(
    expected: float | None, facts: dict[str, Any]
) -> None:
    given_facts = {"received_at": ENDED, "first_sent_at": None, "send_by": None, "stands_still": False} | facts
    latest = known_by_at_the_latest(**given_facts, now=at(100), policy=POLICY)

    assert (None if expected is None else at(expected + LAST_STEP + READ_SECONDS)) == latest


@anything_goes
@given(times, what_is_known_of_crawls())
def test_a_prospect_is_in_the_future_or_a_persons(passed: float, of: Crawls | None) -> None:
    then = prospect(ENDED, at(passed), of, POLICY)

    assert (then.known_by is None) is (then.needs_person is not None)
    assert then.known_by is None or at(passed) < then.known_by
    assert then.confirm_at is None or at(passed) <= then.confirm_at
