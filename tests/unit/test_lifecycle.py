"""Every decision is a legal transition, tells the truth about the order, and ends in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from worker.cancellation.answer import Order
from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.lifecycle import (
    Moment,
    State,
    Transition,
    decide,
    expire,
    give_up,
    must_read,
    withdraw,
)
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.pace import LONGEST_PAUSE_SECONDS
from worker.cancellation.policy import Policy
from worker.cancellation.status import (
    FINAL,
    TRANSITIONS,
    UNSENT,
    Evidence,
    SafeToRefund,
    Status,
    Verdict,
    safe_to_refund,
)

anything_goes = settings(deadline=None)

FIRST_SENT = datetime(2030, 1, 1, tzinfo=UTC)
NOW = FIRST_SENT + timedelta(seconds=10)
POLICY = Policy()
AT = Moment(now=NOW, policy=POLICY)
OPEN = Order(id="A-1001", status="open", shipped=False, document='{"status":"open"}')
CANCELLED = Order(id="A-1001", status="cancelled", shipped=False, document='{"status":"cancelled"}')
SHIPPED = Order(id="A-1001", status="fulfilled", shipped=True, document='{"status":"fulfilled"}')

FRESH = State(attempts=0, first_sent_at=FIRST_SENT)
DOUBT = State(attempts=1, first_sent_at=FIRST_SENT, verdict=Verdict.UNKNOWN)
ACCEPTED_BEFORE = State(attempts=0, first_sent_at=FIRST_SENT, verdict=Verdict.ACCEPTED)
ORDER_SEEN = {OrderState.CANCELLED: CANCELLED, OrderState.SHIPPED: SHIPPED, OrderState.OPEN: OPEN}


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def outcome(kind: Kind, **fields: Any) -> Outcome:
    return Outcome(**{"kind": kind, "reason": f"was_{kind}"} | fields)


def read_back(shows: OrderState, **fields: Any) -> ReadBack:
    return ReadBack(**{"shows": shows, "reason": f"read_{shows}", "order": ORDER_SEEN.get(shows)} | fields)


def after(state: State, meant: Outcome, seen: ReadBack | None = None, **changes: Any) -> Transition:
    return decide(state, meant, seen, Moment(**{"now": NOW, "jitter": 0.5, "policy": POLICY} | changes))


def later(state: State, transition: Transition) -> State:
    """Return what the next claim finds after this transition."""
    return State(
        attempts=transition.attempts,
        first_sent_at=state.first_sent_at,
        received_at=state.received_at,
        send_by=state.send_by,
        verdict=transition.verdict,
        evidence=transition.evidence,
        reason=transition.reason,
        message=transition.message,
    )


# ---- the tables of statuses


def test_a_status_is_either_final_or_unsent_or_in_flight() -> None:
    assert set(Status) == FINAL | UNSENT | {Status.IN_FLIGHT} == set(TRANSITIONS)
    assert set() == FINAL & UNSENT


def test_only_a_replay_leads_out_of_a_final_status() -> None:
    assert {status: frozenset({Status.PENDING}) for status in FINAL} == {
        status: TRANSITIONS[status] for status in FINAL
    }


def test_only_a_claim_of_what_is_pending_leads_to_a_request() -> None:
    assert {Status.PENDING} == {status for status, ways in TRANSITIONS.items() if Status.IN_FLIGHT in ways}


def test_what_is_in_flight_cannot_be_withdrawn_and_everything_unsent_can() -> None:
    assert UNSENT == {status for status, ways in TRANSITIONS.items() if Status.WITHDRAWN in ways}


def test_every_status_has_a_way_to_an_end() -> None:
    ending = set(FINAL)
    for _ in Status:
        ending |= {status for status, ways in TRANSITIONS.items() if ways & ending}

    assert set(Status) == ending


# ---- the table of decisions: (status, verdict, evidence, attempts spent, read again, hold)

ACCEPTED_OPEN = outcome(Kind.ACCEPTED, order=OPEN)
REFUSED = outcome(Kind.REFUSED)
BY_WAREHOUSE = outcome(Kind.REFUSED, read_first=True)


STORED_YES = outcome(Kind.ACCEPTED, order=CANCELLED, replayed=True, read_first=True)


@pytest.mark.parametrize(
    ("expected", "shows"),
    [
        ("succeeded cancelled replayed_response +1", OrderState.CANCELLED),
        ("rejected not_cancelled read_back +1", OrderState.SHIPPED),
        ("succeeded accepted replayed_response +1 confirm", OrderState.OPEN),
        ("succeeded accepted replayed_response +1 confirm", OrderState.ABSENT),
        ("succeeded accepted replayed_response +1 confirm", OrderState.UNREADABLE),
        ("succeeded accepted replayed_response +1 confirm", OrderState.LATER),
        ("succeeded accepted replayed_response +1 confirm", OrderState.NO_ACCESS),
    ],
)
@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
def test_a_stored_yes_is_worth_what_a_read_shows(state: State, expected: str, shows: OrderState) -> None:
    assert must_read(state, STORED_YES)
    assert expected == told(after(state, STORED_YES, read_back(shows)), state)


@pytest.mark.parametrize(
    ("expected", "meant"),
    [
        pytest.param("succeeded accepted response +1 confirm", ACCEPTED_OPEN, id="yes, still open"),
        pytest.param("succeeded accepted response +1 confirm", outcome(Kind.ACCEPTED), id="yes, no order shown"),
        pytest.param("succeeded cancelled response +1", outcome(Kind.ACCEPTED, order=CANCELLED), id="yes, cancelled"),
        pytest.param("waiting unknown - +1", outcome(Kind.IN_DOUBT), id="in doubt"),
        pytest.param("waiting unknown - +0", outcome(Kind.STILL_RUNNING), id="still running"),
    ],
)
@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
def test_an_answer_without_refusal_decides_whatever_was_known_before(
    state: State, expected: str, meant: Outcome
) -> None:
    assert expected == told(after(state, meant), state)


@pytest.mark.parametrize(
    ("fresh", "doubt", "meant"),
    [
        pytest.param("waiting - - +1", "waiting unknown - +1", outcome(Kind.NOT_SENT), id="not sent"),
        pytest.param("waiting - - +0", "waiting unknown - +0", outcome(Kind.SLOW_DOWN), id="slow down"),
        pytest.param("pending - - +0 hold", "pending unknown - +0 hold", outcome(Kind.NO_ACCESS), id="no access"),
    ],
)
def test_what_cannot_have_landed_leaves_an_old_doubt_as_it_was(fresh: str, doubt: str, meant: Outcome) -> None:
    assert fresh == told(after(FRESH, meant), FRESH)
    assert doubt == told(after(DOUBT, meant), DOUBT)


REFUSAL_TABLE = {
    OrderState.CANCELLED: "succeeded cancelled read_back +1",
    OrderState.SHIPPED: "rejected not_cancelled read_back +1",
    # The warehouse also refuses what somebody else has just cancelled, and the copy may be older than that.
    OrderState.OPEN: "rejected unknown - +1 confirm",
    OrderState.ABSENT: "rejected unknown - +1 confirm",
    OrderState.UNREADABLE: "rejected unknown - +1 confirm",
    OrderState.LATER: "waiting unknown refusal +1",
    OrderState.NO_ACCESS: "pending unknown refusal +0 hold",
}


@pytest.mark.parametrize("shows", OrderState, ids=str)
def test_a_refusal_that_was_read_back_is_judged_by_what_was_seen(shows: OrderState) -> None:
    expected = REFUSAL_TABLE[shows]

    assert expected == told(after(FRESH, BY_WAREHOUSE, read_back(shows)), FRESH)
    assert expected == told(after(DOUBT, BY_WAREHOUSE, read_back(shows)), DOUBT)
    assert expected == told(after(DOUBT, REFUSED, read_back(shows)), DOUBT)


def test_the_words_of_a_warehouse_that_refused_are_kept_although_they_prove_nothing() -> None:
    meant = outcome(Kind.REFUSED, reason="refused_by_warehouse", message="already cancelled", read_first=True)

    transition = after(FRESH, meant, read_back(OrderState.OPEN))

    assert ("refused_by_warehouse", "already cancelled") == (transition.reason, transition.message)
    assert (Status.REJECTED, SafeToRefund.NOT_YET) == (
        transition.status, safe_to_refund(transition.status, transition.verdict),
    )  # fmt: skip


# The same for a yes that could not be read: what proves nothing leaves it in doubt, to be tried with the same key.
UNREADABLE_YES = outcome(Kind.IN_DOUBT, reason="not_json", read_first=True)


@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
@pytest.mark.parametrize("shows", OrderState, ids=str)
def test_a_yes_that_could_not_be_read_ends_only_with_proof(shows: OrderState, state: State) -> None:
    proofs = {
        OrderState.CANCELLED: "succeeded cancelled read_back +1",
        OrderState.SHIPPED: "rejected not_cancelled read_back +1",
    }

    assert must_read(state, UNREADABLE_YES)
    assert proofs.get(shows, "waiting unknown - +1") == told(after(state, UNREADABLE_YES, read_back(shows)), state)


def told(transition: Transition, state: State) -> str:
    words = [
        transition.status,
        transition.verdict or "-",
        transition.evidence or "-",
        f"+{transition.attempts - state.attempts}",
    ]
    words += ["confirm"] * (transition.confirm_at is not None) + ["hold"] * transition.hold_connection
    return " ".join(words)


def test_a_plain_refusal_without_doubt_is_recorded_at_once() -> None:
    transition = after(FRESH, outcome(Kind.REFUSED, reason="validation_failed", message="No such field"))

    assert "rejected not_cancelled refusal +1" == told(transition, FRESH)
    assert ("validation_failed", "No such field") == (transition.reason, transition.message)
    assert NOW == transition.as_of


@pytest.mark.parametrize(
    ("expected", "state", "meant"),
    [
        pytest.param(False, FRESH, REFUSED, id="fresh, Trackstar's refusal"),
        pytest.param(True, FRESH, BY_WAREHOUSE, id="fresh, the warehouse's refusal"),
        pytest.param(True, DOUBT, REFUSED, id="in doubt, Trackstar's refusal"),
        pytest.param(True, DOUBT, BY_WAREHOUSE, id="in doubt, the warehouse's refusal"),
    ]
    + [
        pytest.param(False, state, outcome(kind), id=f"{kind}, {'in doubt' if state.in_doubt else 'fresh'}")
        for kind, state in product(sorted(set(Kind) - {Kind.REFUSED}), [FRESH, DOUBT])
    ],
)
def test_a_refusal_after_doubt_is_never_recorded_unread(expected: bool, state: State, meant: Outcome) -> None:
    assert expected is must_read(state, meant)


# ---- a refusal that could not be read is kept until it can


@pytest.mark.parametrize("shows", [OrderState.LATER, OrderState.NO_ACCESS], ids=str)
@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
def test_an_unread_refusal_is_remembered_so_that_the_next_step_is_a_read(state: State, shows: OrderState) -> None:
    meant = outcome(Kind.REFUSED, reason="refused_by_warehouse", message="already gone", read_first=True)

    kept = later(state, after(state, meant, read_back(shows)))

    assert kept.awaits_read
    assert meant == kept.remembered_refusal
    assert must_read(kept, kept.remembered_refusal)
    assert kept.in_doubt  # an unread refusal by the warehouse proves nothing


@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
def test_a_remembered_refusal_survives_a_time_without_access(state: State) -> None:
    meant = outcome(Kind.REFUSED, reason="refused_by_warehouse", message="already gone", read_first=True)
    kept = later(state, after(state, meant, read_back(OrderState.LATER)))

    held = after(kept, outcome(Kind.NO_ACCESS, reason="no_access_token"))

    assert held.hold_connection
    assert kept == later(kept, held)


def test_an_unread_refusal_waits_as_long_as_the_server_of_the_read_asks() -> None:
    transition = after(DOUBT, REFUSED, read_back(OrderState.LATER, retry_after=30.0, spends_attempt=False))

    assert transition.run_at is not None
    assert seconds(30) <= transition.run_at - NOW <= seconds(31)
    assert DOUBT.attempts == transition.attempts


@pytest.mark.parametrize(("state", "meant"), [(FRESH, BY_WAREHOUSE), (DOUBT, REFUSED)], ids=["fresh", "in doubt"])
def test_a_refusal_still_unread_at_the_horizon_ends_in_doubt(state: State, meant: Outcome) -> None:
    at_the_end = FIRST_SENT + seconds(POLICY.retry_horizon)

    transition = after(state, meant, read_back(OrderState.LATER), now=at_the_end)

    assert "rejected unknown - +1 confirm" == told(transition, state)


# ---- time


@pytest.mark.parametrize(
    ("expected", "verdict", "kind", "state"),
    [
        ("exhausted", "unknown", Kind.IN_DOUBT, FRESH),
        ("exhausted", "unknown", Kind.STILL_RUNNING, FRESH),
        ("exhausted", "not_cancelled", Kind.NOT_SENT, FRESH),
        ("exhausted", "not_cancelled", Kind.SLOW_DOWN, FRESH),
        ("exhausted", "unknown", Kind.NOT_SENT, DOUBT),
        ("exhausted", "unknown", Kind.SLOW_DOWN, DOUBT),
    ],
)
def test_at_the_horizon_it_gives_up_and_says_what_it_knows(
    expected: str, verdict: str, kind: Kind, state: State
) -> None:
    transition = after(state, outcome(kind), now=FIRST_SENT + seconds(POLICY.retry_horizon))

    assert (expected, verdict) == (transition.status, transition.verdict)
    assert (transition.evidence is Evidence.NEVER_SENT) is (verdict == "not_cancelled")
    assert (transition.confirm_at is not None) is (verdict == "unknown")


@pytest.mark.parametrize("kind", [Kind.IN_DOUBT, Kind.NOT_SENT, Kind.SLOW_DOWN, Kind.STILL_RUNNING], ids=str)
def test_what_cannot_be_sent_again_before_its_send_by_expires_now(kind: Kind) -> None:
    transition = after(State(attempts=0, first_sent_at=FIRST_SENT, send_by=NOW), outcome(kind))

    assert transition.status is Status.EXPIRED


@pytest.mark.parametrize("late", [timedelta(0), timedelta(days=2)], ids=["just now", "days ago"])
def test_an_answer_counts_however_late_it_comes(late: timedelta) -> None:
    state = State(attempts=0, first_sent_at=FIRST_SENT, send_by=NOW)

    assert after(state, ACCEPTED_OPEN, now=NOW + late).status is Status.SUCCEEDED
    assert after(state, REFUSED, now=NOW + late).status is Status.REJECTED


@pytest.mark.parametrize("retry_after", [0.0, 1.0, 59.0, LONGEST_PAUSE_SECONDS])
def test_the_servers_word_is_the_shortest_wait(retry_after: float) -> None:
    for kind in (Kind.IN_DOUBT, Kind.SLOW_DOWN):
        transition = after(FRESH, outcome(kind, retry_after=retry_after))

        assert transition.run_at is not None
        assert seconds(retry_after) <= transition.run_at - NOW <= seconds(retry_after + POLICY.retry_base)


@pytest.mark.parametrize("state", [FRESH, DOUBT], ids=["fresh", "in doubt"])
def test_who_is_told_to_pause_for_more_than_a_minute_waits_for_the_end_of_a_hold(state: State) -> None:
    transition = after(state, outcome(Kind.SLOW_DOWN, retry_after=LONGEST_PAUSE_SECONDS + 1))

    expected = (Status.PENDING, None, LONGEST_PAUSE_SECONDS + 1, state.attempts, state.verdict)
    found = (transition.status, transition.run_at, transition.pause_connection, transition.attempts)
    assert expected == (*found, transition.verdict)


def test_a_server_that_fails_and_asks_for_a_long_pause_keeps_that_one_order_waiting() -> None:
    transition = after(FRESH, outcome(Kind.IN_DOUBT, retry_after=600.0))

    assert transition.pause_connection is None
    assert transition.run_at is not None
    assert transition.run_at - NOW >= seconds(600)


@pytest.mark.parametrize("kind", [Kind.SLOW_DOWN, Kind.STILL_RUNNING], ids=str)
@pytest.mark.parametrize(("expected", "passed"), [(1.0, 0), (1.0, -5), (30.0, 30), (60.0, 60), (60.0, 3600)], ids=str)
def test_patience_grows_with_the_time_that_passed_up_to_a_minute(expected: float, passed: float, kind: Kind) -> None:
    now = FIRST_SENT + seconds(passed)
    waits = [after(FRESH, outcome(kind), now=now, jitter=jitter).run_at for jitter in (0.0, 0.5, 0.999)]

    assert [expected * share for share in (0.5, 0.75, 0.9995)] == pytest.approx(
        [(run_at - now).total_seconds() for run_at in waits if run_at]
    )


@pytest.mark.parametrize(
    ("expected", "state"),
    [("expired not_cancelled never_sent +0", FRESH), ("expired unknown - +0 confirm", DOUBT)],
    ids=["fresh", "in doubt"],
)
def test_what_expires_unsent_tells_whether_a_request_may_have_landed(expected: str, state: State) -> None:
    transition = expire(state, AT)

    assert expected == told(transition, state)
    assert transition.status in TRANSITIONS[Status.PENDING] & TRANSITIONS[Status.QUEUED] & TRANSITIONS[Status.WAITING]


UNREAD = State(
    attempts=4,
    first_sent_at=FIRST_SENT,
    verdict=Verdict.UNKNOWN,
    evidence=Evidence.REFUSAL,
    reason="refused_by_warehouse",
)


@pytest.mark.parametrize(
    ("expected", "state"),
    [
        pytest.param("exhausted not_cancelled never_sent +0", FRESH, id="fresh"),
        pytest.param("exhausted unknown - +0 confirm", DOUBT, id="in doubt"),
        pytest.param("exhausted accepted response +0 confirm", ACCEPTED_BEFORE, id="accepted before a replay"),
        pytest.param("rejected unknown - +0 confirm", UNREAD, id="refused, unread"),
        pytest.param(
            "rejected unknown - +0 confirm",
            structs.replace(UNREAD, verdict=Verdict.NOT_CANCELLED),
            id="refused, unread, as version 0.2 left it",
        ),
    ],
)
def test_what_is_given_up_while_it_waits_spends_no_attempt_and_tells_what_is_known(
    expected: str, state: State
) -> None:
    transition = give_up(state, AT)

    assert expected == told(transition, state)
    assert transition.status in TRANSITIONS[Status.PENDING]


def test_only_what_was_surely_never_sent_can_be_withdrawn() -> None:
    transition = withdraw(FRESH, AT)

    assert transition is not None
    assert "withdrawn not_cancelled never_sent +0" == told(transition, FRESH)
    assert withdraw(DOUBT, AT) is None
    refused = later(FRESH, after(FRESH, BY_WAREHOUSE, read_back(OrderState.LATER)))
    assert withdraw(refused, AT) is None


# ---- an order that Trackstar does not know may be younger than its copy

NOT_FOUND = outcome(Kind.REFUSED, reason="order_not_found", message="no such order")
UNSIGNED = outcome(Kind.REFUSED, reason="order_not_found", read_first=True)
CAME_IN = State(attempts=0, first_sent_at=FIRST_SENT, received_at=FIRST_SENT)


def crawls(*began: float, **changes: Any) -> Crawls:
    """Return what is known of an hourly crawl: begins of the latest completed ones, in seconds since it came in."""
    before, latest = [None, *(FIRST_SENT + seconds(each) for each in sorted(began))][-2:]
    told = {"began_at": latest, "before_began_at": before, "frequency": 3600.0, "length": 120.0, "seen_at": NOW}
    return Crawls(**{**told, "status": CrawlStatus.ENABLED, **changes})


@pytest.mark.parametrize(("meant", "seen"), [(NOT_FOUND, None), (UNSIGNED, OrderState.ABSENT)], ids=["signed", "not"])
def test_an_order_that_trackstar_does_not_know_is_asked_for_again(meant: Outcome, seen: OrderState | None) -> None:
    transition = after(CAME_IN, meant, read_back(seen) if seen else None)

    assert "waiting - - +1" == told(transition, CAME_IN)
    assert "order_not_found_yet" == transition.reason
    assert NOW + seconds(60) == transition.run_at
    assert FIRST_SENT + seconds(POLICY.not_found_grace + 60) == transition.known_by
    assert withdraw(later(CAME_IN, transition), AT)  # it never came to the warehouse


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        pytest.param("waiting", None, id="nothing is known of crawls"),
        pytest.param("waiting", crawls(-3600, -1), id="two crawls before it came in"),
        pytest.param("waiting", crawls(-1, 1), id="one began since"),
        pytest.param("waiting", crawls(-1, 1, running_since=NOW), id="one began, and one is running"),
        pytest.param("rejected", crawls(1, 5), id="two began since"),
    ],
)
def test_an_order_is_not_found_once_two_crawls_have_begun_since_it_came_in(
    expected: str, known: Crawls | None
) -> None:
    transition = after(CAME_IN, NOT_FOUND, crawls=known)

    assert (expected, "order_not_found_yet" if expected == "waiting" else "order_not_found") == (
        transition.status, transition.reason,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "policy", "passed"),
    [
        pytest.param(CAME_IN, Policy(not_found_grace=0.0), 0.0, id="no grace"),
        pytest.param(CAME_IN, POLICY, POLICY.not_found_grace, id="its grace is over"),
        pytest.param(structs.replace(CAME_IN, send_by=NOW), POLICY, 5.0, id="its send_by is at hand"),
        pytest.param(CAME_IN, Policy(retry_horizon=60.0), 55.0, id="the retry horizon is at hand"),
    ],
)
def test_an_order_that_is_still_not_found_when_its_time_is_over_is_refused(
    state: State, policy: Policy, passed: float
) -> None:
    transition = after(state, NOT_FOUND, policy=policy, now=FIRST_SENT + seconds(passed))

    assert "rejected not_cancelled refusal +1" == told(transition, state)
    assert ("order_not_found", None, None) == (transition.reason, transition.known_by, transition.needs_person)


@pytest.mark.parametrize(("expected", "send_by"), [(25.0, 30.0), (70.0, 3600.0)])
def test_it_is_asked_for_a_last_time_just_before_its_send_by(expected: float, send_by: float) -> None:
    state = structs.replace(CAME_IN, send_by=FIRST_SENT + seconds(send_by))

    assert FIRST_SENT + seconds(expected) == after(state, NOT_FOUND).run_at


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        pytest.param(3610 + 120, crawls(10), id="after the next crawl has ended"),
        pytest.param(70, crawls(-3585, length=20.0), id="not sooner than after a pause"),
        pytest.param(70, crawls(10, status=CrawlStatus.DISABLED), id="no crawl comes"),
        pytest.param(70, crawls(10, status=CrawlStatus.UNKNOWN), id="nobody knows whether one comes"),
    ],
)
def test_it_is_sent_again_when_the_next_crawl_has_ended_although_nobody_saw_it(expected: float, known: Crawls) -> None:
    assert FIRST_SENT + seconds(expected) == after(CAME_IN, NOT_FOUND, crawls=known).run_at


def test_what_was_in_doubt_stays_so_while_its_order_is_not_found() -> None:
    state = structs.replace(CAME_IN, attempts=1, verdict=Verdict.UNKNOWN)
    waiting = after(state, NOT_FOUND, read_back(OrderState.ABSENT))

    assert "waiting unknown - +1" == told(waiting, state)
    assert withdraw(later(state, waiting), AT) is None
    over = FIRST_SENT + seconds(POLICY.not_found_grace)
    assert "rejected unknown - +1 confirm" == told(
        after(state, NOT_FOUND, read_back(OrderState.ABSENT), now=over), state
    )


def test_a_404_is_no_reason_to_wait_where_a_read_shows_the_order() -> None:
    assert "rejected unknown - +1 confirm" == told(after(CAME_IN, UNSIGNED, read_back(OrderState.OPEN)), CAME_IN)


@anything_goes
@given(
    st.floats(0.0, 10_000.0),
    st.none() | st.floats(1.0, 20_000.0),
    st.floats(20.0, 20_000.0),
    st.none() | st.just(crawls(-1)),
)
def test_whatever_is_not_found_comes_to_an_end_in_its_time_and_says_by_when(
    grace: float, send_by: float | None, horizon: float, known: Crawls | None
) -> None:
    policy = Policy(not_found_grace=grace, retry_horizon=horizon)
    end = min(horizon, grace, send_by or horizon)
    state = structs.replace(CAME_IN, send_by=FIRST_SENT + seconds(send_by) if send_by else None)
    now = FIRST_SENT
    for _ in range(200):
        transition = decide(state, NOT_FOUND, None, Moment(now=now, policy=policy, crawls=known))
        if transition.run_at is None:
            break
        assert transition.known_by is not None
        assert now < transition.run_at < transition.known_by <= FIRST_SENT + seconds(end + 61)
        state, now = later(state, transition), transition.run_at

    assert "rejected" == transition.status
    assert now <= FIRST_SENT + seconds(end)


# ---- whatever happens: properties over every situation that an attempt can meet

jitters = st.floats(0.0, 1.0, exclude_max=True)
waits = st.none() | st.floats(0.0, 100.0)  # as the header was clamped, below the cap of any policy here
verdicts_so_far = st.sampled_from([None, Verdict.UNKNOWN, Verdict.ACCEPTED])
policies = st.builds(
    Policy,
    retry_base=st.floats(0.1, 10.0),
    retry_cap=st.floats(100.0, 3600.0),
    retry_horizon=st.floats(60.0, 86_400.0),
)
reads = st.builds(read_back, st.sampled_from(OrderState), retry_after=waits, spends_attempt=st.booleans()).filter(
    lambda seen: seen.shows is OrderState.LATER or (seen.retry_after is None and seen.spends_attempt)
)
plain_outcomes = st.one_of(
    st.builds(
        outcome,
        st.just(Kind.ACCEPTED),
        order=st.sampled_from([None, OPEN, CANCELLED, SHIPPED]),
        replayed=st.booleans(),
    ),
    st.builds(
        outcome,
        st.just(Kind.REFUSED),
        reason=st.sampled_from(["refused_by_warehouse", "not_enabled", "order_not_found"]),
        read_first=st.booleans(),
        message=st.none() | st.just("no"),
    ),
    st.builds(outcome, st.sampled_from(sorted(set(Kind) - {Kind.ACCEPTED, Kind.REFUSED})), retry_after=waits),
    st.builds(outcome, st.just(Kind.IN_DOUBT), read_first=st.just(value=True)),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[State, Outcome, ReadBack | None, datetime, Policy]:
    passed = draw(st.floats(0.0, 100_000.0))
    refused_unread = draw(st.booleans())
    verdict = draw(verdicts_so_far)
    state = State(
        attempts=draw(st.integers(0, 200)),
        first_sent_at=FIRST_SENT,
        send_by=draw(st.none() | st.floats(-100.0, 100_000.0).map(lambda s: FIRST_SENT + seconds(s))),
        verdict=verdict or Verdict.UNKNOWN if refused_unread else verdict,
        evidence=Evidence.REFUSAL if refused_unread else None,
        reason="refused_by_warehouse" if refused_unread else None,
    )
    meant = draw(plain_outcomes)
    if refused_unread and meant.kind is not Kind.NO_ACCESS:
        meant = state.remembered_refusal
    seen = draw(reads) if must_read(state, meant) else None
    return state, meant, seen, FIRST_SENT + seconds(passed), draw(policies)


def decided(situation: tuple[State, Outcome, ReadBack | None, datetime, Policy], jitter: float) -> Transition:
    state, meant, seen, now, policy = situation
    return decide(state, meant, seen, Moment(now=now, jitter=jitter, policy=policy))


@anything_goes
@given(situations(), jitters)
def test_every_decision_is_a_legal_move_and_complete(situation: Any, jitter: float) -> None:
    now = situation[3]
    transition = decided(situation, jitter)

    assert transition.status in TRANSITIONS[Status.IN_FLIGHT]
    assert (transition.run_at is not None) is (transition.status is Status.WAITING)
    assert transition.run_at is None or transition.run_at >= now
    paused = transition.pause_connection is not None
    assert (transition.hold_connection or paused) is (transition.status is Status.PENDING)
    if transition.status in FINAL:
        assert transition.verdict is not None
        assert (transition.confirm_at is not None) is (transition.verdict in {Verdict.ACCEPTED, Verdict.UNKNOWN})
    else:
        assert transition.confirm_at is None


@anything_goes
@given(situations(), jitters)
def test_attempts_rise_by_one_at_most_and_never_for_waiting_in_line(situation: Any, jitter: float) -> None:
    state, meant, seen, _, _ = situation
    rise = decided(situation, jitter).attempts - state.attempts

    assert rise in {0, 1}
    if meant.kind in {Kind.SLOW_DOWN, Kind.STILL_RUNNING, Kind.NO_ACCESS}:
        assert 0 == rise
    elif meant.kind in {Kind.IN_DOUBT, Kind.NOT_SENT, Kind.ACCEPTED} or seen is None:
        assert 1 == rise
    elif seen.shows is OrderState.NO_ACCESS:
        assert 0 == rise


@anything_goes
@given(situations(), jitters)
def test_what_is_in_doubt_is_told_not_cancelled_only_with_proof(situation: Any, jitter: float) -> None:
    state, meant, seen, _, _ = situation
    transition = decided(situation, jitter)

    if state.in_doubt or meant.kind in {Kind.IN_DOUBT, Kind.STILL_RUNNING}:
        assert transition.verdict is not None
        if transition.verdict is Verdict.NOT_CANCELLED:
            assert seen is not None
            assert (OrderState.SHIPPED, Evidence.READ_BACK) == (seen.shows, transition.evidence)


@anything_goes
@given(situations(), jitters)
def test_a_yes_of_an_earlier_generation_stands_until_something_is_proven(situation: Any, jitter: float) -> None:
    state, _, seen, _, _ = situation
    transition = decided(situation, jitter)

    if state.verdict is Verdict.ACCEPTED:
        shipped = seen is not None and seen.shows is OrderState.SHIPPED
        assert transition.verdict in {Verdict.ACCEPTED, Verdict.CANCELLED, Verdict.NOT_CANCELLED}
        assert shipped is (transition.verdict is Verdict.NOT_CANCELLED)
        ended_by_it = transition.status in FINAL and transition.verdict is Verdict.ACCEPTED
        assert not ended_by_it or transition.evidence in {Evidence.RESPONSE, Evidence.REPLAYED_RESPONSE}


@anything_goes
@given(situations(), jitters)
def test_nothing_is_told_cancelled_unless_a_read_shows_it(situation: Any, jitter: float) -> None:
    _, meant, seen, _, _ = situation
    transition = decided(situation, jitter)

    shown = meant.order == CANCELLED or (seen is not None and seen.shows is OrderState.CANCELLED)
    assert shown is (transition.verdict is Verdict.CANCELLED)
    assert transition.verdict is not Verdict.CANCELLED or CANCELLED == transition.order


@anything_goes
@given(situations(), jitters)
def test_nothing_is_sent_after_its_send_by_nor_after_the_horizon(situation: Any, jitter: float) -> None:
    state, _, _, _, policy = situation
    transition = decided(situation, jitter)

    if transition.run_at is not None:
        assert transition.run_at < FIRST_SENT + seconds(policy.retry_horizon)
        assert transition.evidence is Evidence.REFUSAL or state.send_by is None or transition.run_at < state.send_by
    assert transition.status is not Status.EXPIRED or state.send_by is not None


@anything_goes
@given(situations(), jitters)
def test_nothing_is_given_up_that_could_be_tried_again_in_time(situation: Any, jitter: float) -> None:
    state, _, _, now, policy = situation
    transition = decided(situation, jitter)

    longest = now + seconds(max(policy.retry_cap + policy.retry_base, 60.0))
    if transition.status is Status.EXHAUSTED:
        assert longest >= FIRST_SENT + seconds(policy.retry_horizon)
    if transition.status is Status.EXPIRED:
        assert longest >= state.send_by


@anything_goes
@given(situations(), jitters)
def test_a_wait_is_as_long_as_the_server_asks_and_bounded_by_our_cap(situation: Any, jitter: float) -> None:
    _, meant, seen, now, policy = situation
    transition = decided(situation, jitter)
    asked = (seen or meant).retry_after or 0.0

    if transition.run_at is not None:
        wait = (transition.run_at - now).total_seconds()
        assert asked <= wait + 1e-6
        assert wait <= policy.retry_cap + policy.retry_base + 1e-6


@anything_goes
@given(
    st.lists(st.tuples(plain_outcomes, reads, st.floats(0.1, 0.999)), max_size=12),
    st.none() | st.floats(0.0, 2000.0),
)
def test_over_a_whole_life_a_request_that_may_have_landed_is_never_forgotten(
    answers: list[tuple[Outcome, ReadBack, float]], send_by: float | None
) -> None:
    policy = Policy(retry_horizon=3600.0, retry_cap=300.0)
    state = State(attempts=0, first_sent_at=FIRST_SENT, send_by=FIRST_SENT + seconds(send_by) if send_by else None)
    now, may_have_landed = FIRST_SENT, False
    for meant, seen, jitter in answers:
        result = state.remembered_refusal if state.awaits_read else meant
        may_have_landed |= result.kind in {Kind.IN_DOUBT, Kind.STILL_RUNNING}
        read = seen if must_read(state, result) else None
        transition = decide(state, result, read, Moment(now=now, jitter=jitter, policy=policy))
        if may_have_landed and transition.verdict is not Verdict.ACCEPTED:
            proven = transition.evidence in {Evidence.READ_BACK, Evidence.RESPONSE, Evidence.REPLAYED_RESPONSE}
            assert proven or transition.verdict is Verdict.UNKNOWN
        if transition.status in FINAL:
            break
        state, now = later(state, transition), transition.run_at or now


@anything_goes
@given(
    st.sampled_from([Kind.IN_DOUBT, Kind.NOT_SENT, Kind.SLOW_DOWN, Kind.STILL_RUNNING]),
    st.floats(0.1, 0.999),
    st.sampled_from([None, 0.0, 5.0, 60.0]),
)
def test_every_row_of_bad_luck_comes_to_an_end_at_the_horizon(
    kind: Kind, jitter: float, retry_after: float | None
) -> None:
    policy = Policy(retry_horizon=600.0, retry_cap=60.0)
    state, now = FRESH, FIRST_SENT
    for _ in range(10_000):
        at = Moment(now=now, jitter=jitter, policy=policy)
        transition = decide(state, outcome(kind, retry_after=retry_after), None, at)
        if transition.run_at is None:
            break
        state, now = later(state, transition), transition.run_at

    assert transition.status is Status.EXHAUSTED
    assert FIRST_SENT + seconds(600.0 - 61.0) <= now < FIRST_SENT + seconds(600.0)


# ---- the one question

TRUTH = {
    None: SafeToRefund.NOT_YET,
    Verdict.CANCELLED: SafeToRefund.YES,
    Verdict.ACCEPTED: SafeToRefund.NOT_YET,
    Verdict.NOT_CANCELLED: SafeToRefund.NO,
    Verdict.UNKNOWN: SafeToRefund.NOT_YET,
}


@pytest.mark.parametrize("verdict", [None, *Verdict], ids=str)
@pytest.mark.parametrize("status", Status, ids=str)
def test_a_refund_is_safe_only_after_an_end_with_proof(status: Status, verdict: Verdict | None) -> None:
    ends = {"succeeded", "rejected", "exhausted", "expired", "withdrawn"}

    assert (TRUTH[verdict] if status.value in ends else SafeToRefund.NOT_YET) is safe_to_refund(status, verdict)


def test_the_answers_are_spelled_as_the_question_asks_them() -> None:
    assert ["yes", "no", "not yet"] == [answer.value for answer in SafeToRefund]
