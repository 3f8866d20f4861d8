"""Every status, every legal transition, and `decide`: the one place that turns a meaning into a transition.

All rules about state live here, and this file does not know who applies them, where, or when.

    pending ──► in_flight ──► succeeded | rejected | exhausted | expired
       ▲            │
       ├────────────┤  given back unsent, or its connection is held
       │            ▼
       └──────── waiting   (until run_at)

    expired and withdrawn are also reached from pending and waiting; what is pending beyond the retry horizon (its
    connection is held) is given up; replay leads from an ended status back to pending.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from worker.cancellation.answer import Order
from worker.cancellation.backoff import backoff
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.pace import is_long
from worker.inputs.headers import RetryAfter


class Status(StrEnum):
    PENDING = "pending"  # accepted; a dispatcher claims it when its turn comes
    QUEUED = "queued"  # by a worker of version 0.1, which marked a row before it claimed it
    IN_FLIGHT = "in_flight"  # claimed by a worker; the record of its answer ends that, or the rescue
    WAITING = "waiting"  # until run_at; then the housekeeper makes it pending
    SUCCEEDED = "succeeded"  # Trackstar answered 200, or a read-back proved the cancel
    REJECTED = "rejected"  # refused for good
    EXHAUSTED = "exhausted"  # gave up after the retry horizon
    EXPIRED = "expired"  # send_by passed before it could be sent (again)
    WITHDRAWN = "withdrawn"  # taken back before it was sent


class Verdict(StrEnum):
    """What we know about the order."""

    CANCELLED = "cancelled"  # proven
    ACCEPTED = "accepted"  # Trackstar said yes, not yet seen
    NOT_CANCELLED = "not_cancelled"  # refused or never sent
    UNKNOWN = "unknown"  # in doubt


class Evidence(StrEnum):
    RESPONSE = "response"
    REPLAYED_RESPONSE = "replayed_response"
    READ_BACK = "read_back"
    REFUSAL = "refusal"
    NEVER_SENT = "never_sent"


class SafeToRefund(StrEnum):
    YES = "yes"
    NO = "no"
    NOT_YET = "not yet"


S = Status
TRANSITIONS: dict[Status, frozenset[Status]] = {
    S.PENDING: frozenset({S.IN_FLIGHT, S.EXPIRED, S.WITHDRAWN, S.EXHAUSTED, S.REJECTED}),
    S.QUEUED: frozenset({S.PENDING, S.EXPIRED, S.WITHDRAWN}),
    S.IN_FLIGHT: frozenset({S.WAITING, S.PENDING, S.SUCCEEDED, S.REJECTED, S.EXHAUSTED, S.EXPIRED}),
    S.WAITING: frozenset({S.PENDING, S.EXPIRED, S.WITHDRAWN}),
    # From here on only a person's replay leads back, and never over the verdict `cancelled`.
    S.SUCCEEDED: frozenset({S.PENDING}),
    S.REJECTED: frozenset({S.PENDING}),
    S.EXHAUSTED: frozenset({S.PENDING}),
    S.EXPIRED: frozenset({S.PENDING}),
    S.WITHDRAWN: frozenset({S.PENDING}),
}
FINAL = frozenset({S.SUCCEEDED, S.REJECTED, S.EXHAUSTED, S.EXPIRED, S.WITHDRAWN})
UNSENT = frozenset({S.PENDING, S.QUEUED, S.WAITING})  # no request is in flight


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that a decision depends on, in seconds."""

    retry_base: float = 1.0
    retry_cap: float = 900.0
    retry_horizon: float = 86_400.0
    read_back: tuple[float, ...] = (120.0, 900.0, 4200.0)  # after the end; the copy is hourly


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision must know of the cancellation, as its claim found it."""

    attempts: int  # spent so far
    first_sent_at: datetime
    send_by: datetime | None = None
    verdict: Verdict | None = None
    evidence: Evidence | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether an earlier request of this cancellation may have landed."""
        return self.verdict is Verdict.UNKNOWN

    @property
    def awaits_read(self) -> bool:
        """Whether the next step is to read back a refusal that could not be read so far."""
        return self.evidence is Evidence.REFUSAL

    @property
    def remembered_refusal(self) -> Outcome:
        return Outcome(kind=Kind.REFUSED, reason=self.reason or "refused", message=self.message, read_first=True)


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One legal change of a cancellation; what is not named here ends with its claim."""

    status: Status
    attempts: int
    reason: str
    message: str | None = None
    verdict: Verdict | None = None
    evidence: Evidence | None = None
    run_at: datetime | None = None
    confirm_at: datetime | None = None
    order: Order | None = None
    unused_fields: str | None = None
    hold_connection: bool = False
    pause_connection: RetryAfter | None = None  # the server asks for so long a pause that it becomes a hold


def must_read(state: State, outcome: Outcome) -> bool:
    """Whether this outcome may not be recorded before the order was read back."""
    return outcome.read_first or (outcome.kind is Kind.REFUSED and state.in_doubt)


def decide(
    state: State, outcome: Outcome, read: ReadBack | None, *, now: datetime, jitter: float, policy: Policy
) -> Transition:
    """Choose the one legal transition after an attempt.

    `read` is there where `must_read` asked for it; `now` is the ledger's time; `jitter` is uniform in [0, 1).
    """
    if outcome.kind is Kind.ACCEPTED:
        return _succeed(state, outcome, now, policy)
    if outcome.kind is Kind.REFUSED:
        if read is None:
            return _reject(state, outcome, now, policy)
        return _decide_refusal(state, outcome, read, now=now, jitter=jitter, policy=policy)
    if outcome.kind is Kind.NO_ACCESS:
        return _set_aside(state, outcome)
    if outcome.kind is Kind.SLOW_DOWN and is_long(outcome.retry_after):
        return _pause(state, outcome)
    if read is not None and read.shows is OrderState.CANCELLED:
        return _proven(state, read)
    if read is not None and read.shows is OrderState.SHIPPED:
        # A yes that could not be read, and the goods have left: it was none.
        return _reject(state, Outcome(kind=Kind.REFUSED, reason=read.reason), now, policy, read)
    if read is not None and read.retry_after is not None:  # it is tried, and read, again: the longer wish counts
        longest = max(read.retry_after, outcome.retry_after or read.retry_after)
        outcome = msgspec.structs.replace(outcome, retry_after=longest)
    return _try_again(state, outcome, now=now, jitter=jitter, policy=policy)


def _succeed(state: State, outcome: Outcome, now: datetime, policy: Policy) -> Transition:
    proven = outcome.order is not None and outcome.order.status == "cancelled"
    return Transition(
        status=Status.SUCCEEDED,
        attempts=state.attempts + 1,
        reason=outcome.reason,
        verdict=Verdict.CANCELLED if proven else Verdict.ACCEPTED,
        evidence=Evidence.REPLAYED_RESPONSE if outcome.replayed else Evidence.RESPONSE,
        confirm_at=None if proven else next_read_back(now, now, policy),
        order=outcome.order,
        unused_fields=outcome.unused_fields,
    )


def _decide_refusal(
    state: State, outcome: Outcome, read: ReadBack, *, now: datetime, jitter: float, policy: Policy
) -> Transition:
    if read.shows is OrderState.CANCELLED:
        return _proven(state, read)
    if read.shows is OrderState.NO_ACCESS:
        return _keep_refusal(state, outcome, status=Status.PENDING, hold_connection=True)
    if read.shows is OrderState.LATER:
        return _read_later(state, outcome, read, now=now, jitter=jitter, policy=policy)
    return _reject(state, outcome, now, policy, read)


def _proven(state: State, read: ReadBack) -> Transition:
    return Transition(
        status=Status.SUCCEEDED,
        attempts=state.attempts + 1,
        reason=read.reason,
        verdict=Verdict.CANCELLED,
        evidence=Evidence.READ_BACK,
        order=read.order,
    )


def _reject(state: State, outcome: Outcome, now: datetime, policy: Policy, read: ReadBack | None = None) -> Transition:
    shipped = read is not None and read.shows is OrderState.SHIPPED
    doubt = state.in_doubt and not shipped
    return Transition(
        status=Status.REJECTED,
        attempts=state.attempts + 1,
        reason=outcome.reason,
        message=outcome.message,
        verdict=Verdict.UNKNOWN if doubt else Verdict.NOT_CANCELLED,
        evidence=Evidence.READ_BACK if shipped else Evidence.REFUSAL,
        confirm_at=next_read_back(now, now, policy) if doubt else None,
        order=read.order if read else None,
    )


def _read_later(
    state: State, outcome: Outcome, read: ReadBack, *, now: datetime, jitter: float, policy: Policy
) -> Transition:
    spent = state.attempts + 1 if read.spends_attempt else state.attempts
    due = now + _delay(max(spent, 1), read.retry_after, jitter, policy)
    if due >= _horizon(state, policy):
        return _reject(state, outcome, now, policy, read)
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
        verdict=Verdict.UNKNOWN if state.in_doubt else Verdict.NOT_CANCELLED,
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
        verdict=Verdict.UNKNOWN if state.in_doubt else None,
        pause_connection=outcome.retry_after,
    )


def expire(state: State, *, now: datetime, policy: Policy) -> Transition:
    """End an unsent cancellation whose `send_by` has passed, with a truthful verdict."""
    return _end_unproven(Status.EXPIRED, state, "send_by_passed", now, policy)


def give_up(state: State, *, now: datetime, policy: Policy) -> Transition:
    """End what has waited past the retry horizon, as while its connection is held: its key has lived its life."""
    if state.awaits_read:
        rejected = _reject(state, state.remembered_refusal, now, policy)
        return msgspec.structs.replace(rejected, attempts=state.attempts)  # nothing was attempted now
    return _end_unproven(Status.EXHAUSTED, state, "horizon_passed", now, policy)


def withdraw(state: State, *, now: datetime, policy: Policy) -> Transition | None:
    """Take back what was never sent; None when a request may have reached the warehouse: too late."""
    if state.verdict is not None:
        return None
    return _end_unproven(Status.WITHDRAWN, state, "withdrawn", now, policy)


def _end_unproven(
    status: Status, state: State, reason: str, now: datetime, policy: Policy, message: str | None = None
) -> Transition:
    # Nobody refused it and nothing proves it: either it never got through, or it is in doubt.
    return Transition(
        status=status,
        attempts=state.attempts,
        reason=reason,
        message=message,
        verdict=Verdict.UNKNOWN if state.in_doubt else Verdict.NOT_CANCELLED,
        evidence=None if state.in_doubt else Evidence.NEVER_SENT,
        confirm_at=next_read_back(now, now, policy) if state.in_doubt else None,
    )


def why_not_replay(status: Status, verdict: Verdict | None) -> str | None:
    """Say why an operator may not run this one again, as a clause; None when it may be."""
    if S.PENDING not in TRANSITIONS[status] or status not in FINAL:
        return f"it has not ended: it is {status}"
    if verdict is Verdict.CANCELLED:
        return "its order is proven cancelled, so there is nothing left to do"
    return None


def doubt_kept(verdict: Verdict | None) -> Verdict | None:
    """Return what a replay still has to fear: a request of an earlier generation that may have landed."""
    return Verdict.UNKNOWN if verdict in {Verdict.UNKNOWN, Verdict.ACCEPTED} else None


_SPENDS_ATTEMPT = frozenset({Kind.IN_DOUBT, Kind.NOT_SENT})
_LEAVES_DOUBT = frozenset({Kind.IN_DOUBT, Kind.STILL_RUNNING})


def _try_again(state: State, outcome: Outcome, *, now: datetime, jitter: float, policy: Policy) -> Transition:
    doubt = state.in_doubt or outcome.kind in _LEAVES_DOUBT
    if outcome.kind in _SPENDS_ATTEMPT:
        attempts = state.attempts + 1
        due = now + _delay(attempts, outcome.retry_after, jitter, policy)
    else:
        attempts = state.attempts
        due = now + _patience(state, outcome, now, jitter, policy)
    ended = _out_of_time(state, due, policy)
    if ended is None:
        return Transition(
            status=Status.WAITING,
            attempts=attempts,
            reason=outcome.reason,
            message=outcome.message,
            verdict=Verdict.UNKNOWN if doubt else None,
            run_at=due,
        )
    known = msgspec.structs.replace(state, attempts=attempts, verdict=Verdict.UNKNOWN if doubt else None)
    return _end_unproven(ended, known, outcome.reason, now, policy, outcome.message)


def _out_of_time(state: State, due: datetime, policy: Policy) -> Status | None:
    # Told now rather than when it happens: what cannot be sent in time is known to be lost.
    if state.send_by is not None and due >= state.send_by:
        return Status.EXPIRED
    return Status.EXHAUSTED if due >= _horizon(state, policy) else None


def _horizon(state: State, policy: Policy) -> datetime:
    return state.first_sent_at + timedelta(seconds=policy.retry_horizon)


def _delay(attempts: int, retry_after: RetryAfter | None, jitter: float, policy: Policy) -> timedelta:
    floor = retry_after or 0.0
    wait = backoff(attempts, base=policy.retry_base, cap=policy.retry_cap, jitter=jitter, floor=floor)
    return timedelta(seconds=wait)


# The longest pause between two questions "is it still running?": a key is busy for 15 minutes at most.
_MAX_PATIENCE = 60.0


def _patience(state: State, outcome: Outcome, now: datetime, jitter: float, policy: Policy) -> timedelta:
    # These waits spend no attempt, so the time that has passed stands in for the exponent.
    if outcome.retry_after is not None:
        return _delay(1, outcome.retry_after, jitter, policy)
    passed = (now - state.first_sent_at).total_seconds()
    wait = min(max(passed, policy.retry_base), _MAX_PATIENCE, policy.retry_cap)
    return timedelta(seconds=wait * (1.0 + jitter) / 2.0)


def next_read_back(ended_at: datetime, now: datetime, policy: Policy) -> datetime | None:
    """Return when an ended cancellation without proof is read back next, or None when all were tried."""
    for seconds in policy.read_back:
        due = ended_at + timedelta(seconds=seconds)
        if due > now:
            return due
    return None


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What a later read-back changes on an ended cancellation. The status stays; the verdict may rise."""

    verdict: Verdict
    evidence: Evidence | None
    confirm_at: datetime | None
    order: Order | None = None
    contradicted: bool = False  # Trackstar had said yes, and the goods left


# A failed read-back is asked again after this long: the copy it asks for changes hourly.
_READ_AGAIN = 60.0
# One that was never asked, or was told to slow down, is due still: it waits for room, not for another copy.
_ASK_SOON = 2.0


def confirm(
    verdict: Verdict,
    evidence: Evidence | None,
    ended_at: datetime,
    read: ReadBack,
    *,
    now: datetime,
    policy: Policy,
) -> Confirmation:
    """Raise a verdict by a later read-back, or say when to look again."""
    if read.shows is OrderState.CANCELLED:
        return Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None, order=read.order)
    if read.shows is OrderState.SHIPPED:
        return Confirmation(
            verdict=Verdict.NOT_CANCELLED,
            evidence=Evidence.READ_BACK,
            confirm_at=None,
            order=read.order,
            contradicted=verdict is Verdict.ACCEPTED,
        )
    if read.shows in {OrderState.LATER, OrderState.NO_ACCESS}:
        patience = _READ_AGAIN if read.spends_attempt else _ASK_SOON
        again = now + timedelta(seconds=max(read.retry_after or 0.0, patience))
        within = ended_at + timedelta(seconds=policy.retry_horizon)
        return Confirmation(verdict=verdict, evidence=evidence, confirm_at=again if again < within else None)
    return Confirmation(
        verdict=verdict,
        evidence=evidence,
        confirm_at=next_read_back(ended_at, now, policy),
        order=read.order,
    )


def safe_to_refund(status: Status, verdict: Verdict | None) -> SafeToRefund:
    """Answer the one question of support. Nothing is told before the cancellation has ended."""
    if status not in FINAL or verdict is None:
        return SafeToRefund.NOT_YET
    if verdict is Verdict.CANCELLED:
        return SafeToRefund.YES
    return SafeToRefund.NO if verdict is Verdict.NOT_CANCELLED else SafeToRefund.NOT_YET
