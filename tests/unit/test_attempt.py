"""One attempt from start to finish: what is asked of Trackstar, what is kept as evidence, and what follows."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs
from unit.fakes import (
    NO_ANSWER,
    NOW,
    TOKEN,
    UNREADABLE,
    WAREHOUSE,
    Paces,
    Trackstar,
    confirm_claim,
    make_context,
    monotonic_ago,
    refusal_claim,
    reply,
    send_claim,
)

from worker.cancellation.answer import Reply
from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.lifecycle import State
from worker.cancellation.proof import Unproven
from worker.cancellation.status import Evidence, Status, Verdict
from worker.runtime.attempt import (
    MAX_IDS_PER_READ,
    AttemptContext,
    LedgerClock,
    attempt,
    batches_of_reads,
    confirm,
    read_refused,
    rescue,
)
from worker.runtime.known_crawls import KnownCrawls

if TYPE_CHECKING:
    from worker.ledger.results import AttemptResult, ConfirmResult


@pytest.fixture
def trackstar() -> Trackstar:
    return Trackstar()


@pytest.fixture
def pace() -> Paces:
    return Paces()


@pytest.fixture
def context(trackstar: Trackstar, pace: Paces) -> AttemptContext:
    return make_context(trackstar, pace)


@pytest.fixture
def clock() -> LedgerClock:
    return LedgerClock(NOW, time.monotonic())


@pytest.fixture
def late_clock(context: AttemptContext) -> LedgerClock:
    """The clock of a claim that was made so long ago that another worker may soon hold it."""
    return LedgerClock(NOW, monotonic_ago(context.start_within + 1))


def rows(result: AttemptResult | ConfirmResult) -> list[tuple[str, int | None, str]]:
    return [(row.kind, row.status, row.reason) for row in result.attempts]


def told(result: AttemptResult) -> tuple[Any, ...]:
    after = result.transition
    return after.status, after.verdict, after.evidence, after.attempts


# ---- a cancel


def test_a_yes_is_one_request_and_one_row_of_evidence(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock
) -> None:
    result = attempt(send_claim(1), clock, context)

    assert (Status.SUCCEEDED, Verdict.CANCELLED, Evidence.RESPONSE, 1) == told(result)
    assert [("cancel", 200, "accepted")] == rows(result)
    assert [("cancel", "o-1")] == trackstar.asked
    assert {TOKEN} == trackstar.tokens
    assert [("cancel", "shop-1", 200)] == pace.observed
    assert NOW <= result.attempts[0].started_at < NOW + timedelta(seconds=10)


@pytest.mark.parametrize(("expected", "generation"), [("{id}", 1), ("{id}-2", 2)])
def test_the_idempotency_key_is_the_records_id_and_another_for_each_replay(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock, expected: str, generation: int
) -> None:
    claim = send_claim(1, generation=generation)
    attempt(claim, clock, context)

    assert [expected.format(id=claim.id)] == trackstar.keys


def test_what_the_answer_was_is_kept_whole(trackstar: Trackstar, context: AttemptContext, clock: LedgerClock) -> None:
    trackstar.answer = Reply(
        status=503,
        origin="trackstar",
        body="object",
        message="be patient",
        request_id="r-1",
        replayed=True,
        retry_after=7.0,
    )
    (row,) = attempt(send_claim(1), clock, context).attempts

    assert (503, "trackstar", "be patient", "r-1", True, 7.0) == (
        row.status, row.origin, row.error, row.request_id, row.replayed, row.retry_after,
    )  # fmt: skip
    assert row.duration_ms is not None


def test_no_answer_is_a_row_too_and_in_doubt(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.answer = NO_ANSWER
    result = attempt(send_claim(1), clock, context)

    assert (Status.WAITING, Verdict.UNKNOWN, None, 1) == told(result)
    assert [("cancel", None, "read_timeout")] == rows(result)


def test_a_start_that_is_too_late_sends_nothing_and_gives_the_claim_back(
    trackstar: Trackstar, context: AttemptContext, late_clock: LedgerClock
) -> None:
    with capture_logs() as logs:
        result = attempt(send_claim(1), late_clock, context)

    assert [] == trackstar.asked
    assert (Status.WAITING, None, None, 0) == told(result)
    assert () == result.attempts
    assert result.transition.run_at is not None
    assert result.transition.run_at - late_clock.now() < timedelta(seconds=2)
    assert ["cancellation.started_too_late"] == [line["event"] for line in logs]


def test_a_start_that_is_too_late_keeps_an_old_doubt(context: AttemptContext, late_clock: LedgerClock) -> None:
    claim = send_claim(1, state=State(attempts=3, first_sent_at=NOW, verdict=Verdict.UNKNOWN))

    assert (Status.WAITING, Verdict.UNKNOWN, None, 3) == told(attempt(claim, late_clock, context))


@pytest.mark.parametrize("encrypted", [None, UNREADABLE], ids=["none", "unreadable"])
def test_without_a_token_nothing_is_asked_and_the_connection_is_held(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock, encrypted: str | None
) -> None:
    with capture_logs() as logs:
        result = attempt(send_claim(1, encrypted_token=encrypted), clock, context)

    assert [] == trackstar.asked
    assert (Status.PENDING, None, None, 0) == told(result)
    assert result.transition.hold_connection
    assert "no_access_token" == result.transition.reason
    assert () == result.attempts
    # Which connection it is and what to do, is said; never a token, in whatever form.
    assert ["connection.token_unreadable"] * (encrypted is not None) == [line["event"] for line in logs]
    assert not any(str(encrypted) in str(line) for line in logs)


# ---- a refusal is read back


def test_a_refusal_by_the_warehouse_is_read_back_in_the_same_attempt(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.answer = reply(400, WAREHOUSE)
    trackstar.orders = {"o-1": "cancelled"}
    result = attempt(send_claim(1), clock, context)

    assert (Status.SUCCEEDED, Verdict.CANCELLED, Evidence.READ_BACK, 1) == told(result)
    assert [("cancel", 400, "refused_by_warehouse"), ("read", 200, "read_cancelled")] == rows(result)
    assert [("cancel", "o-1"), ("read", "o-1")] == trackstar.asked
    assert [("cancel", "shop-1", 400), ("read", "shop-1", 200)] == pace.observed


def test_a_refusal_by_trackstar_after_doubt_is_read_back_and_one_without_doubt_is_not(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.answer = reply(422, {"error": "no", "origin": "trackstar"})
    attempt(send_claim(1), clock, context)
    attempt(send_claim(2, state=State(attempts=1, first_sent_at=NOW, verdict=Verdict.UNKNOWN)), clock, context)

    assert [("cancel", "o-1"), ("cancel", "o-2"), ("read", "o-2")] == trackstar.asked


def test_a_read_for_which_there_is_no_room_is_put_off_and_spends_no_attempt(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock
) -> None:
    pace.may_read = False
    trackstar.answer = reply(400, WAREHOUSE)
    result = attempt(send_claim(1), clock, context)

    assert (Status.WAITING, Verdict.UNKNOWN, Evidence.REFUSAL, 0) == told(result)
    assert [("cancel", 400, "refused_by_warehouse")] == rows(result)
    assert [("cancel", "o-1")] == trackstar.asked


def test_of_many_refusals_each_is_decided_after_one_request(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.orders = {"o-1": "cancelled", "o-2": "fulfilled", "o-3": "open"}
    claims = [refusal_claim(number) for number in (1, 2, 3, 4)]
    results = read_refused(claims, clock, context)

    assert [("read", ["o-1", "o-2", "o-3", "o-4"])] == trackstar.asked
    assert [("read", "shop-1", 200)] == pace.observed
    assert claims == [result.claim for result in results]
    assert [
        (Status.SUCCEEDED, Verdict.CANCELLED, Evidence.READ_BACK, 2),
        (Status.REJECTED, Verdict.NOT_CANCELLED, Evidence.READ_BACK, 2),
        (Status.REJECTED, Verdict.UNKNOWN, None, 2),
        (Status.REJECTED, Verdict.UNKNOWN, None, 2),
    ] == [told(result) for result in results]
    assert ["read_cancelled", "read_shipped", "read_open", "order_not_found"] == [
        row.reason for result in results for row in result.attempts
    ]


@pytest.mark.parametrize("order_id", ["o-1", "a,b"])
def test_one_refusal_alone_is_asked_for_by_its_path(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock, order_id: str
) -> None:
    trackstar.orders = {order_id: "cancelled"}
    (result,) = read_refused([refusal_claim(1, order_id=order_id)], clock, context)

    assert [("read", order_id)] == trackstar.asked
    assert Status.SUCCEEDED is result.transition.status


def test_refusals_for_which_there_is_no_room_are_put_off_and_spend_no_attempt(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock
) -> None:
    pace.may_read = False
    results = read_refused([refusal_claim(1), refusal_claim(2)], clock, context)

    assert [] == trackstar.asked
    assert [(Status.WAITING, Verdict.UNKNOWN, Evidence.REFUSAL, 1)] * 2 == [told(result) for result in results]
    assert [()] * 2 == [result.attempts for result in results]


def test_refusals_that_are_read_too_late_are_given_back_with_their_refusal(
    trackstar: Trackstar, context: AttemptContext, late_clock: LedgerClock
) -> None:
    (result,) = read_refused([refusal_claim(1)], late_clock, context)

    assert [] == trackstar.asked
    assert (Status.WAITING, Verdict.UNKNOWN, Evidence.REFUSAL, 1) == told(result)
    assert "refused_by_warehouse" == result.transition.reason
    assert () == result.attempts


def test_refusals_without_a_token_hold_their_connection_and_stay_refusals(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock
) -> None:
    (result,) = read_refused([refusal_claim(1, encrypted_token=None)], clock, context)

    assert [] == trackstar.asked
    assert (Status.PENDING, Verdict.UNKNOWN, Evidence.REFUSAL, 1) == told(result)
    assert result.transition.hold_connection


# ---- how reads are put together


def test_reads_are_put_together_by_connection_and_up_to_a_hundred() -> None:
    claims = [refusal_claim(number, f"shop-{number % 2}") for number in range(2 * MAX_IDS_PER_READ + 2)]
    batches = batches_of_reads(claims)

    assert [100, 1, 100, 1] == [len(batch) for batch in batches]
    assert all(1 == len({claim.connection_id for claim in batch}) for batch in batches)
    assert sorted(claim.id for claim in claims) == sorted(claim.id for batch in batches for claim in batch)


def test_an_id_with_a_comma_is_asked_for_alone() -> None:
    claims = [refusal_claim(1), refusal_claim(2, order_id="a,b"), refusal_claim(3), refusal_claim(4, order_id="c,d")]

    assert [["a,b"], ["c,d"], ["o-1", "o-3"]] == [
        [claim.order_id for claim in batch] for batch in batches_of_reads(claims)
    ]


def test_no_claims_are_no_request() -> None:
    assert [] == batches_of_reads([])


# ---- what has ended is confirmed


def test_of_many_ended_ones_each_is_judged_after_one_request(
    trackstar: Trackstar, context: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.orders = {"o-1": "cancelled", "o-2": "fulfilled", "o-3": "open"}
    results = confirm([confirm_claim(number) for number in (1, 2, 3)], clock, context)

    assert [("read", ["o-1", "o-2", "o-3"])] == trackstar.asked
    assert [
        (Verdict.CANCELLED, Evidence.READ_BACK, False),
        (Verdict.NOT_CANCELLED, Evidence.READ_BACK, True),
        (Verdict.ACCEPTED, Evidence.RESPONSE, False),
    ] == [(r.confirmation.verdict, r.confirmation.evidence, r.confirmation.contradicted) for r in results]
    assert [False, False, True] == [r.confirmation.confirm_at is not None for r in results]


@pytest.mark.parametrize(("obstacle", "at_most"), [("no token", 60), ("no room", 5)])
def test_what_could_not_be_asked_for_changes_nothing_and_is_asked_for_again(
    trackstar: Trackstar, pace: Paces, context: AttemptContext, clock: LedgerClock, obstacle: str, at_most: float
) -> None:
    pace.may_read = obstacle != "no room"
    claim = confirm_claim(1, encrypted_token=None) if obstacle == "no token" else confirm_claim(1)
    (result,) = confirm([claim], clock, context)

    assert [] == trackstar.asked
    assert () == result.attempts
    assert (Verdict.ACCEPTED, Evidence.RESPONSE) == (result.confirmation.verdict, result.confirmation.evidence)
    assert result.confirmation.confirm_at is not None
    assert timedelta(0) < result.confirmation.confirm_at - NOW < timedelta(seconds=at_most + 1)


# ---- what is known of crawls is from before the question


BEFORE_THEM, AFTER_TWO = NOW - timedelta(hours=5), NOW - timedelta(seconds=60)


class Renewed:
    """What is known of crawls: two that began after the end complete as soon as Trackstar is asked anything."""

    def __init__(self, trackstar: Trackstar) -> None:
        self._trackstar = trackstar

    def of(self, _connection_id: str) -> Crawls:
        began = AFTER_TWO if self._trackstar.asked else BEFORE_THEM
        told = {"frequency": 3600.0, "status": CrawlStatus.ENABLED, "seen_at": NOW}
        return Crawls(began_at=began, before_began_at=began - timedelta(seconds=30), **told)


@pytest.fixture
def renewed(trackstar: Trackstar, pace: Paces) -> AttemptContext:
    return make_context(trackstar, pace, crawls=Renewed(trackstar).of)


def test_a_crawl_that_ends_while_an_order_is_read_proves_nothing_of_what_was_read(
    trackstar: Trackstar, renewed: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.orders = {"o-1": "open"}
    known = Unproven(verdict=Verdict.UNKNOWN, evidence=None, ended_at=NOW - timedelta(seconds=120))

    first, second = (confirm([confirm_claim(1, known=known)], clock, renewed)[0].confirmation for _ in range(2))

    assert (Verdict.UNKNOWN, Verdict.NOT_CANCELLED) == (first.verdict, second.verdict)


def test_a_crawl_that_ends_while_an_order_is_not_found_does_not_end_the_wait_for_it(
    trackstar: Trackstar, renewed: AttemptContext, clock: LedgerClock
) -> None:
    trackstar.answer = reply(404, {"error": "no such order", "origin": "trackstar"})
    state = State(attempts=0, first_sent_at=NOW, received_at=NOW - timedelta(seconds=120))

    results = [attempt(send_claim(1, state=state), clock, renewed) for _ in range(2)]

    assert ["order_not_found_yet", "order_not_found"] == [result.transition.reason for result in results]


def test_what_the_ledger_keeps_of_crawls_and_nobody_has_read_yet_lets_no_time_decide(
    trackstar: Trackstar, pace: Paces, clock: LedgerClock
) -> None:
    trackstar.orders = {"o-1": "open"}
    crawls = KnownCrawls()
    context = make_context(trackstar, pace, crawls=crawls.of)
    claim = confirm_claim(1, known=Unproven(verdict=Verdict.UNKNOWN, evidence=None, ended_at=NOW - timedelta(hours=2)))
    (unread,) = confirm([claim], clock, context)
    crawls.replace({})  # nobody tells of crawls
    (read,) = confirm([claim], clock, context)

    assert (Verdict.UNKNOWN, None) == (unread.confirmation.verdict, unread.confirmation.needs_person)
    assert unread.confirmation.known_by is not None
    assert NOW < unread.confirmation.known_by
    assert (Verdict.NOT_CANCELLED, Evidence.FRESH_READ_BACK) == (read.confirmation.verdict, read.confirmation.evidence)


# ---- the claim of a lost worker


def test_a_send_whose_worker_was_lost_is_in_doubt(trackstar: Trackstar, context: AttemptContext) -> None:
    result = rescue(send_claim(1), context)

    assert [] == trackstar.asked
    assert (Status.WAITING, Verdict.UNKNOWN, None, 1) == told(result)
    assert [("cancel", None, "worker_lost")] == rows(result)


def test_a_read_whose_worker_was_lost_is_read_later_and_is_still_a_refusal(
    trackstar: Trackstar, context: AttemptContext
) -> None:
    result = rescue(refusal_claim(1), context)

    assert [] == trackstar.asked
    assert (Status.WAITING, Verdict.UNKNOWN, Evidence.REFUSAL, 2) == told(result)
    assert "refused_by_warehouse" == result.transition.reason
    assert [("read", None, "worker_lost")] == rows(result)


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.75])
def test_how_long_it_waits_is_diced_by_whoever_made_the_context(
    trackstar: Trackstar, pace: Paces, jitter: float
) -> None:
    context = make_context(trackstar, pace, jitter=lambda: jitter)
    first_wait = timedelta(seconds=context.policy.retry_base * jitter)

    assert NOW + first_wait == rescue(send_claim(1), context).transition.run_at


# ---- the time


def test_the_time_of_a_claim_goes_on_from_the_ledgers_and_not_from_ours() -> None:
    clock = LedgerClock(NOW, monotonic_ago(100))

    assert timedelta(seconds=100) <= clock.now() - NOW < timedelta(seconds=110)
    assert 100 <= clock.elapsed() < 110
