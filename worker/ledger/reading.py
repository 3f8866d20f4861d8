"""What people and producers ask the ledger: one cancellation, its timeline, lists.

Knows rows; shows what is known, never a token.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, func, select

from worker.cancellation.lifecycle import FINAL, SafeToRefund, Status, Verdict, safe_to_refund
from worker.cancellation.pace import seconds_to_send
from worker.cancellation.request import is_record_id
from worker.ledger.sqltypes import db_now
from worker.ledger.tables import PENDING, attempts, cancellations, connections, events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

c = cancellations.c
k = connections.c


class Cancellation(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one intent to cancel one order, as it stands now."""

    id: str
    connection_id: str
    order_id: str
    idempotency_key: str
    priority: str
    status: str
    attempts: int
    generation: int
    verdict: str | None
    evidence: str | None
    outcome_reason: str | None
    outcome_message: str | None
    order_status: str | None
    order_snapshot: str | None  # JSON as it came; holds personal data
    unused_fields: str | None
    requested_by: str | None
    reason: str | None
    metadata: dict[str, Any] | None
    send_by: datetime | None
    run_at: datetime | None
    confirm_at: datetime | None
    requested_at: datetime
    received_at: datetime
    first_sent_at: datetime | None
    ended_at: datetime | None
    hold_reason: str | None = None  # of its connection

    @property
    def ended(self) -> bool:
        return self.status in FINAL

    @property
    def safe_to_refund(self) -> SafeToRefund:
        """Yes, no, or not yet: nothing is told before it has ended and is known."""
        return safe_to_refund(Status(self.status), Verdict(self.verdict) if self.verdict else None)


_HOLD = select(connections.c.hold_reason).where(connections.c.id == c.connection_id).scalar_subquery()
_COLUMNS = (
    *(c[name] for name in Cancellation.__struct_fields__ if name != "hold_reason"),
    _HOLD.label("hold_reason"),
)


def get(connection: Connection, record_id: str) -> Cancellation | None:
    if not is_record_id(record_id):
        return None
    row = connection.execute(select(*_COLUMNS).where(c.id == record_id)).one_or_none()
    return _as_cancellation(row) if row else None


def find(
    connection: Connection,
    *,
    order_id: str | None = None,
    connection_id: str | None = None,
    status: Sequence[str] = (),
    reason: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[Cancellation]:
    """Return the newest cancellations that match all that is given."""
    query = select(*_COLUMNS).order_by(c.received_at.desc(), c.id).limit(limit)
    if order_id is not None:
        query = query.where(c.order_id == order_id)
    if connection_id is not None:
        query = query.where(c.connection_id == connection_id)
    if status:
        query = query.where(c.status.in_(status))
    if reason is not None:
        query = query.where(c.outcome_reason == reason)
    if since is not None:
        query = query.where(c.received_at >= since)
    return [_as_cancellation(row) for row in connection.execute(query)]


def _as_cancellation(row: Row[Any]) -> Cancellation:
    return Cancellation(**{**row._mapping, "id": str(row.id)})  # noqa: SLF001 - SQLAlchemy's documented name


def expected_at(connection: Connection, record_id: str, usual_rate: float) -> datetime | None:
    """Return when a pending cancellation is sent at its connection's pace; None where nobody can tell.

    What is held waits for its hold to end; what waits for a retry has its `run_at`.
    """
    mine = connection.execute(
        select(c.connection_id, c.priority, c.send_by, c.requested_at, k.writes_per_second, db_now().label("now"))
        .join(connections, k.id == c.connection_id)
        .where(c.id == record_id, c.status.in_(["pending", "queued"]), k.hold_reason.is_(None))
    ).one_or_none()
    if mine is None:
        return None
    earlier = c.requested_at < mine.requested_at
    if mine.send_by is None:
        sooner = c.send_by.is_not(None) | earlier
    else:
        sooner = (c.send_by < mine.send_by) | ((c.send_by == mine.send_by) & earlier)
    before = connection.execute(
        select(func.count()).where(
            c.connection_id == mine.connection_id,
            PENDING,
            (c.priority > mine.priority) | ((c.priority == mine.priority) & sooner),
        )
    ).scalar_one()
    now: datetime = mine.now
    return now + timedelta(seconds=seconds_to_send(before, mine.writes_per_second or usual_rate))


def next_turn(
    connection: Connection, connection_id: str, priority: str, usual_rate: float
) -> tuple[datetime | None, str | None]:
    """Return when a job that comes now is sent at the connection's pace, and the reason of its hold, if any."""
    ahead = (
        select(func.count()).where(c.connection_id == connection_id, PENDING, c.priority >= priority).scalar_subquery()
    )
    row = connection.execute(
        select(k.hold_reason, k.writes_per_second, ahead, db_now().label("now")).where(k.id == connection_id)
    ).one_or_none()
    if row is None or row.hold_reason:
        return None, row.hold_reason if row else None
    return row.now + timedelta(seconds=seconds_to_send(row[2], row.writes_per_second or usual_rate)), None


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One cancellation with everything that happened to it, in order."""

    cancellation: Cancellation
    attempts: list[dict[str, Any]]
    events: list[dict[str, Any]]


def timeline(connection: Connection, record_id: str) -> Timeline | None:
    found = get(connection, record_id)
    if found is None:
        return None
    tried = connection.execute(
        select(attempts)
        .where(attempts.c.cancellation_id == record_id)
        .order_by(attempts.c.started_at, attempts.c.number, attempts.c.kind)
    )
    told = connection.execute(
        select(events.c.type, events.c.payload, events.c.created_at)
        .where(events.c.cancellation_id == record_id)
        .order_by(events.c.id)
    )
    return Timeline(
        cancellation=found,
        attempts=[{**row._mapping, "cancellation_id": record_id} for row in tried],  # noqa: SLF001
        events=[{**row._mapping, "payload": msgspec.json.decode(row.payload)} for row in told],  # noqa: SLF001
    )
