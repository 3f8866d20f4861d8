"""Every statement that writes a status, each named from → to. There is no other file that does.

Which of these are legal, `cancellation.status.TRANSITIONS` says: a declaration that is not in it is refused at import.
Knows guards and columns; how a transition is decided, `cancellation.lifecycle` knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from msgspec.structs import asdict

from worker.cancellation import lifecycle
from worker.cancellation.fairness import turn_key
from worker.cancellation.lifecycle import KEPT_BY_REPLAY, Moment
from worker.cancellation.request import is_record_id
from worker.cancellation.status import FINAL, PROVEN, TRANSITIONS, UNSENT, Status, Verdict
from worker.errors import TooLateError, UnknownCancellationError
from worker.ledger import selection
from worker.ledger.claims import (
    CLAIM_COLUMNS,
    STATE_COLUMNS,
    AttemptClaim,
    Lease,
    attempt_claim,
    lease_end,
    owner_parameter,
    state_of,
)
from worker.ledger.database import autocommit
from worker.ledger.dialects import (
    RecordId,
    UtcTimestamp,
    bind_rows,
    built_once_per_dialect,
    clamped,
    db_now,
    hidden_from_planner,
    id_in_chosen,
    insert,
    is_sqlite,
    joined_by_id,
    now_plus,
    rows_parameter,
)
from worker.ledger.documents import SEEN, seen_row, seen_values
from worker.ledger.outbox import (
    KNOWN,
    NEEDS_PERSON,
    NewEvent,
    add_events,
    ended_payload,
    known_payload,
)
from worker.ledger.refunds import Proven, proven_by, refund_events
from worker.ledger.schema import LEASED, WAITING, attempts, cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

    from worker.cancellation.lifecycle import Transition
    from worker.cancellation.policy import Policy
    from worker.cancellation.request import CancelRequest

c = cancellations.c
k = connections.c
S = Status
Statement = TypeVar("Statement")

MAX_AGE_SECONDS = 3600  # before its receipt, at most, `requested_at` counts: an older one would overtake everybody

WRITES: dict[str, set[tuple[Status, Status]]] = {}  # of each function below: from which status to which


def _writes(*, frm: Collection[Status], to: Collection[Status]) -> Callable[[Statement], Statement]:
    """Declare from which statuses to which a statement leads; refuse what the table of transitions does not know."""
    for source in frm:
        if illegal := set(to) - TRANSITIONS[source]:
            raise ValueError(f"{source} does not lead to {sorted(illegal)}")

    def declared(statement: Statement) -> Statement:
        pairs = WRITES.setdefault(statement.__name__, set())  # type: ignore[attr-defined]
        pairs.update((source, target) for source in frm for target in to)
        return statement

    return declared


# ---- (nothing) → pending

_JOB = {
    "id": RecordId,
    "connection_id": sa.Text(),
    "order_id": sa.Text(),
    "idempotency_key": sa.Text(),
    "priority": sa.Text(),
    "send_by": UtcTimestamp(),
    "requested_by": sa.Text(),
    "reason": sa.Text(),
    "metadata": sa.JSON(),
    "reference_id": sa.Text(),
    "order_number": sa.Text(),
    "batch": sa.Text(),
    "traceparent": sa.Text(),
    "producer": sa.Text(),
    "requested_at": UtcTimestamp(),
}


def accept_batch(
    ledger: sa.Engine, requests: Sequence[CancelRequest], producers: Sequence[str | None] = ()
) -> set[str]:
    """Insert what is new in a transaction of its own, and return the ids of those rows; see `accept`."""
    with _one_trip(ledger) as db:
        return accept(db, requests, producers)


def _one_trip(ledger: sa.Engine) -> AbstractContextManager[sa.Connection]:
    """Open a transaction for what is one statement, but several on SQLite, which has no trips to save."""
    return ledger.begin() if is_sqlite(ledger.dialect.name) else autocommit(ledger)


@_writes(frm=(), to={S.PENDING})
def accept(db: sa.Connection, requests: Sequence[CancelRequest], producers: Sequence[str | None] = ()) -> set[str]:
    """Insert what is new and return the ids of those rows. One statement, but two on SQLite.

    The same intent is the same row, so a second delivery changes nothing. A connection nobody has added yet is noted
    as held (`unknown_connection`): its jobs wait for it. `producers`: on whose stream each request came, if any.
    """
    if not requests:
        return set()
    rows = bind_rows(_first_of_each(requests, producers or (None,) * len(requests)))
    if is_sqlite(db.dialect.name):
        db.execute(_note_connections(db), rows)
    return {str(row.id) for row in db.execute(_insert_new(db), rows)}


@built_once_per_dialect
def _note_connections(dialect: str) -> Any:
    return _noting(dialect, rows_parameter(dialect, _JOB))


@built_once_per_dialect
def _insert_new(dialect: str) -> ReturningInsert[tuple[str]]:
    if is_sqlite(dialect):
        return _inserting(dialect, rows_parameter(dialect, _JOB))
    jobs = sa.select(*rows_parameter(dialect, _JOB).c).cte("jobs")
    return _inserting(dialect, jobs).add_cte(_noting(dialect, jobs).cte("noted"))


def _noting(dialect: str, source: sa.FromClause) -> Any:
    known = sa.select(k.id).where(k.id == source.c.connection_id).exists()
    name, held = source.c.connection_id, sa.literal("unknown_connection")
    return (
        insert(dialect, connections)
        .from_select(
            ["id", "name", "hold_reason", "held_at", "created_at", "updated_at"],
            sa.select(name, name, held, db_now(), db_now(), db_now()).where(~known).group_by(name).order_by(name),
        )
        .on_conflict_do_nothing()
    )


def _inserting(dialect: str, source: sa.FromClause) -> ReturningInsert[tuple[str]]:
    columns = [column for name, column in source.c.items() if name != "requested_at"]
    inserted: ReturningInsert[tuple[str]] = (
        insert(dialect, cancellations)
        .from_select(
            [*(column.name for column in columns), "requested_at", "received_at", "status"],
            sa.select(*columns, _place_in_turn(dialect, source), db_now(), sa.literal(S.PENDING.value))
            .where(source.c.id.is_not(None))
            .order_by(source.c.id),
        )
        .on_conflict_do_nothing()
        .returning(c.id)
    )
    return inserted


def _place_in_turn(dialect: str, source: sa.FromClause) -> sa.ColumnElement[datetime]:
    # It orders the jobs of a connection: nobody states a time by which to overtake those of the last hour.
    stated = sa.func.coalesce(source.c.requested_at, db_now(), type_=UtcTimestamp())
    return clamped(dialect, stated, now_plus(sa.text(str(-MAX_AGE_SECONDS))), db_now())


def _first_of_each(requests: Sequence[CancelRequest], producers: Sequence[str | None]) -> Iterable[dict[str, Any]]:
    # One statement may not meet the same key twice; the first one is the record.
    of_each = zip(reversed(requests), reversed(producers), strict=True)
    return {request.record_id: _job_row(request, producer) for request, producer in of_each}.values()


def _job_row(request: CancelRequest, producer: str | None) -> dict[str, Any]:
    key = request.intent_key
    return {**asdict(request), "id": request.record_id, "idempotency_key": key, "producer": producer}


# ---- pending → in_flight


def claim_shares(
    ledger: sa.Engine, shares: Mapping[str, int], owner: str, lease_seconds: float, aged: Mapping[str, int]
) -> tuple[dict[str, list[AttemptClaim]], float]:
    """Claim in a transaction of its own, as `claim_next` does; return also a monotonic time before any lease began."""
    with ledger.begin() if aged else _one_trip(ledger) as db:
        asked_at = time.monotonic()  # after SQLite's wait for its lock, which is no part of a lease
        return claim_next(db, shares, owner, lease_seconds, aged=aged), asked_at


@_writes(frm={S.PENDING}, to={S.IN_FLIGHT})
def claim_next(
    db: sa.Connection,
    shares: Mapping[str, int],
    owner: str,
    lease_seconds: float,
    *,
    aged: Mapping[str, int] | None = None,
    probes: bool = False,
) -> dict[str, list[AttemptClaim]]:
    """Claim the next rows of each connection, and return them in the order in which they go.

    Urgent first, then by send_by, then first come; `aged` of a connection's share go by waiting time. A held
    connection's rows stay, except for probes. The fencing token rises here, before any request: a crash after this is
    known to be in doubt.
    """
    lease = {"owner": owner, "lease_seconds": lease_seconds}
    rows: list[sa.Row[Any]] = []
    rest = dict(shares)
    for name, count in (aged or {}).items():
        found = db.execute(_claim_oldest(db), {"name": name, "share": count, **lease}).all()
        rest[name] -= len(found)
        rows += found
    rest = {name: share for name, share in rest.items() if share > 0}
    if probes:  # a read says nothing of a warehouse that was down: a cancel goes first
        rows += _claim_shares(db, rest, lease, _SENDING_PROBES)
        rest = {name: share for name, share in rest.items() if name not in {row.connection_id for row in rows}}
    rows += _claim_shares(db, rest, lease, _PROBES if probes else _SHARES)
    claimed: dict[str, list[AttemptClaim]] = {}
    for row in sorted(rows, key=lambda row: turn_key(row.priority, row.send_by, row.requested_at)):
        claimed.setdefault(row.connection_id, []).append(attempt_claim(row))
    return claimed


def _claim_shares(
    db: sa.Connection, shares: Mapping[str, int], lease: dict[str, Any], which: _Claiming
) -> Sequence[sa.Row[Any]]:
    if not shares:
        return []
    wanted = [{"name": name, "share": share} for name, share in shares.items()]
    of_many, of_one = which
    if is_sqlite(db.dialect.name):  # which has no LATERAL; a statement more costs it no round trip
        return [row for each in wanted for row in db.execute(of_one(db), {**each, **lease})]
    return db.execute(of_many(db), {**bind_rows(wanted), **lease}).all()


_Statement = Callable[[sa.Connection], "ReturningUpdate[Any]"]
_Claiming = tuple[_Statement, _Statement]  # of many connections at once; of one, where there is no LATERAL


def _claiming_with(choose: Callable[[str], sa.Select[tuple[str]]]) -> Callable[[sa.Connection], ReturningUpdate[Any]]:
    return built_once_per_dialect(lambda dialect: _claiming(dialect, choose(dialect)))


def _claiming_of(*which: sa.ColumnElement[bool]) -> _Claiming:
    return (
        _claiming_with(lambda dialect: selection.next_of_shares(dialect, *which)),
        _claiming_with(lambda _: selection.next_of_one(*which)),
    )


_SHARES = _claiming_of(selection.OPEN)
_PROBES = _claiming_of(selection.ANY)
_SENDING_PROBES = _claiming_of(selection.ANY, selection.SENDS)
_claim_oldest = _claiming_with(selection.oldest_of_one)


def _claiming(dialect: str, chosen: sa.Select[tuple[str]]) -> ReturningUpdate[Any]:
    return (
        sa.update(cancellations)
        .where(id_in_chosen(dialect, c.id, chosen))
        .values(
            status=S.IN_FLIGHT.value,
            lease_owner=owner_parameter,
            lease_expires_at=lease_end,
            claims=c.claims + 1,
            first_sent_at=sa.func.coalesce(c.first_sent_at, db_now()),
        )
        .returning(*CLAIM_COLUMNS)
    )


# ---- in_flight → pending, without a request


# What was never sent may wait for its connection for ever: it has no retry horizon yet. With its limit the
# subquery is asked for one row at a time, by the key of `attempts`.
_WAS_SENT = (
    sa.select(attempts.c.number)
    .where(attempts.c.cancellation_id == c.id, attempts.c.generation == c.generation, attempts.c.kind == "cancel")
    .correlate(cancellations)
    .limit(1)
    .scalar_subquery()
    .is_not(None)
)


@_writes(frm={S.IN_FLIGHT}, to={S.PENDING})
def release_unsent(db: sa.Connection, leases: Collection[Lease]) -> list[str]:
    """Give back claims whose request was never begun; return the connection of each that was still ours."""
    if not leases:
        return []
    return [row.connection_id for row in db.execute(_release(db), bind_rows(_lease_row(lease) for lease in leases))]


@built_once_per_dialect
def _release(dialect: str) -> ReturningUpdate[tuple[str]]:
    leases = sa.select(*rows_parameter(dialect, _LEASE).c).cte("leases")
    return (
        sa.update(cancellations)
        .where(joined_by_id(dialect, c.id, leases), _held_by(leases))
        .values(
            status=S.PENDING.value,
            lease_owner=sa.null(),
            lease_expires_at=sa.null(),
            first_sent_at=sa.case((_WAS_SENT, c.first_sent_at), else_=sa.null()),
        )
        .returning(c.connection_id)
    )


_LEASE = {"id": RecordId, "owner": sa.Text(), "token": sa.Integer()}


def _lease_row(lease: Lease) -> dict[str, Any]:
    return {"id": lease.record_id, "owner": lease.owner, "token": lease.token}


def _held_by(source: sa.CTE) -> sa.ColumnElement[bool]:
    """Whether a row is still in flight under the lease that a source names."""
    in_flight = hidden_from_planner(c.status) == S.IN_FLIGHT.value
    return in_flight & (c.lease_owner == source.c.owner) & (c.claims == source.c.token)


# ---- in_flight → whatever was decided · unsent → ended

_TRANSITION = {
    **_LEASE,
    "status": sa.Text(),
    "attempts": sa.Integer(),
    "verdict": sa.Text(),
    "evidence": sa.Text(),
    "reason": sa.Text(),
    "message": sa.Text(),
    "as_of": UtcTimestamp(),
    "run_at": UtcTimestamp(),
    "confirm_at": UtcTimestamp(),
    "known_by": UtcTimestamp(),
    "needs_person": sa.Text(),
    **SEEN,
}


@_writes(frm={S.IN_FLIGHT}, to={S.WAITING, S.PENDING, S.SUCCEEDED, S.REJECTED, S.EXHAUSTED, S.EXPIRED})
def apply_claimed(
    db: sa.Connection, decided: Sequence[tuple[Lease, Transition]]
) -> tuple[set[tuple[str, int]], list[NewEvent], list[Proven]]:
    """Apply transitions where the claim is still ours.

    Returns ids and tokens of those, events that the caller writes, and what was proven, which it tells last.
    """
    _check_targets("apply_claimed", (transition for _, transition in decided))
    changed = _apply(db, _apply_to_claimed(db), decided)
    return {(str(row.id), row.claims) for row in changed}, _ends(changed), _proven(changed)


@_writes(frm={S.PENDING}, to={S.EXPIRED, S.WITHDRAWN, S.EXHAUSTED, S.REJECTED})
@_writes(frm=UNSENT - {S.PENDING}, to={S.EXPIRED, S.WITHDRAWN})
def end_unsent(db: sa.Connection, decided: Sequence[tuple[str, Transition]]) -> set[str]:
    """End cancellations that nobody is sending; return the ids that were still unsent."""
    _check_targets("end_unsent", (transition for _, transition in decided))
    changed = _apply(db, _end_unsent(db), [(Lease(each, "", 0), transition) for each, transition in decided])
    add_events(db, [*_ends(changed), *refund_events(db, _proven(changed))])
    return {str(row.id) for row in changed}


@built_once_per_dialect
def _apply_to_claimed(dialect: str) -> ReturningUpdate[Any]:
    decided = _decided(dialect)
    return _applying(dialect, decided, _held_by(decided))


@built_once_per_dialect
def _end_unsent(dialect: str) -> ReturningUpdate[Any]:
    decided = _decided(dialect)
    # What waits for a retry is not given up: only what is pending beyond its horizon.
    may_end = decided.c.status.in_([S.EXPIRED.value, S.WITHDRAWN.value]) | (c.status == S.PENDING.value)
    return _applying(dialect, decided, hidden_from_planner(c.status).in_(sorted(UNSENT)) & may_end)


def _check_targets(statement: str, decided: Iterable[Transition]) -> None:
    targets = {target for _, target in WRITES[statement]}
    if wrong := {transition.status for transition in decided} - targets:
        raise ValueError(f"{statement} does not lead to {sorted(wrong)}")


def _decided(dialect: str) -> sa.CTE:
    # Named, because it is asked for twice.
    return sa.select(*rows_parameter(dialect, _TRANSITION).c).cte("decided")


def _applying(dialect: str, source: sa.CTE, guard: sa.ColumnElement[bool]) -> ReturningUpdate[Any]:
    final = source.c.status.in_(sorted(FINAL))
    return (
        sa.update(cancellations)
        .where(joined_by_id(dialect, c.id, source), guard)
        .values(
            status=source.c.status,
            attempts=source.c.attempts,
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            outcome_reason=source.c.reason,
            outcome_message=source.c.message,
            as_of=source.c.as_of,
            run_at=source.c.run_at,
            confirm_at=source.c.confirm_at,
            known_by=source.c.known_by,
            needs_person=source.c.needs_person,
            **seen_values(source),
            lease_owner=sa.null(),
            lease_expires_at=sa.null(),
            ended_at=sa.case((final, db_now()), else_=sa.null()),
            first_sent_at=sa.case((final, c.first_sent_at), (_WAS_SENT, c.first_sent_at), else_=sa.null()),
        )
        .returning(
            *KNOWN,
            c.attempts,
            c.ended_at,
            c.claims,
        )
    )


def _apply(
    db: sa.Connection, statement: ReturningUpdate[Any], decided: Sequence[tuple[Lease, Transition]]
) -> Sequence[sa.Row[Any]]:
    if not decided:
        return ()
    return db.execute(statement, bind_rows(_transition_row(*each) for each in decided)).all()


def _ends(changed: Sequence[sa.Row[Any]]) -> list[NewEvent]:
    ended = [row for row in changed if row.ended_at]
    ends: list[NewEvent] = [(str(row.id), "cancellation.ended", ended_payload(row)) for row in ended]
    return ends + [(str(row.id), NEEDS_PERSON, known_payload(row)) for row in ended if row.needs_person]


def _proven(changed: Sequence[sa.Row[Any]]) -> list[Proven]:
    proven = (row for row in changed if row.ended_at and row.verdict in PROVEN)
    return [proven_by(str(row.id), row.verdict, ended_payload(row)) for row in proven]


def _transition_row(lease: Lease, transition: Transition) -> dict[str, Any]:
    facts = {**asdict(transition), "order": None, "unused_fields": None}
    return {**facts, **_lease_row(lease), **seen_row(transition.order)}


def withdraw(db: sa.Connection, record_id: str, policy: Policy) -> None:
    """End a cancellation as `withdrawn` that was never sent.

    Raises TooLateError where a request may have reached the warehouse, UnknownCancellationError for an unknown id.
    """
    if withdraw_all(db, [record_id], policy):
        return
    known = c.id == record_id if is_record_id(record_id) else sa.false()
    status = db.execute(sa.select(c.status).where(known)).scalar_one_or_none()
    if status is None:
        raise UnknownCancellationError(
            f"No cancellation has the id {record_id}. A job that was enqueued a moment ago may still be on the inbox: "
            "ask again in a second."
        )
    raise TooLateError(
        f"Cancellation {record_id} cannot be withdrawn: it is {status}, so a request may have reached the "
        "warehouse. Follow it with `show` instead."
    )


def withdraw_all(db: sa.Connection, ids: Iterable[str], policy: Policy) -> set[str]:
    """End as `withdrawn` what of these was never sent, and return their ids."""
    source = rows_parameter(db.dialect.name, {"id": RecordId})
    rows = db.execute(
        sa.select(c.id, *STATE_COLUMNS, db_now().label("now"))
        .where(id_in_chosen(db.dialect.name, c.id, sa.select(source.c.id)), c.ended_at.is_(None))
        .order_by(c.id)
        .with_for_update(of=cancellations),
        bind_rows({"id": each} for each in ids if is_record_id(each)),
    )
    decided = ((str(row.id), lifecycle.withdraw(state_of(row, row.now), _moment(row, policy))) for row in rows)
    return end_unsent(db, [(each, transition) for each, transition in decided if transition is not None])


def _moment(row: Any, policy: Policy) -> Moment:
    return Moment(now=row.now, policy=policy)


# ---- waiting → pending · queued → pending


@_writes(frm={S.WAITING}, to={S.PENDING})
def promote_due(db: sa.Connection, limit: int) -> list[str]:
    """Let rows whose `run_at` has come be sent again; return the connection of each."""
    return _made_pending(db, WAITING & (c.run_at <= db_now()), c.run_at, limit)


@_writes(frm={S.QUEUED}, to={S.PENDING})
def requeue_unclaimed(db: sa.Connection, limit: int) -> list[str]:
    """Take back rows that a worker of version 0.1 queued and nobody claimed; return the connection of each."""
    # Both statuses are named because the index holds both; the last condition chooses.
    lost = LEASED & (c.lease_expires_at <= db_now()) & (c.status == S.QUEUED.value)
    return _made_pending(db, lost, c.lease_expires_at, limit)


def _made_pending(
    db: sa.Connection, which: sa.ColumnElement[bool], order: sa.ColumnElement[Any], limit: int
) -> list[str]:
    chosen = sa.select(c.id).where(which).order_by(order).limit(limit).with_for_update(skip_locked=True)
    rows = db.execute(
        sa.update(cancellations)
        .where(id_in_chosen(db.dialect.name, c.id, chosen))
        .values(status=S.PENDING.value, run_at=sa.null(), lease_owner=sa.null(), lease_expires_at=sa.null())
        .returning(c.connection_id)
    )
    return [row.connection_id for row in rows]


# ---- ended → pending


@_writes(frm=FINAL, to={S.PENDING})
def replay(db: sa.Connection, ids: Iterable[str], *, send_by: datetime | None = None) -> set[str]:
    """Make ended cancellations pending again, each as a new generation with a new key; return those that were.

    Left out are those that have not ended and those proven cancelled. An old `send_by` goes: it has passed, or the
    person who replays would say it again. What an earlier generation may have done is kept in mind.
    """
    source = rows_parameter(db.dialect.name, {"id": RecordId})
    rows = db.execute(
        sa.update(cancellations)
        .where(c.id.in_(sa.select(source.c.id)), c.ended_at.is_not(None), c.verdict != Verdict.CANCELLED)
        .values(
            status=S.PENDING.value,
            generation=c.generation + 1,
            # An answer that is still under way belongs to the generation before: it must not fit this one.
            claims=c.claims + 1,
            attempts=0,
            send_by=sa.literal(send_by, UtcTimestamp()),
            warned_at=sa.null(),
            first_sent_at=sa.null(),
            ended_at=sa.null(),
            as_of=sa.null(),
            confirm_at=sa.null(),
            known_by=sa.null(),
            needs_person=sa.null(),
            verdict=sa.case((c.verdict.in_(sorted(KEPT_BY_REPLAY)), c.verdict), else_=sa.null()),
            evidence=sa.null(),
            outcome_reason=sa.null(),
            outcome_message=sa.null(),
        )
        .returning(*KNOWN),
        bind_rows({"id": record_id} for record_id in ids if is_record_id(record_id)),
    ).all()
    add_events(db, [(str(row.id), "cancellation.replayed", known_payload(row)) for row in rows])
    return {str(row.id) for row in rows}
