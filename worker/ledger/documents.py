"""The orders as Trackstar returned them last: personal data, in a table of its own, which a database role may lack.

Knows what is kept of an order that was seen, and where; does not know what it proves. Whoever only asks how a
cancellation stands does not read this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.answer import Order
from worker.ledger.dialects import (
    RecordId,
    UtcTimestamp,
    bind_rows,
    built_once_per_dialect,
    db_now,
    id_in_chosen,
    insert,
    rows_parameter,
)
from worker.ledger.schema import OLD_DOCUMENT, cancellations, documents

if TYPE_CHECKING:
    from collections.abc import Iterable

c = cancellations.c
d = documents.c

# ---- what a record keeps of an order that an answer showed

SEEN = {
    "seen": sa.Boolean(),
    "order_status": sa.Text(),
    "reference_id": sa.Text(),
    "order_number": sa.Text(),
    "order_created_at": UtcTimestamp(),
}


def seen_row(order: Order | None) -> dict[str, Any]:
    """Return the values of `SEEN` for the order of an answer, if it showed one."""
    if order is None:
        return {"seen": False}
    return {
        "seen": True,
        "order_status": order.status,
        "reference_id": order.reference_id,
        "order_number": order.order_number,
        "order_created_at": order.created_at,
    }


def seen_values(source: sa.FromClause) -> dict[str, sa.ColumnElement[Any]]:
    """Return what an UPDATE sets: an answer without an order, or with less of it, wipes nothing that was known."""
    kept = {name: sa.func.coalesce(source.c[name], c[name]) for name in SEEN if name != "seen"}
    # What a worker of the release before kept here is older than what goes into `documents` now.
    return {**kept, "order_snapshot": sa.case((source.c.seen, sa.null()), else_=c.order_snapshot)}


# ---- the document itself


class Document(msgspec.Struct, frozen=True):
    """What an answer held of an order, as it came; `order` is None where it held none."""

    cancellation_id: str
    order: Order | None
    unused_fields: str | None = None  # JSON text


_DOCUMENT = {"cancellation_id": RecordId, "order_snapshot": sa.Text(), "unused_fields": sa.Text()}
_TEXTS = ("order_snapshot", "unused_fields")


@built_once_per_dialect
def _keep(dialect: str) -> Any:
    source = rows_parameter(dialect, _DOCUMENT)
    # The condition tells SQLite that ON belongs to the INSERT and not to a join.
    new = sa.select(*source.c, db_now()).where(source.c.cancellation_id.is_not(None))
    statement = insert(dialect, documents).from_select([*_DOCUMENT, "kept_at"], new)
    return statement.on_conflict_do_update(
        index_elements=[d.cancellation_id],
        set_={name: sa.func.coalesce(statement.excluded[name], d[name]) for name in _TEXTS}
        | {"kept_at": statement.excluded.kept_at},
    )


def keep_documents(db: sa.Connection, found: Iterable[Document]) -> None:
    """Keep what these answers held, in one statement for all; one cancellation may not be among them twice."""
    rows = [
        {
            "cancellation_id": each.cancellation_id,
            "order_snapshot": each.order.document if each.order else None,
            "unused_fields": each.unused_fields,
        }
        for each in found
        if each.order or each.unused_fields
    ]
    if rows:
        db.execute(_keep(db), bind_rows(rows))


# Of a cancellation, wherever a worker of this release or of the one before has put it. The old column is emptied by
# whoever writes the new table, so what stands there is newer.
ORDER_SNAPSHOT = sa.func.coalesce(c.order_snapshot, d.order_snapshot).label("order_snapshot")
UNUSED_FIELDS = sa.func.coalesce(d.unused_fields, c.unused_fields).label("unused_fields")


# ---- what workers of the release before have written

ANY_OLD = sa.select(c.id).where(OLD_DOCUMENT).limit(1).scalar_subquery().is_not(None)


def move_old(db: sa.Connection, limit: int) -> int:
    """Move up to so many documents out of `cancellations`, in the caller's transaction; return how many."""
    old = db.execute(
        sa.select(c.id.label("cancellation_id"), ORDER_SNAPSHOT, UNUSED_FIELDS)
        .select_from(cancellations.outerjoin(documents, d.cancellation_id == c.id))
        .where(OLD_DOCUMENT)
        .limit(limit)
        .with_for_update(of=cancellations, skip_locked=True)
    ).all()
    if old:
        db.execute(_keep(db), bind_rows(dict(row._mapping) for row in old))  # noqa: SLF001 - SQLAlchemy's documented name
        db.execute(_empty(db), bind_rows({"id": row.cancellation_id} for row in old))
    return len(old)


@built_once_per_dialect
def _empty(dialect: str) -> Any:
    moved = sa.select(rows_parameter(dialect, {"id": RecordId}).c.id)
    return (
        sa.update(cancellations)
        .where(id_in_chosen(dialect, c.id, moved))
        .values(order_snapshot=None, unused_fields=None)
    )
