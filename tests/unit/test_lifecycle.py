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
from worker.cancellation.lifecycle import State, Transition, confirm, decide, expire, give_up, must_read, withdraw
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.pace import LONGEST_PAUSE_SECONDS
from worker.cancellation.policy import Policy
from worker.cancellation.proof import next_read_back
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
OPEN = Order(id="A-1001", status="open", shipped=False, document='{"status":"open"}')
CANCELLED = Order(id="A-1001", status="cancelled", shipped=False, document='{"status":"cancelled"}')
SHIPPED = Order(id="A-1001", status="fulfilled", shipped=True, document='{"status":"fulfilled"}')

FRESH = State(attempts=0, first_sent_at=FIRST_SENT)
DOUBT = State(attempts=1, first_sent_at=FIRST_SENT, verdict=Verdict.UNKNOWN)
ORDER_SEEN = {OrderState.CANCELLED: CANCELLED, OrderState.SHIPPED: SHIPPED, OrderState.OPEN: OPEN}


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def outcome(kind: Kind, **fields: Any) -> Outcome:
    return Outcome(**{"kind": kind, "reason": f"was_{kind}"} | fields)


def read_back(shows: OrderState, **fields: Any) -> ReadBack:
    return ReadBack(**{"shows": shows, "reason": f"read_{shows}", "order": ORDER_SEEN.get(shows)} | fields)


def after(state: State, meant: Outcome, seen: ReadBack | None = None, **changes: Any) -> Transition:
    return decide(state, meant, seen, **{"now": NOW, "jitter": 0.5, "policy": POLICY} | changes)


def later(state: State, transition: Transition) -> State:
    """Return what the next claim finds after this transition."""
    return State(
        attempts=transition.attempts,
        first_sent_at=state.first_sent_at,
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


@pytest.mark.parametrize(
    ("expected", "meant"),
    [
        pytest.param("succeeded accepted response +1 confirm", ACCEPTED_OPEN, id="yes, still open"),
        pytest.param("succeeded accepted response +1 confirm", outcome(Kind.ACCEPTED), id="yes, no order shown"),
        pytest.param("succeeded cancelled response +1", outcome(Kind.ACCEPTED, order=CANCELLED), id="yes, cancelled"),
        pytest.param(
            "succeeded cancelled replayed_response +1",
            outcome(Kind.ACCEPTED, order=CANCELLED, replayed=True),
            id="yes again, cancelled",
        ),
        pytest.param(
            "succeeded accepted replayed_response +1 confirm",
            outcome(Kind.ACCEPTED, order=OPEN, replayed=True),
            id="yes again, still open",
        ),
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
    # shows: (after a fresh refusal that must be read, after a refusal in doubt)
    OrderState.CANCELLED: ("succeeded cancelled read_back +1", "succeeded cancelled read_back +1"),
    OrderState.SHIPPED: ("rejected not_cancelled read_back +1", "rejected not_cancelled read_back +1"),
    OrderState.OPEN: ("rejected not_cancelled refusal +1", "rejected unknown refusal +1 confirm"),
    OrderState.ABSENT: ("rejected not_cancelled refusal +1", "rejected unknown refusal +1 confirm"),
    OrderState.UNREADABLE: ("rejected not_cancelled refusal +1", "rejected unknown refusal +1 confirm"),
    OrderState.LATER: ("waiting not_cancelled refusal +1", "waiting unknown refusal +1"),
    OrderState.NO_ACCESS: ("pending not_cancelled refusal +0 hold", "pending unknown refusal +0 hold"),
}


@pytest.mark.parametrize("shows", OrderState, ids=str)
def test_a_refusal_that_was_read_back_is_judged_by_what_was_seen(shows: OrderState) -> None:
    fresh, doubt = REFUSAL_TABLE[shows]

    assert fresh == told(after(FRESH, BY_WAREHOUSE, read_back(shows)), FRESH)
    assert doubt == told(after(DOUBT, BY_WAREHOUSE, read_back(shows)), DOUBT)
    assert doubt == told(after(DOUBT, REFUSED, read_back(shows)), DOUBT)


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
    transition = after(FRESH, outcome(Kind.REFUSED, reason="order_not_found", message="No such order"))

    assert "rejected not_cancelled refusal +1" == told(transition, FRESH)
    assert ("order_not_found", "No such order") == (transition.reason, transition.message)


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
    assert state.in_doubt is kept.in_doubt


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


def test_a_refusal_still_unread_at_the_horizon_ends_in_doubt_where_it_was_in_doubt() -> None:
    at_the_end = FIRST_SENT + seconds(POLICY.retry_horizon)

    transition = after(DOUBT, REFUSED, read_back(OrderState.LATER), now=at_the_end)

    assert "rejected unknown refusal +1 confirm" == told(transition, DOUBT)


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
    transition = expire(state, now=NOW, policy=POLICY)

    assert expected == told(transition, state)
    assert transition.status in TRANSITIONS[Status.PENDING] & TRANSITIONS[Status.QUEUED] & TRANSITIONS[Status.WAITING]


UNREAD = State(
    attempts=4,
    first_sent_at=FIRST_SENT,
    verdict=Verdict.NOT_CANCELLED,
    evidence=Evidence.REFUSAL,
    reason="refused_by_warehouse",
)


@pytest.mark.parametrize(
    ("expected", "state"),
    [
        pytest.param("exhausted not_cancelled never_sent +0", FRESH, id="fresh"),
        pytest.param("exhausted unknown - +0 confirm", DOUBT, id="in doubt"),
        pytest.param("rejected not_cancelled refusal +0", UNREAD, id="refused, unread"),
        pytest.param(
            "rejected unknown refusal +0 confirm",
            structs.replace(UNREAD, verdict=Verdict.UNKNOWN),
            id="refused, unread, in doubt",
        ),
    ],
)
def test_what_is_given_up_while_it_waits_spends_no_attempt_and_tells_what_is_known(
    expected: str, state: State
) -> None:
    transition = give_up(state, now=NOW, policy=POLICY)

    assert expected == told(transition, state)
    assert transition.status in TRANSITIONS[Status.PENDING]


def test_only_what_was_surely_never_sent_can_be_withdrawn() -> None:
    transition = withdraw(FRESH, now=NOW, policy=POLICY)

    assert transition is not None
    assert "withdrawn not_cancelled never_sent +0" == told(transition, FRESH)
    assert withdraw(DOUBT, now=NOW, policy=POLICY) is None
    refused = later(FRESH, after(FRESH, BY_WAREHOUSE, read_back(OrderState.LATER)))
    assert withdraw(refused, now=NOW, policy=POLICY) is None


# ---- whatever happens: properties over every situation that an attempt can meet

jitters = st.floats(0.0, 1.0, exclude_max=True)
waits = st.none() | st.floats(0.0, 100.0)  # as the header was clamped, below the cap of any policy here
verdicts_so_far = st.sampled_from([None, Verdict.UNKNOWN])
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
    st.builds(outcome, st.just(Kind.REFUSED), read_first=st.booleans(), message=st.none() | st.just("no")),
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
        verdict=(verdict or Verdict.NOT_CANCELLED) if refused_unread else verdict,
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
    return decide(state, meant, seen, now=now, jitter=jitter, policy=policy)


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
        transition = decide(state, result, read, now=now, jitter=jitter, policy=policy)
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
        transition = decide(state, outcome(kind, retry_after=retry_after), None, now=now, jitter=jitter, policy=policy)
        if transition.run_at is None:
            break
        state, now = later(state, transition), transition.run_at

    assert transition.status is Status.EXHAUSTED
    assert FIRST_SENT + seconds(600.0 - 61.0) <= now < FIRST_SENT + seconds(600.0)


# ---- read-backs after the end


@pytest.mark.parametrize(
    ("expected", "passed"),
    [(120, 0), (120, 119.9), (900, 120), (900, 899), (4200, 900), (None, 4200), (None, 10**6)],
)
def test_an_unproven_end_is_read_back_after_2_15_and_70_minutes(expected: float | None, passed: float) -> None:
    due = next_read_back(NOW, NOW + seconds(passed), POLICY)

    assert (None if expected is None else NOW + seconds(expected)) == due


UNPROVEN = [
    (Verdict.ACCEPTED, Evidence.RESPONSE),
    (Verdict.ACCEPTED, Evidence.REPLAYED_RESPONSE),
    (Verdict.UNKNOWN, None),
    (Verdict.UNKNOWN, Evidence.REFUSAL),
]
ended = pytest.mark.parametrize(("verdict", "evidence"), UNPROVEN, ids=str)


@ended
def test_a_read_that_shows_the_order_cancelled_is_proof(verdict: Verdict, evidence: Evidence | None) -> None:
    found = confirm(verdict, evidence, NOW, read_back(OrderState.CANCELLED), now=NOW + seconds(120), policy=POLICY)

    assert (Verdict.CANCELLED, Evidence.READ_BACK) == (found.verdict, found.evidence)
    assert (None, CANCELLED, False) == (found.confirm_at, found.order, found.contradicted)


@ended
def test_goods_that_left_are_proof_and_contradict_only_a_yes(verdict: Verdict, evidence: Evidence | None) -> None:
    found = confirm(verdict, evidence, NOW, read_back(OrderState.SHIPPED), now=NOW + seconds(120), policy=POLICY)

    assert (Verdict.NOT_CANCELLED, Evidence.READ_BACK) == (found.verdict, found.evidence)
    assert (None, SHIPPED) == (found.confirm_at, found.order)
    assert (verdict is Verdict.ACCEPTED) is found.contradicted


@ended
@pytest.mark.parametrize("shows", [OrderState.OPEN, OrderState.ABSENT, OrderState.UNREADABLE], ids=str)
@pytest.mark.parametrize(("passed", "expected"), [(120, 900), (900, 4200), (4200, None)])
def test_a_read_that_proves_nothing_changes_nothing_and_is_looked_at_again(
    verdict: Verdict, evidence: Evidence | None, shows: OrderState, passed: float, expected: float | None
) -> None:
    found = confirm(verdict, evidence, NOW, read_back(shows), now=NOW + seconds(passed), policy=POLICY)

    assert (verdict, evidence, False) == (found.verdict, found.evidence, found.contradicted)
    assert (None if expected is None else NOW + seconds(expected)) == found.confirm_at


@ended
@pytest.mark.parametrize("shows", [OrderState.LATER, OrderState.NO_ACCESS], ids=str)
@pytest.mark.parametrize(
    ("expected", "retry_after"),
    [(60, None), (60, 1.0), (90, 90.0), (900, 900.0)],
    ids=str,
)
def test_a_read_back_that_failed_is_asked_again_within_our_cap(
    verdict: Verdict, evidence: Evidence | None, shows: OrderState, expected: float, retry_after: float | None
) -> None:
    now = NOW + seconds(4200)

    found = confirm(verdict, evidence, NOW, read_back(shows, retry_after=retry_after), now=now, policy=POLICY)

    assert (verdict, evidence, now + seconds(expected)) == (found.verdict, found.evidence, found.confirm_at)


def test_a_read_back_that_has_no_room_is_asked_again_soon() -> None:
    crowded = ReadBack(shows=OrderState.LATER, reason="read_paced", spends_attempt=False)

    found = confirm(Verdict.UNKNOWN, None, NOW, crowded, now=NOW + seconds(120), policy=POLICY)

    assert NOW + seconds(122) == found.confirm_at


def test_read_backs_that_always_fail_end_with_the_horizon() -> None:
    almost = NOW + seconds(POLICY.retry_horizon - 60)

    found = confirm(Verdict.UNKNOWN, None, NOW, read_back(OrderState.LATER), now=almost, policy=POLICY)

    assert found.confirm_at is None
    assert found.verdict is Verdict.UNKNOWN


@anything_goes
@given(st.sampled_from(UNPROVEN), reads, st.floats(0.0, 200_000.0), policies)
def test_a_read_back_only_raises_a_verdict(
    known: tuple[Verdict, Evidence | None], seen: ReadBack, passed: float, policy: Policy
) -> None:
    now = NOW + seconds(passed)
    found = confirm(*known, NOW, seen, now=now, policy=policy)

    raised = {OrderState.CANCELLED: Verdict.CANCELLED, OrderState.SHIPPED: Verdict.NOT_CANCELLED}.get(seen.shows)
    assert ((raised, Evidence.READ_BACK) if raised else known) == (found.verdict, found.evidence)
    assert found.confirm_at is None or found.confirm_at > now
    assert not (raised and found.confirm_at)
    assert found.contradicted is (seen.shows is OrderState.SHIPPED and known[0] is Verdict.ACCEPTED)


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
