"""What the dispatcher asks the ledger: what is due, whose turn it is, and what must be taken back.

Every question is answered from a partial index, so its cost does not grow with what has ended or still waits.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, func, literal, null, or_, select, update

from worker.cancellation.lifecycle import State, Verdict
from worker.ledger.claims import PROBE_SECONDS
from worker.ledger.sqltypes import RecordId, as_rows, db_now, given, now_plus, picked
from worker.ledger.tables import cancellations, connections, events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Update

c = cancellations.c

_open = connections.c.hold_reason.is_(None)
_probing = (connections.c.hold_reason == "credentials") & (connections.c.probe_at <= db_now())
_has_pending = (
    select(literal(1))
    .where(c.connection_id == connections.c.id, c.status == "pending")
    .correlate(connections)
    .exists()
)


class Agenda(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that has a due time, as one look at the ledger found it."""

    now: datetime
    backlog: bool
    queued_here: int
    run_at: datetime | None
    lease_end: datetime | None
    send_by: datetime | None
    confirm_at: datetime | None
    publish_at: datetime | None

    def is_due(self, when: datetime | None) -> bool:
        return when is not None and when <= self.now

    @property
    def seconds_to_next(self) -> float:
        """Seconds until the next thing is due; infinite when nothing is.

        What is due by now and could not be done (another worker has it, its connection is held) waits for a poll.
        """
        times = [t for t in (self.run_at, self.lease_end, self.send_by, self.confirm_at) if t and t > self.now]
        return (min(times) - self.now).total_seconds() if times else float("inf")


def look(connection: Connection, owner: str) -> Agenda:
    """Read the whole agenda in one statement: what an idle worker costs the database."""
    leased = c.status.in_(["queued", "in_flight"])
    unsent = c.status.in_(["pending", "queued", "waiting"]) & c.evidence.is_(None)
    row = connection.execute(
        select(
            db_now().label("now"),
            select(literal(1)).select_from(connections).where(or_(_open, _probing), _has_pending).exists(),
            select(func.count()).where(leased, c.status == "queued", c.lease_owner == owner).scalar_subquery(),
            select(func.min(c.run_at)).where(c.status == "waiting").scalar_subquery(),
            select(func.min(c.lease_expires_at)).where(leased).scalar_subquery(),
            select(func.min(c.send_by)).where(unsent, c.send_by.is_not(None)).scalar_subquery(),
            select(func.min(c.confirm_at)).where(c.confirm_at.is_not(None)).scalar_subquery(),
            select(func.min(events.c.publish_at)).where(events.c.publish_at.is_not(None)).scalar_subquery(),
        )
    ).one()
    return Agenda(
        now=row[0],
        backlog=bool(row[1]),
        queued_here=row[2],
        run_at=row[3],
        lease_end=row[4],
        send_by=row[5],
        confirm_at=row[6],
        publish_at=row[7],
    )


def promote_due(connection: Connection, limit: int) -> int:
    """Move `waiting` rows whose time has come to `pending`."""
    due = (
        select(c.id)
        .where(c.status == "waiting", c.run_at <= db_now())
        .order_by(c.run_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _count(
        connection,
        update(cancellations)
        .where(c.id.in_(picked(due)), c.status == "waiting")
        .values(status="pending", run_at=null()),
    )


def whose_turn(connection: Connection) -> dict[str, bool]:
    """Return the connections that may send and have something to send; True marks one that may only probe."""
    rows = connection.execute(
        select(connections.c.id, connections.c.hold_reason.is_not(None)).where(or_(_open, _probing), _has_pending)
    )
    return {name: bool(probe) for name, probe in rows}


class Queued(msgspec.Struct, frozen=True):
    """One cancellation on its way to Celery."""

    id: str
    connection_id: str
    order_id: str
    attempts: int


def queue(connection: Connection, shares: Mapping[str, int], owner: str, lease_seconds: float) -> list[Queued]:
    """Mark the next rows of each connection as handed out: urgent first, then by send_by, then first come."""
    queued: list[Queued] = []
    for connection_id, share in shares.items():
        turn = (
            select(c.id)
            .where(c.connection_id == connection_id, c.status == "pending")
            .order_by(c.priority.desc(), c.send_by.asc().nulls_last(), c.requested_at)
            .limit(share)
            .with_for_update(skip_locked=True)
        )
        rows = connection.execute(
            update(cancellations)
            .where(c.id.in_(picked(turn)), c.status == "pending")
            .values(status="queued", lease_owner=owner, lease_expires_at=now_plus(lease_seconds))
            .returning(c.id, c.connection_id, c.order_id, c.attempts)
        )
        queued.extend(Queued(str(row.id), *row[1:]) for row in rows)
    return queued


def note_probes(connection: Connection, ids: Iterable[str]) -> None:
    """Put the next probe of these connections off: one now and then is enough."""
    connection.execute(
        update(connections).where(connections.c.id.in_(list(ids))).values(probe_at=now_plus(PROBE_SECONDS))
    )


def hand_back(connection: Connection, ids: Iterable[str], owner: str) -> int:
    """Make queued rows pending again that we could not, or will not, publish."""
    source = given(connection, {"id": RecordId})
    return connection.execute(
        update(cancellations)
        .where(c.id.in_(select(source.c.id)), c.status == "queued", c.lease_owner == owner)
        .values(status="pending", lease_owner=null(), lease_expires_at=null()),
        as_rows({"id": record_id} for record_id in ids),
    ).rowcount


def hand_back_all(connection: Connection, owner: str) -> int:
    """Make everything pending again that this worker queued and nobody claimed."""
    return connection.execute(
        update(cancellations)
        .where(c.status == "queued", c.lease_owner == owner)
        .values(status="pending", lease_owner=null(), lease_expires_at=null())
    ).rowcount


def take_back_lost_messages(connection: Connection, limit: int) -> int:
    """Make queued rows pending again whose message never arrived within its lease."""
    lost = (
        select(c.id)
        .where(c.status.in_(["queued", "in_flight"]), c.lease_expires_at <= db_now(), c.status == "queued")
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return _count(
        connection,
        update(cancellations)
        .where(c.id.in_(picked(lost)), c.status == "queued")
        .values(status="pending", lease_owner=null(), lease_expires_at=null()),
    )


def _count(connection: Connection, change: Update) -> int:
    # SQLite's driver does not count the rows of a statement that begins with WITH.
    return len(connection.execute(change.returning(c.id)).all())


class Overdue(msgspec.Struct, frozen=True):
    """An unsent cancellation whose send_by has passed."""

    id: str
    connection_id: str
    order_id: str
    state: State
    now: datetime


def overdue(connection: Connection, limit: int) -> list[Overdue]:
    """Lock unsent rows whose send_by has passed; a refusal that waits to be read is not among them."""
    rows = connection.execute(
        select(
            c.id,
            c.connection_id,
            c.order_id,
            c.attempts,
            c.first_sent_at,
            c.verdict,
            c.send_by,
            db_now().label("now"),
        )
        .where(
            c.status.in_(["pending", "queued", "waiting"]),
            c.evidence.is_(None),
            c.send_by.is_not(None),
            c.send_by <= db_now(),
        )
        .order_by(c.send_by)
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
            ),
            row.now,
        )
        for row in rows
    ]
