"""What is told of events, complete in itself: a row of the outbox with what it is about.

What does not change with an event is not written into it but read here, when it is told: so what is erased of a
cancellation is not told any more. Knows rows; what an event says, `cancellation.event` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.event import Event, make_event
from worker.ledger.dialects import RowId, bind_rows, built_once_per_dialect, id_in_chosen, rows_parameter
from worker.ledger.schema import cancellations, connections, events

if TYPE_CHECKING:
    from collections.abc import Sequence


c, e, k = cancellations.c, events.c, connections.c


class Told(msgspec.Struct, frozen=True):
    """One event, by its number in the outbox."""

    number: int
    event: Event
    place: int | None = None  # in the feed


def read_told(db: sa.Connection, numbers: Sequence[int]) -> list[Told]:
    """Read these events, in order; what was deleted meanwhile is left out."""
    return told_of(db, db.execute(_of_numbers(db), bind_rows({"id": number} for number in numbers)).all())


@built_once_per_dialect
def _of_numbers(dialect: str) -> Any:
    asked = sa.select(rows_parameter(dialect, {"id": RowId}).c.id)
    return select_told().where(id_in_chosen(dialect, e.id, asked))


def select_told() -> sa.Select[Any]:
    """Select the columns of which an event is made."""
    return sa.select(
        *(e.id, e.type, e.payload, e.created_at, e.cancellation_id, e.place),
        *(c.connection_id, c.order_id, c.reference_id, c.order_number, c.metadata, c.requested_by, c.traceparent),
        k.name.label("connection_name"),
    ).select_from(
        events.outerjoin(cancellations, c.id == e.cancellation_id).outerjoin(connections, k.id == c.connection_id)
    )


def told_of(db: sa.Connection, rows: Sequence[Any]) -> list[Told]:
    """Return the events of such rows, by their numbers."""
    facts = {row.id: _own(row) | msgspec.json.decode(row.payload, type=dict[str, Any]) | _jobs(row) for row in rows}
    names = _names(db, {each["connection_id"] for each in facts.values() if {"connection_id"} == set(each) & _NAMED})
    for each in facts.values():
        each.setdefault("connection_name", names.get(each.get("connection_id", "")))
    made = (Told(row.id, make_event(row.id, row.type, row.created_at, facts[row.id]), row.place) for row in rows)
    return sorted(made, key=lambda each: each.number)


_NAMED = {"connection_id", "connection_name"}
_OF_THE_JOB = ("reference_id", "order_number", "metadata", "requested_by", "traceparent", "connection_name")


def _own(row: Any) -> dict[str, Any]:
    """Return which order the event is of, where it is of one; its payload says so too."""
    if row.cancellation_id is None:
        return {}
    order = {"connection_id": row.connection_id, "order_id": row.order_id}
    return {**order, "cancellation_id": str(row.cancellation_id)}


def _jobs(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _OF_THE_JOB} if row.cancellation_id else {}


def _names(db: sa.Connection, ids: set[str]) -> dict[str, str | None]:
    """Return the names of connections that an event itself is about: few are."""
    if not ids:
        return {}
    return {row.id: row.name for row in db.execute(sa.select(k.id, k.name).where(k.id.in_(sorted(ids))))}
