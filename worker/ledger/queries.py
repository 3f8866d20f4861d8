"""What people and producers ask the ledger: one cancellation, its timeline, lists.

Knows rows; shows what is known, never a token.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.pace import seconds_to_send
from worker.cancellation.policy import Policy
from worker.cancellation.request import is_record_id
from worker.ledger import audit, outlook
from worker.ledger.dialects import (
    RecordId,
    bind_rows,
    built_once_per_dialect,
    db_now,
    id_in_chosen,
    rows_parameter,
)
from worker.ledger.documents import ORDER_SNAPSHOT, UNUSED_FIELDS
from worker.ledger.holds import RATE_LIMITED
from worker.ledger.record import DOCUMENT, Cancellation
from worker.ledger.schema import (
    IN_TURN,
    PENDING,
    RANK,
    attempts,
    cancellations,
    connections,
    documents,
    events,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.cancellation.request import CancelRequest

c = cancellations.c
k = connections.c

_HOLD = sa.select(connections.c.hold_reason).where(connections.c.id == c.connection_id).scalar_subquery()
_HOLD_END = sa.select(k.probe_at).where(k.id == c.connection_id, k.hold_reason == RATE_LIMITED).scalar_subquery()
_NAME, _OWNER = (sa.select(each).where(k.id == c.connection_id).scalar_subquery() for each in (k.name, k.owner))
_ELSEWHERE = {"hold_reason", "held_until", "connection_name", "connection_owner", *DOCUMENT}
COLUMNS = (
    *(c[name] for name in Cancellation.__struct_fields__ if name not in _ELSEWHERE),
    _HOLD.label("hold_reason"),
    _NAME.label("connection_name"),
    _OWNER.label("connection_owner"),
    _HOLD_END.label("held_until"),
    db_now().label("now"),
)
_DEFAULT = Policy()


def get(
    db: sa.Connection, record_id: str, policy: Policy = _DEFAULT, *, snapshot: bool = False
) -> Cancellation | None:
    """Return one cancellation, or None for an unknown id; `policy` says how long a worker tries.

    Only with `snapshot` the order as Trackstar returned it is read, which takes rights on `documents`.
    """
    if not is_record_id(record_id):
        return None
    query = sa.select(*COLUMNS).where(c.id == record_id)
    if snapshot:
        beside = cancellations.outerjoin(documents, documents.c.cancellation_id == c.id)
        query = query.add_columns(ORDER_SNAPSHOT, UNUSED_FIELDS).select_from(beside)
    row = db.execute(query).one_or_none()
    return as_cancellation(row, policy) if row else None


def as_cancellation(row: sa.Row[Any], policy: Policy) -> Cancellation:
    """Return the record of a row with COLUMNS."""
    fields = {**row._mapping, "id": str(row.id)}  # noqa: SLF001 - SQLAlchemy's documented name
    now = fields.pop("now")
    return outlook.with_outlook(Cancellation(**fields), now, policy)


def now(db: sa.Connection) -> datetime:
    """Return the ledger's time, which all its instants are of."""
    return db.execute(sa.select(db_now())).scalar_one()


def expected_at(db: sa.Connection, record_id: str, default_rate: float) -> datetime | None:
    """Return when a pending cancellation is sent at its connection's pace; None where nobody can tell.

    What is held waits for its hold to end; what waits for a retry has its `run_at`.
    """
    mine = db.execute(
        sa.select(c.connection_id, c.priority, c.send_by, c.requested_at, k.writes_per_second, db_now().label("now"))
        .join(connections, k.id == c.connection_id)
        .where(c.id == record_id, PENDING, k.hold_reason.is_(None))
    ).one_or_none()
    if mine is None:
        return None
    earlier = c.requested_at < mine.requested_at
    if mine.send_by is None:
        sooner = c.send_by.is_not(None) | earlier
    else:
        sooner = (c.send_by < mine.send_by) | ((c.send_by == mine.send_by) & earlier)
    before = db.execute(
        sa.select(sa.func.count()).where(
            c.connection_id == mine.connection_id,
            PENDING,
            RANK <= PRIORITY_RANK[mine.priority],  # by the index; the rest chooses among these
            (RANK < PRIORITY_RANK[mine.priority]) | ((c.priority == mine.priority) & sooner),
        )
    ).scalar_one()
    now: datetime = mine.now
    return now + timedelta(seconds=seconds_to_send(before, mine.writes_per_second or default_rate))


def next_turn(
    db: sa.Connection, connection_id: str, priority: str, default_rate: float
) -> tuple[datetime | None, str | None]:
    """Return when a job that comes now is sent at the connection's pace, and the reason of its hold, if any."""
    # In the order of turn, which decides for its index: to an empty table others look as good, and a plan is kept.
    waiting = (
        sa.select(RANK.label("rank"))
        .where(c.connection_id == connection_id, PENDING, RANK <= PRIORITY_RANK[priority])
        .order_by(*IN_TURN)
        .subquery()
    )
    ahead = sa.select(sa.func.count()).select_from(waiting).scalar_subquery()
    row = db.execute(
        sa.select(k.hold_reason, k.writes_per_second, ahead, db_now().label("now")).where(k.id == connection_id)
    ).one_or_none()
    if row is None or row.hold_reason:
        return None, row.hold_reason if row else None
    return row.now + timedelta(seconds=seconds_to_send(row[2], row.writes_per_second or default_rate)), None


MAX_ACTS = 1_000  # of one cancellation in its timeline


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One cancellation with everything that happened to it, in order."""

    cancellation: Cancellation
    attempts: list[dict[str, Any]]
    events: list[dict[str, Any]]
    acts: list[audit.Act]  # of people, the newest first


def timeline(
    db: sa.Connection, record_id: str, policy: Policy = _DEFAULT, *, snapshot: bool = False
) -> Timeline | None:
    found = get(db, record_id, policy, snapshot=snapshot)
    if found is None:
        return None
    tried = db.execute(
        sa.select(attempts)
        .where(attempts.c.cancellation_id == record_id)
        .order_by(attempts.c.started_at, attempts.c.number, attempts.c.kind)
    )
    told = db.execute(
        sa.select(events.c.type, events.c.payload, events.c.created_at)
        .where(events.c.cancellation_id == record_id)
        .order_by(events.c.id)
    )
    return Timeline(
        cancellation=found,
        attempts=[{**row._mapping, "cancellation_id": record_id} for row in tried],  # noqa: SLF001
        events=[{**row._mapping, "payload": msgspec.json.decode(row.payload)} for row in told],  # noqa: SLF001
        acts=audit.find(db, kind=audit.Kind.CANCELLATION, target_id=record_id, limit=MAX_ACTS),
    )


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a record stands, without its documents and texts."""

    id: str
    connection_id: str
    order_id: str
    generation: int
    traceparent: str | None
    status: str
    verdict: str | None
    evidence: str | None
    outcome_reason: str | None
    attempts: int
    ended_at: datetime | None
    as_of: datetime | None
    known_by: datetime | None
    needs_person: str | None


@built_once_per_dialect
def _standing_of(dialect: str) -> sa.Select[Any]:
    asked = rows_parameter(dialect, {"id": RecordId})
    columns = [c[name] for name in Standing.__struct_fields__]
    return sa.select(*columns).where(id_in_chosen(dialect, c.id, sa.select(asked.c.id)))


def find_standing(db: sa.Connection, requests: Sequence[CancelRequest]) -> dict[str, Standing]:
    """Return, by record id, how the records of these jobs stand, wherever there is one."""
    if not requests:
        return {}
    rows = db.execute(_standing_of(db), bind_rows({"id": request.record_id} for request in requests))
    found = (Standing(**{**row._mapping, "id": str(row.id)}) for row in rows)  # noqa: SLF001 - SQLAlchemy's documented name
    return {standing.id: standing for standing in found}


def conflict_of(request: CancelRequest, standing: Standing | None) -> str | None:
    """Say that the job's key belongs to another order, if it does."""
    if standing is None or standing.order_id == request.order_id:
        return None
    return (
        f"The idempotency key {request.intent_key!r} of connection {request.connection_id!r} already belongs to order "
        f"{standing.order_id!r}: use another key for order {request.order_id!r}."
    )
