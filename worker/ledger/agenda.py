"""What the housekeeper asks the ledger: what is due, and what must be taken back.

Every question is answered from a partial index, so its cost does not grow with what has ended or still waits.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import ColumnElement, Connection, func, literal, null, select, update

from worker.cancellation.lifecycle import Evidence, State, Verdict
from worker.ledger.outbox import announce
from worker.ledger.sqltypes import RecordId, among, as_rows, db_now, given, now_plus
from worker.ledger.tables import (
    LEASED,
    PENDING,
    SENT_BEFORE,
    UNSENT_IN_TIME,
    WAITING,
    cancellations,
    connections,
    events,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Update

c = cancellations.c
k = connections.c


class Agenda(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that has a due time, as one look at the ledger found it."""

    now: datetime
    run_at: datetime | None
    lease_end: datetime | None
    send_by: datetime | None
    confirm_at: datetime | None
    publish_at: datetime | None
    sent_at: datetime | None  # the oldest first request of what is pending again

    def is_due(self, when: datetime | None) -> bool:
        return when is not None and when <= self.now

    @property
    def seconds_to_next(self) -> float:
        """Seconds until the next thing is due; infinite when nothing is.

        What is due by now and could not be done (another worker has it, its connection is held) waits for a poll.
        """
        times = [t for t in (self.run_at, self.lease_end, self.send_by, self.confirm_at) if t and t > self.now]
        return (min(times) - self.now).total_seconds() if times else float("inf")


_LOOK = select(
    db_now().label("now"),
    select(func.min(c.run_at)).where(WAITING).scalar_subquery(),
    select(func.min(c.lease_expires_at)).where(LEASED).scalar_subquery(),
    select(func.min(c.send_by)).where(UNSENT_IN_TIME).scalar_subquery(),
    select(func.min(c.confirm_at)).where(c.confirm_at.is_not(None)).scalar_subquery(),
    select(func.min(events.c.publish_at)).where(events.c.publish_at.is_not(None)).scalar_subquery(),
    select(func.min(c.first_sent_at)).where(SENT_BEFORE).scalar_subquery(),
)


def look(connection: Connection) -> Agenda:
    """Read the whole agenda in one statement: what an idle worker costs the database."""
    row = connection.execute(_LOOK).one()
    return Agenda(
        now=row[0],
        run_at=row[1],
        lease_end=row[2],
        send_by=row[3],
        confirm_at=row[4],
        publish_at=row[5],
        sent_at=row[6],
    )


def promote_due(connection: Connection, limit: int) -> list[str]:
    """Move `waiting` rows whose time has come to `pending`; return the connection of each."""
    return _made_pending(connection, WAITING & (c.run_at <= db_now()), c.run_at, limit)


def take_back_lost_messages(connection: Connection, limit: int) -> list[str]:
    """Make queued rows pending again whose message nobody took within its lease; return the connection of each."""
    # Both statuses are named because the index holds both; the last condition chooses.
    lost = LEASED & (c.lease_expires_at <= db_now()) & (c.status == "queued")
    return _made_pending(connection, lost, c.lease_expires_at, limit)


def _made_pending(connection: Connection, which: ColumnElement[bool], order: Any, limit: int) -> list[str]:
    chosen = select(c.id).where(which).order_by(order).limit(limit).with_for_update(skip_locked=True)
    change: Update = update(cancellations).where(among(connection.dialect.name, c.id, chosen))
    rows = connection.execute(
        change.values(status="pending", run_at=null(), lease_owner=null(), lease_expires_at=null()).returning(
            c.connection_id
        )
    )
    return [row.connection_id for row in rows]


class Overdue(msgspec.Struct, frozen=True):
    """An unsent cancellation whose time is over: its send_by has passed, or the retry horizon."""

    id: str
    connection_id: str
    order_id: str
    state: State
    now: datetime


def overdue(connection: Connection, limit: int) -> list[Overdue]:
    """Lock unsent rows whose send_by has passed; a refusal that waits to be read is not among them."""
    return _locked(connection, UNSENT_IN_TIME & (c.send_by <= db_now()), c.send_by, limit)


def worn_out(connection: Connection, horizon_seconds: float, limit: int) -> list[Overdue]:
    """Lock pending rows whose first request was longer ago than the retry horizon."""
    too_old = SENT_BEFORE & (c.first_sent_at <= now_plus(literal(-horizon_seconds)))
    return _locked(connection, too_old, c.first_sent_at, limit)


def _locked(connection: Connection, which: ColumnElement[bool], order: Any, limit: int) -> list[Overdue]:
    rows = connection.execute(
        select(
            c.id,
            c.connection_id,
            c.order_id,
            c.attempts,
            c.first_sent_at,
            c.verdict,
            c.evidence,
            c.outcome_reason,
            c.outcome_message,
            c.send_by,
            db_now().label("now"),
        )
        .where(which)
        .order_by(order)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [
        Overdue(
            str(row.id),
            row.connection_id,
            row.order_id,
            State(
                attempts=row.attempts,
                first_sent_at=row.first_sent_at or row.now,
                send_by=row.send_by,
                verdict=Verdict(row.verdict) if row.verdict else None,
                evidence=Evidence(row.evidence) if row.evidence else None,
                reason=row.outcome_reason,
                message=row.outcome_message,
            ),
            row.now,
        )
        for row in rows
    ]


class Hurried(msgspec.Struct, frozen=True):
    """A pending cancellation with a send_by, and how many of its connection go before it."""

    id: str
    connection_id: str
    order_id: str
    send_by: datetime
    place: int
    writes_per_second: float | None
    now: datetime


def hurried(connection: Connection, limit: int) -> list[Hurried]:
    """Return pending rows that have a send_by, have not been warned of, and whose connection may send."""
    unwarned = PENDING & UNSENT_IN_TIME & c.warned_at.is_(None)
    concerned = select(c.connection_id).where(unwarned).distinct()
    placed = (
        select(
            c.id,
            c.connection_id,
            c.order_id,
            c.send_by,
            c.warned_at,
            (
                func.row_number().over(
                    partition_by=c.connection_id,
                    order_by=(c.priority.desc(), c.send_by.asc().nulls_last(), c.requested_at),
                )
                - 1
            ).label("place"),
        )
        .where(PENDING, c.connection_id.in_(concerned))
        .subquery()
    )
    rows = connection.execute(
        select(
            placed.c.id,
            placed.c.connection_id,
            placed.c.order_id,
            placed.c.send_by,
            placed.c.place,
            k.writes_per_second,
            db_now().label("now"),
        )
        .join(connections, k.id == placed.c.connection_id)
        .where(
            placed.c.send_by.is_not(None), placed.c.warned_at.is_(None), placed.c.place > 0, k.hold_reason.is_(None)
        )
        .order_by(placed.c.place.desc())
        .limit(limit)
    )
    return [Hurried(str(row[0]), *row[1:]) for row in rows]


def warn(connection: Connection, late: Sequence[tuple[Hurried, datetime]]) -> int:
    """Note and announce, once each, that these cannot be sent in time; with the time that is expected for them."""
    source = given(connection.dialect.name, {"id": RecordId})
    noted = connection.execute(
        update(cancellations)
        .where(c.id.in_(select(source.c.id)), c.warned_at.is_(None), c.ended_at.is_(None))
        .values(warned_at=db_now())
        .returning(c.id),
        as_rows({"id": row.id} for row, _ in late),
    )
    ids = {str(row.id) for row in noted}
    announce(
        connection,
        [
            (
                row.id,
                "cancellation.wont_make_it",
                {
                    "id": row.id,
                    "connection_id": row.connection_id,
                    "order_id": row.order_id,
                    "send_by": row.send_by.isoformat(),
                    "expected_at": expected.isoformat(),
                },
            )
            for row, expected in late
            if row.id in ids
        ],
    )
    return len(ids)
