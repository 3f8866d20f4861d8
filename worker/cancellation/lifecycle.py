"""`decide`: the one place that turns the meaning of an answer into a transition.

What may still be learnt after the end, `proof` knows. Who applies a transition, where, and when, is not known here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from worker.cancellation.answer import Order
from worker.cancellation.backoff import backoff
from worker.cancellation.freshness import Crawls, broken, crawls_since
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack, judge_order
from worker.cancellation.pace import is_long
from worker.cancellation.policy import Policy
from worker.cancellation.proof import ENOUGH_CRAWLS, READ_SECONDS, NeedsPerson, prospect
from worker.cancellation.status import FINAL, PROVEN, TRANSITIONS, UNSENT, Evidence, Status, Verdict
from worker.inputs.headers import RetryAfter

S = Status
KEPT_BY_REPLAY = frozenset({Verdict.UNKNOWN, Verdict.ACCEPTED})  # a request of an earlier generation may land yet


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """When a decision is made, and by which settings."""

    now: datetime  # the ledger's time
    policy: Policy
    crawls: Crawls | None = None  # of the connection, as they were when its order was read
    jitter: float = 0.0  # uniform in [0, 1)


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision must know of the cancellation, as its claim found it."""

    attempts: int  # spent so far
    first_sent_at: datetime
    received_at: datetime | None = None
    send_by: datetime | None = None
    verdict: Verdict | None = None
    evidence: Evidence | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def doubt(self) -> Verdict | None:
        """What stands if nothing more is learnt: an earlier request may have landed, or was accepted."""
        return self.verdict if self.verdict in KEPT_BY_REPLAY else None

    @property
    def in_doubt(self) -> bool:
        return self.doubt is not None

    @property
    def awaits_read(self) -> bool:
        """Whether the next step is to read back a refusal that could not be read so far."""
        return self.evidence is Evidence.REFUSAL

    @property
    def remembered_refusal(self) -> Outcome:
        return Outcome(kind=Kind.REFUSED, reason=self.reason or "refused", message=self.message, read_first=True)


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One legal change of a cancellation; the lease is not named: each transition ends it."""

    status: Status
    attempts: int
    reason: str
    message: str | None = None
    verdict: Verdict | None = None
    evidence: Evidence | None = None
    as_of: datetime | None = None  # the instant of which the verdict is true
    run_at: datetime | None = None
    confirm_at: datetime | None = None
    known_by: datetime | None = None  # where a crawl is waited for
    needs_person: NeedsPerson | None = None  # where no crawl settles it
    order: Order | None = None
    unused_fields: str | None = None
    hold_connection: bool = False
    pause_connection: RetryAfter | None = None  # the server asks for so long a pause that it becomes a hold


def must_read(state: State, outcome: Outcome) -> bool:
    """Whether this outcome may not be recorded before the order was read back."""
    return outcome.read_first or (outcome.kind is Kind.REFUSED and state.in_doubt)


def decide(state: State, outcome: Outcome, read: ReadBack | None, at: Moment) -> Transition:
    """Choose the one legal transition after an attempt. `read` is there where `must_read` asked for it."""
    if outcome.kind is Kind.ACCEPTED and (read is None or read.shows is not OrderState.SHIPPED):
        return _succeed(state, outcome, read, at)
    if outcome.kind is Kind.REFUSED:
        return _decide_refusal(state, outcome, read, at)
    if outcome.kind is Kind.NO_ACCESS:
        return _set_aside(state, outcome)
    if outcome.kind is Kind.SLOW_DOWN and is_long(outcome.retry_after):
        return _pause(state, outcome)
    if read is not None and read.shows is OrderState.CANCELLED:
        return _proven(state, read, at)
    if read is not None and read.shows is OrderState.SHIPPED:
        # A yes that could not be read, or is old, and the goods have left: it is none.
        return _reject(state, Outcome(kind=Kind.REFUSED, reason=read.reason), read, at)
    if read is not None and read.retry_after is not None:  # it is tried, and read, again: the longer wish counts
        longest = max(read.retry_after, outcome.retry_after or read.retry_after)
        outcome = msgspec.structs.replace(outcome, retry_after=longest)
    return _try_again(state, outcome, at)


def _succeed(state: State, outcome: Outcome, read: ReadBack | None, at: Moment) -> Transition:
    """End by a yes. A stored one (replayed) proves nothing by itself: it says what was true when it was stored."""
    shown = outcome.order is not None and judge_order(outcome.order).shows is OrderState.CANCELLED
    proven = shown if read is None else read.shows is OrderState.CANCELLED
    return _ended(
        Status.SUCCEEDED,
        Verdict.CANCELLED if proven else Verdict.ACCEPTED,
        Evidence.REPLAYED_RESPONSE if outcome.replayed else Evidence.RESPONSE,
        at,
        attempts=state.attempts + 1,
        reason=outcome.reason,
        order=(read.order if read else None) or outcome.order,
        unused_fields=outcome.unused_fields,
    )


def _ended(status: Status, verdict: Verdict, evidence: Evidence | None, at: Moment, **facts: Any) -> Transition:
    """End a cancellation; without proof, with the time by which there is one."""
    transition = Transition(status=status, verdict=verdict, evidence=evidence, as_of=at.now, **facts)
    if verdict in PROVEN:
        return transition
    then = prospect(at.now, at.now, at.crawls, at.policy)
    return msgspec.structs.replace(
        transition, confirm_at=then.confirm_at, known_by=then.known_by, needs_person=then.needs_person
    )


def _decide_refusal(state: State, outcome: Outcome, read: ReadBack | None, at: Moment) -> Transition:
    shows = read.shows if read else None
    if read is not None and shows is OrderState.CANCELLED:
        return _proven(state, read, at)
    if shows is OrderState.NO_ACCESS:
        return _keep_refusal(state, outcome, status=Status.PENDING, hold_connection=True)
    if read is not None and shows is OrderState.LATER:
        return _read_later(state, outcome, read, at)
    if outcome.reason == ORDER_NOT_FOUND and shows in {None, OrderState.ABSENT}:
        return _wait_for_copy(state, outcome, read, at)
    return _reject(state, outcome, read, at)


def _proven(state: State, read: ReadBack, at: Moment) -> Transition:
    return _ended(
        Status.SUCCEEDED,
        Verdict.CANCELLED,
        Evidence.READ_BACK,
        at,
        attempts=state.attempts + 1,
        reason=read.reason,
        order=read.order,
    )


def _reject(state: State, outcome: Outcome, read: ReadBack | None, at: Moment) -> Transition:
    """End by a refusal. What Trackstar itself refused was never sent on; the warehouse's word alone proves nothing.

    The warehouse also refuses what somebody else has just cancelled, and the copy may be older than that.
    """
    verdict: Verdict
    evidence: Evidence | None
    if read is not None and read.shows is OrderState.SHIPPED:
        verdict, evidence = Verdict.NOT_CANCELLED, Evidence.READ_BACK
    elif state.in_doubt or outcome.read_first:
        verdict, evidence = _unproven(state)
    else:
        verdict, evidence = Verdict.NOT_CANCELLED, Evidence.REFUSAL
    return _ended(
        Status.REJECTED,
        verdict,
        evidence,
        at,
        attempts=state.attempts + 1,
        reason=outcome.reason,
        message=outcome.message,
        order=read.order if read else None,
    )


ORDER_NOT_FOUND = "order_not_found"
NOT_FOUND_YET = "order_not_found_yet"
_BEFORE_END = 5.0  # the last time that it is asked for, before its send_by or the retry horizon
_ASK_FOR_NEW = 60.0  # the first pause before an order is asked for again that may be younger than the copy


def _wait_for_copy(state: State, outcome: Outcome, read: ReadBack | None, at: Moment) -> Transition:
    """Send again after the next crawl: the order may be younger than Trackstar's copy."""
    came_in = state.received_at or state.first_sent_at
    end = min(_horizon(state, at.policy), state.send_by or datetime.max.replace(tzinfo=UTC))
    last = min(came_in + timedelta(seconds=at.policy.not_found_grace), end - timedelta(seconds=_BEFORE_END))
    if crawls_since(at.crawls, came_in) >= ENOUGH_CRAWLS or at.now >= last:
        return _reject(state, outcome, read, at)
    return Transition(
        status=Status.WAITING,
        attempts=state.attempts + 1,
        reason=NOT_FOUND_YET,
        message=outcome.message,
        verdict=state.doubt,
        run_at=min(_next_copy(came_in, at), last),
        known_by=last + timedelta(seconds=READ_SECONDS),
    )


def _next_copy(came_in: datetime, at: Moment) -> datetime:
    passed = (at.now - came_in).total_seconds()
    pause = at.now + timedelta(seconds=min(max(passed, _ASK_FOR_NEW), at.policy.retry_cap))
    if at.crawls is None or not at.crawls.known or broken(at.crawls, at.now):
        return pause
    # Whoever sees a crawl end lets it be sent at once; this is for a crawl that nobody sees.
    return max(pause, at.crawls.next_end(at.now) or pause)


def _read_later(state: State, outcome: Outcome, read: ReadBack, at: Moment) -> Transition:
    spent = state.attempts + 1 if read.spends_attempt else state.attempts
    due = at.now + _delay(max(spent, 1), read.retry_after, at)
    if due >= _horizon(state, at.policy):
        return _reject(state, outcome, read, at)
    return _keep_refusal(state, outcome, status=Status.WAITING, run_at=due, attempts=spent)


def _keep_refusal(
    state: State,
    outcome: Outcome,
    *,
    status: Status,
    attempts: int | None = None,
    run_at: datetime | None = None,
    hold_connection: bool = False,
) -> Transition:
    # The refusal is known and unread. It is kept on the row, so that the next step is a read and no second write.
    return Transition(
        status=status,
        attempts=state.attempts if attempts is None else attempts,
        reason=outcome.reason,
        message=outcome.message,
        verdict=state.doubt or Verdict.UNKNOWN,
        evidence=Evidence.REFUSAL,
        run_at=run_at,
        hold_connection=hold_connection,
    )


def _set_aside(state: State, outcome: Outcome) -> Transition:
    if state.awaits_read:
        return _keep_refusal(state, state.remembered_refusal, status=Status.PENDING, hold_connection=True)
    return Transition(
        status=Status.PENDING,
        attempts=state.attempts,
        reason=outcome.reason,
        message=outcome.message,
        verdict=state.verdict,
        hold_connection=True,
    )


def _pause(state: State, outcome: Outcome) -> Transition:
    # Pending and not waiting: whoever ends the hold before its time ends this wait too.
    return Transition(
        status=Status.PENDING,
        attempts=state.attempts,
        reason=outcome.reason,
        message=outcome.message,
        verdict=state.doubt,
        pause_connection=outcome.retry_after,
    )


def expire(state: State, at: Moment) -> Transition:
    """End an unsent cancellation whose `send_by` has passed, with a truthful verdict."""
    return _end_unproven(Status.EXPIRED, state, "send_by_passed", at)


def give_up(state: State, at: Moment) -> Transition:
    """End what has waited past the retry horizon, as while its connection is held: its key has lived its life."""
    if state.awaits_read:
        rejected = _reject(state, state.remembered_refusal, None, at)
        return msgspec.structs.replace(rejected, attempts=state.attempts)  # nothing was attempted now
    return _end_unproven(Status.EXHAUSTED, state, "horizon_passed", at)


def withdraw(state: State, at: Moment) -> Transition | None:
    """Take back what was never sent; None when a request may have reached the warehouse: too late."""
    if state.verdict is not None:
        return None
    return _end_unproven(Status.WITHDRAWN, state, "withdrawn", at)


def why_not_withdraw(status: Status, verdict: Verdict | None) -> str | None:
    """Say why it is too late to take this one back, as a clause; None when it may be."""
    if status in UNSENT and verdict is None:
        return None
    return f"it is {status}, so a request may have reached the warehouse"


def why_not_change(status: Status, _: Verdict | None) -> str | None:
    """Say why it is too late to change how this one is sent, as a clause; None when it may be."""
    if status in UNSENT:
        return None
    return f"it has ended: it is {status}" if status in FINAL else "a request is under way: ask again in a moment"


def _unproven(state: State) -> tuple[Verdict, Evidence | None]:
    """Return the verdict of what ends without proof: a yes before a replay still stands."""
    if state.doubt is Verdict.ACCEPTED:
        return Verdict.ACCEPTED, Evidence.RESPONSE
    return Verdict.UNKNOWN, None


def _end_unproven(status: Status, state: State, reason: str, at: Moment, message: str | None = None) -> Transition:
    # Nobody refused it and nothing proves it: either it never got through, or it is in doubt.
    verdict, evidence = _unproven(state) if state.in_doubt else (Verdict.NOT_CANCELLED, Evidence.NEVER_SENT)
    return _ended(
        status,
        verdict,
        evidence,
        at,
        attempts=state.attempts,
        reason=reason,
        message=message,
    )


def why_not_replay(status: Status, verdict: Verdict | None) -> str | None:
    """Say why an operator may not run this one again, as a clause; None when it may be."""
    if S.PENDING not in TRANSITIONS[status] or status not in FINAL:
        return f"it has not ended: it is {status}"
    if verdict is Verdict.CANCELLED:
        return "its order is proven cancelled, so there is nothing left to do"
    return None


_SPENDS_ATTEMPT = frozenset({Kind.IN_DOUBT, Kind.NOT_SENT})
_LEAVES_DOUBT = frozenset({Kind.IN_DOUBT, Kind.STILL_RUNNING})


def _try_again(state: State, outcome: Outcome, at: Moment) -> Transition:
    verdict = state.doubt or (Verdict.UNKNOWN if outcome.kind in _LEAVES_DOUBT else None)
    if outcome.kind in _SPENDS_ATTEMPT:
        attempts = state.attempts + 1
        due = at.now + _delay(attempts, outcome.retry_after, at)
    else:
        attempts = state.attempts
        due = at.now + _patience(state, outcome, at)
    ended = _out_of_time(state, due, at.policy)
    if ended is None:
        return Transition(
            status=Status.WAITING,
            attempts=attempts,
            reason=outcome.reason,
            message=outcome.message,
            verdict=verdict,
            run_at=due,
        )
    known = msgspec.structs.replace(state, attempts=attempts, verdict=verdict)
    return _end_unproven(ended, known, outcome.reason, at, outcome.message)


def _out_of_time(state: State, due: datetime, policy: Policy) -> Status | None:
    # Told now rather than when it happens: what cannot be sent in time is known to be lost.
    if state.send_by is not None and due >= state.send_by:
        return Status.EXPIRED
    return Status.EXHAUSTED if due >= _horizon(state, policy) else None


def _horizon(state: State, policy: Policy) -> datetime:
    return state.first_sent_at + timedelta(seconds=policy.retry_horizon)


def _delay(attempts: int, retry_after: RetryAfter | None, at: Moment) -> timedelta:
    base, cap = at.policy.retry_base, at.policy.retry_cap
    return timedelta(seconds=backoff(attempts, base=base, cap=cap, jitter=at.jitter, floor=retry_after or 0.0))


# The longest pause between two questions "is it still running?": a key is busy for 15 minutes at most.
_MAX_PATIENCE = 60.0


def _patience(state: State, outcome: Outcome, at: Moment) -> timedelta:
    # These waits spend no attempt, so the time that has passed stands in for the exponent.
    if outcome.retry_after is not None:
        return _delay(1, outcome.retry_after, at)
    passed = (at.now - state.first_sent_at).total_seconds()
    wait = min(max(passed, at.policy.retry_base), _MAX_PATIENCE, at.policy.retry_cap)
    return timedelta(seconds=wait * (1.0 + at.jitter) / 2.0)
