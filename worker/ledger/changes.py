"""What a person changes on a cancellation that waits for its turn: priority, `send_by`, when it is tried again.

The status stays: the dispatcher takes a row as it stands when its turn comes. Knows rows; who asked, the caller knows.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.request import Priority, is_record_id
from worker.cancellation.status import UNSENT
from worker.ledger.dialects import RecordId, UtcTimestamp, bind_rows, db_now, rows_parameter
from worker.ledger.outbox import KNOWN, add_events, known_payload
from worker.ledger.schema import WAITING, cancellations

if TYPE_CHECKING:
    from collections.abc import Iterable


c = cancellations.c


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is changed; what is left out stays."""

    priority: Priority | None = None
    send_by: datetime | msgspec.UnsetType | None = msgspec.UNSET  # None: it may be sent at any time
    now: bool = False  # what waits for a retry is tried at once, at its connection's pace


def change(db: sa.Connection, ids: Iterable[str], wish: Change) -> set[str]:
    """Change these where no request is under way and they have not ended, and tell of it; return their ids.

    A request that is under way was claimed with what stood there before, and its record would judge by that.
    """
    source = rows_parameter(db.dialect.name, {"id": RecordId})
    rows = db.execute(
        sa.update(cancellations)
        .where(c.id.in_(sa.select(source.c.id)), c.status.in_(sorted(UNSENT)))
        .values(_values(wish))
        .returning(*KNOWN, c.priority, c.send_by),
        bind_rows({"id": record_id} for record_id in ids if is_record_id(record_id)),
    ).all()
    add_events(db, [(str(row.id), "cancellation.changed", _changed(row, wish)) for row in rows])
    return {str(row.id) for row in rows}


def _changed(row: Any, wish: Change) -> dict[str, Any]:
    return known_payload(row, priority=row.priority, send_by=row.send_by, now=wish.now)


def _values(wish: Change) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if wish.priority is not None:
        values["priority"] = wish.priority
    if wish.send_by is not msgspec.UNSET:
        # Whether it can be sent by then is judged, and told, anew.
        values |= {"send_by": sa.literal(wish.send_by, UtcTimestamp()), "warned_at": sa.null()}
    if wish.now:
        values["run_at"] = sa.case((WAITING, db_now()), else_=c.run_at)
    return values
