"""What health asks the ledger: the head of each open connection's queue, and whether a row still waits to be sent.

Every question is answered from a partial index or by primary keys, so its cost does not grow with what has ended or
still waits. Knows rows; what a standstill is, others know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.cancellation.standstill import Head, Unsent
from worker.ledger.dialects import RecordId, bind_rows, built_once_per_dialect, db_now, id_in_chosen, rows_parameter
from worker.ledger.schema import PENDING, cancellations, connections, freshness
from worker.ledger.selection import OPEN, in_turn

if TYPE_CHECKING:
    from collections.abc import Iterable

c = cancellations.c
k = connections.c

PAGE = 1000  # connections in one look

_page = (
    sa.select(k.id, k.writes_per_second)
    .where(OPEN, k.id > sa.bindparam("after", type_=sa.Text()))
    .order_by(k.id)
    .limit(PAGE)
    .subquery("page")
)
_HEADS = sa.select(
    _page.c.id,
    _page.c.writes_per_second,
    in_turn(_page.c.id).limit(1).correlate(_page).scalar_subquery().label("head"),
).order_by(_page.c.id)


def heads(db: sa.Connection, after: str = "") -> tuple[list[Head], str]:
    """Return the heads of the next open connections by id, and where to go on: "" behind the last."""
    rows = db.execute(_HEADS, {"after": after}).all()
    found = [Head(row.id, str(row.head), row.writes_per_second) for row in rows if row.head is not None]
    return found, rows[-1].id if len(rows) == PAGE else ""


@built_once_per_dialect
def _states(dialect: str) -> sa.Select[tuple[str, str, int]]:
    asked = rows_parameter(dialect, {"id": RecordId})
    return (
        sa.select(c.id, c.status, c.claims)
        .join(connections, k.id == c.connection_id)
        .where(id_in_chosen(dialect, c.id, sa.select(asked.c.id)), OPEN)
    )


def unsent(db: sa.Connection, record_ids: Iterable[str]) -> dict[str, Unsent]:
    """Return those of these rows that wait for their turn, or are being sent, on a connection without a hold."""
    ids = list(record_ids)
    if not ids:
        return {}
    rows = db.execute(_states(db), bind_rows({"id": record_id} for record_id in ids))
    unsent = {"in_flight": True, "pending": False}
    return {str(row.id): Unsent(row.claims, unsent[row.status]) for row in rows if row.status in unsent}


class Due(msgspec.Struct, frozen=True):
    """What a person is told of what waits: how many open connections have something due, and the oldest of it."""

    connections: int
    connection_id: str
    seconds: float


def longest_due(db: sa.Connection) -> Due | None:
    """Return which of the first open connections has had something due for longest; None where nothing is due."""
    found, _ = heads(db)
    if not found:
        return None
    # A row of a connection that was resumed, or a replayed one, is due since then at the earliest.
    rows = db.execute(
        sa.select(c.connection_id, c.received_at, k.updated_at, db_now().label("now"))
        .join(connections, k.id == c.connection_id)
        .where(c.id.in_([head.record_id for head in found]))
    )
    waits = [((row.now - max(row.received_at, row.updated_at)).total_seconds(), row.connection_id) for row in rows]
    seconds, name = max(waits, default=(0.0, ""))
    return Due(len(found), name, seconds)


class Surveyed(msgspec.Struct, frozen=True):
    """One connection as `doctor` looks at it."""

    id: str
    name: str | None
    owner: str | None
    hold_reason: str | None
    encrypted_token: str | None
    writes_per_second: float | None  # None: the setting
    trackstar_id: str
    waiting: int  # up to MAX_COUNTED


class Survey(msgspec.Struct, frozen=True):
    """Some connections, the held ones first; how many more there are, and how many that nobody has added."""

    chosen: list[Surveyed]
    left_out: int
    unknown: int


MAX_COUNTED = 10_000


def survey(db: sa.Connection, limit: int) -> Survey:
    """Return the connections to look at, at most `limit` of them."""
    known = k.access_token.is_not(None)
    total, unknown = db.execute(
        sa.select(sa.func.count(k.access_token), sa.func.count() - sa.func.count(k.access_token))
    ).one()
    trackstars = sa.func.coalesce(freshness.c.trackstar_id, k.id)
    rows = db.execute(
        sa.select(*(k.id, k.name, k.owner, k.hold_reason, k.access_token, k.writes_per_second), trackstars)
        .select_from(connections.outerjoin(freshness, freshness.c.connection_id == k.id))
        .where(known)
        .order_by(k.hold_reason.is_(None), k.id)
        .limit(limit)
    ).all()
    chosen = [Surveyed(*row, _waiting(db, row.id)) for row in rows]
    return Survey(chosen, total - len(chosen), unknown)


def _waiting(db: sa.Connection, connection_id: str) -> int:
    some = sa.select(c.id).where(c.connection_id == connection_id, PENDING).limit(MAX_COUNTED).subquery()
    return int(db.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())
