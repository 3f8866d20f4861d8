"""Hints: somebody says that an order, or a connection, has changed. It is read now, and nothing is believed.

A flood of hints must not become a flood of requests: one order is asked for again ten seconds after the last time at
the earliest, and not while it is being asked for. Knows rows; not where hints come from.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from worker.cancellation.lifecycle import NOT_FOUND_YET
from worker.ledger import freshness
from worker.ledger.dialects import RecordId, UtcTimestamp, bind_rows, db_now, rows_parameter
from worker.ledger.schema import UNSETTLED, WAITING, WATCHED, attempts, cancellations, connections

if TYPE_CHECKING:
    from datetime import datetime

c, a = cancellations.c, attempts.c
QUIET = timedelta(seconds=10)  # between two requests for one order, whatever hints come
LIMIT = 1_000  # rows of one hint; what is beyond it is due when its crawl has ended

_ENDED = c.ended_at.is_not(None) & WATCHED
_NOT_FOUND = WAITING & (c.outcome_reason == NOT_FOUND_YET)
# The last request of the last claim; there is none while that claim is under way.
_LAST = (
    sa.select(sa.func.max(a.started_at, type_=UtcTimestamp()))
    .where(a.cancellation_id == c.id, a.number == c.claims)
    .scalar_subquery()
)


def look_again(db: sa.Connection, connection_id: str, order_id: str | None = None) -> int:
    """Let one order, or all of a connection that wait for a crawl, be asked for now; return how many are."""
    which = c.connection_id == connection_id
    if order_id is not None:
        which &= c.order_id == order_id
    elif db.execute(sa.select(connections.c.id).where(connections.c.id == connection_id)).first() is None:
        return 0  # nobody has heard of it
    else:
        freshness.look_now(db, connection_id)
        which &= UNSETTLED
    return _bring_forward(db, c.confirm_at, which & _ENDED) + _bring_forward(db, c.run_at, which & _NOT_FOUND)


def _bring_forward(db: sa.Connection, when: sa.Column[Any], which: sa.ColumnElement[bool]) -> int:
    rows = db.execute(
        sa.select(c.id, c.as_of, when.label("due"), _LAST.label("last"), db_now().label("now"))
        .where(which, when.is_(None) | (when > db_now()))
        .order_by(c.order_id)
        .limit(LIMIT)
        .with_for_update(skip_locked=True, of=cancellations)
    ).all()
    sooner = [{"id": str(row.id), "at": at} for row in rows if (at := _at(row)) and (not row.due or at < row.due)]
    if sooner:
        source = rows_parameter(db.dialect.name, {"id": RecordId, "at": UtcTimestamp()})
        db.execute(
            sa.update(cancellations).where(c.id == source.c.id).values({when.name: source.c.at}), bind_rows(sooner)
        )
    return len(sooner)


def _at(row: Any) -> datetime | None:
    """Return when it may be asked for again; None while it is being asked for."""
    if row.due and not row.last:
        return None
    return max([row.now, *(instant + QUIET for instant in (row.as_of, row.last) if instant)])  # type: ignore[no-any-return]
