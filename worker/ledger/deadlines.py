"""What the housekeeper asks the ledger: what is due, and what cannot be sent in time.

Every question is answered from a partial index, so its cost does not grow with what has ended or still waits.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.lifecycle import State
from worker.cancellation.request import named
from worker.ledger import documents
from worker.ledger.claims import STATE_COLUMNS, state_of
from worker.ledger.dialects import RecordId, bind_rows, db_now, now_plus, rows_parameter
from worker.ledger.holds import RATE_LIMITED
from worker.ledger.outbox import KNOWN, add_events, known_payload
from worker.ledger.schema import (
    IN_TURN,
    LEASED,
    PENDING,
    SENT_BEFORE,
    TIMED,
    UNSENT_IN_TIME,
    WAITING,
    cancellations,
    connections,
    events,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c

WONT_MAKE_IT = "cancellation.wont_make_it"
k = connections.c


class NextDeadlines(msgspec.Struct, frozen=True, kw_only=True):
    """The next time of everything that has one."""

    now: datetime
    run_at: datetime | None
    lease_end: datetime | None
    send_by: datetime | None
    confirm_at: datetime | None
    publish_at: datetime | None
    sent_at: datetime | None  # the oldest first request of what is pending again
    hold_end: datetime | None  # of a pause that a server asked for
    old_documents: bool  # whether a worker of the release before has left some where they were kept then

    def is_due(self, when: datetime | None) -> bool:
        return when is not None and when <= self.now

    @property
    def seconds_to_next(self) -> float:
        """Seconds until the next thing is due; infinite when nothing is.

        What is due by now and could not be done (another worker has it, its connection is held) waits for a poll.
        """
        known = (self.run_at, self.lease_end, self.send_by, self.confirm_at, self.hold_end)
        times = [t for t in known if t and t > self.now]
        return (min(times) - self.now).total_seconds() if times else float("inf")


_NEXT = sa.select(
    db_now().label("now"),
    sa.select(sa.func.min(c.run_at)).where(WAITING).scalar_subquery(),
    sa.select(sa.func.min(c.lease_expires_at)).where(LEASED).scalar_subquery(),
    sa.select(sa.func.min(c.send_by)).where(UNSENT_IN_TIME).scalar_subquery(),
    sa.select(sa.func.min(c.confirm_at)).where(c.confirm_at.is_not(None)).scalar_subquery(),
    sa.select(sa.func.min(events.c.publish_at)).where(events.c.publish_at.is_not(None)).scalar_subquery(),
    sa.select(sa.func.min(c.first_sent_at)).where(SENT_BEFORE).scalar_subquery(),
    sa.select(sa.func.min(k.probe_at)).where(TIMED, k.hold_reason == RATE_LIMITED).scalar_subquery(),
    documents.ANY_OLD,
)


def next_deadlines(db: sa.Connection) -> NextDeadlines:
    """Read the next time of everything in one statement: what an idle worker costs the database."""
    row = db.execute(_NEXT).one()
    return NextDeadlines(
        now=row[0],
        run_at=row[1],
        lease_end=row[2],
        send_by=row[3],
        confirm_at=row[4],
        publish_at=row[5],
        sent_at=row[6],
        hold_end=row[7],
        old_documents=bool(row[8]),
    )


class Lapsed(msgspec.Struct, frozen=True):
    """An unsent cancellation whose time is over: its send_by has passed, or the retry horizon."""

    id: str
    connection_id: str
    order_id: str
    traceparent: str | None
    state: State
    now: datetime
    priority: str = "normal"
    requested_at: datetime | None = None

    @property
    def named(self) -> dict[str, str]:
        return named(self.id, self)


def past_send_by(db: sa.Connection, limit: int) -> list[Lapsed]:
    """Lock unsent rows whose send_by has passed; a refusal that waits to be read is not among them."""
    return _locked(db, UNSENT_IN_TIME & (c.send_by <= db_now()), c.send_by, limit)


def past_retry_horizon(db: sa.Connection, horizon_seconds: float, limit: int) -> list[Lapsed]:
    """Lock pending rows whose first request was longer ago than the retry horizon."""
    too_old = SENT_BEFORE & (c.first_sent_at <= now_plus(sa.literal(-horizon_seconds)))
    return _locked(db, too_old, c.first_sent_at, limit)


def _locked(
    db: sa.Connection, which: sa.ColumnElement[bool], order: sa.ColumnElement[Any], limit: int
) -> list[Lapsed]:
    rows = db.execute(
        sa.select(
            *(c.id, c.connection_id, c.order_id, c.traceparent, c.priority, c.requested_at),
            *(*STATE_COLUMNS, db_now().label("now")),
        )
        .where(which)
        .order_by(order)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [
        Lapsed(
            *(str(row.id), row.connection_id, row.order_id, row.traceparent, state_of(row, row.now), row.now),
            *(row.priority, row.requested_at),
        )
        for row in rows
    ]


class DeadlineAtRisk(msgspec.Struct, frozen=True):
    """A pending cancellation with a send_by, and how many of its connection go before it."""

    id: str
    connection_id: str
    order_id: str
    traceparent: str | None
    send_by: datetime
    place: int
    writes_per_second: float | None
    now: datetime


def at_risk(db: sa.Connection, limit: int) -> list[DeadlineAtRisk]:
    """Return pending rows that have a send_by, have not been warned of, and whose connection may send."""
    unwarned = PENDING & UNSENT_IN_TIME & c.warned_at.is_(None)
    concerned = sa.select(c.connection_id).where(unwarned).distinct()
    placed = (
        sa.select(
            c.id,
            c.connection_id,
            c.order_id,
            c.traceparent,
            c.send_by,
            c.warned_at,
            (
                sa.func.row_number().over(
                    partition_by=c.connection_id,
                    order_by=IN_TURN,
                )
                - 1
            ).label("place"),
        )
        .where(PENDING, c.connection_id.in_(concerned))
        .subquery()
    )
    rows = db.execute(
        sa.select(
            placed.c.id,
            placed.c.connection_id,
            placed.c.order_id,
            placed.c.traceparent,
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
    return [DeadlineAtRisk(str(row[0]), *row[1:]) for row in rows]


def warn(db: sa.Connection, late: Sequence[tuple[DeadlineAtRisk, datetime]]) -> int:
    """Note and announce, once each, that these cannot be sent in time; with the time that is expected for them."""
    source = rows_parameter(db.dialect.name, {"id": RecordId})
    noted = db.execute(
        sa.update(cancellations)
        .where(c.id.in_(sa.select(source.c.id)), c.warned_at.is_(None), c.ended_at.is_(None))
        .values(warned_at=db_now())
        .returning(*KNOWN),
        bind_rows({"id": row.id} for row, _ in late),
    )
    found = {str(row.id): row for row in noted}
    add_events(
        db,
        [
            (row.id, WONT_MAKE_IT, known_payload(found[row.id], send_by=row.send_by, expected_at=expected))
            for row, expected in late
            if row.id in found
        ],
    )
    return len(found)
