"""Jobs into the ledger, once. Does not know where they came from, nor when they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import JSON, Connection, Text, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.outbox import announce
from worker.ledger.sqltypes import Instant, RecordId, among, as_rows, db_now, given, instant_or_none, once
from worker.ledger.tables import cancellations, connections, dead_letters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import FromClause
    from sqlalchemy.sql.dml import ReturningInsert

    from worker.cancellation.request import CancelRequest


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not become a cancellation, with its bytes and the reason."""

    source: str
    entry_id: str | None
    raw: bytes
    reason: str
    error: str


_GIVEN = {
    "id": RecordId,
    "connection_id": Text(),
    "order_id": Text(),
    "idempotency_key": Text(),
    "priority": Text(),
    "send_by": Instant(),
    "requested_by": Text(),
    "reason": Text(),
    "metadata": JSON(),
    "requested_at": Instant(),
}


def accept(connection: Connection, requests: Sequence[CancelRequest]) -> set[str]:
    """Insert what is new and return the ids of those rows.

    The same intent is the same row, so a second delivery changes nothing. A connection nobody has added yet is noted
    as held (`unknown_connection`): its jobs wait for it.
    """
    if not requests:
        return set()
    rows = as_rows(_as_row(request) for request in _first_of_each(requests))
    if connection.dialect.name == "sqlite":  # whose statements change one table each, and cost no round trip
        connection.execute(_note_connections(connection), rows)
    return {str(row.id) for row in connection.execute(_insert_new(connection), rows)}


@once
def _note_connections(dialect: str) -> Any:
    return _noting(dialect, given(dialect, _GIVEN))


@once
def _insert_new(dialect: str) -> Any:
    if dialect == "sqlite":
        return _inserting(dialect, given(dialect, _GIVEN))
    jobs = select(*given(dialect, _GIVEN).c).cte("jobs")
    return _inserting(dialect, jobs).add_cte(_noting(dialect, jobs).cte("noted"))


def _noting(dialect: str, source: FromClause) -> postgresql.Insert | sqlite.Insert:
    return (
        _insert(dialect)(connections)
        .from_select(
            ["id", "name", "hold_reason", "held_at", "created_at", "updated_at"],
            select(
                source.c.connection_id,
                source.c.connection_id,
                literal("unknown_connection"),
                db_now(),
                db_now(),
                db_now(),
            )
            .where(~select(connections.c.id).where(connections.c.id == source.c.connection_id).exists())
            .group_by(source.c.connection_id)
            .order_by(source.c.connection_id),
        )
        .on_conflict_do_nothing()
    )


def _inserting(dialect: str, source: FromClause) -> ReturningInsert[Any]:
    columns = [column for name, column in source.c.items() if name != "requested_at"]
    return (
        _insert(dialect)(cancellations)
        .from_select(
            [*(column.name for column in columns), "requested_at", "received_at", "status"],
            select(*columns, func.coalesce(source.c.requested_at, db_now()), db_now(), literal("pending"))
            .where(source.c.id.is_not(None))
            .order_by(source.c.id),
        )
        .on_conflict_do_nothing()
        .returning(cancellations.c.id)
    )


@once
def _known(dialect: str) -> Any:
    asked = given(dialect, {"id": RecordId})
    return select(cancellations.c.id, cancellations.c.order_id).where(
        among(dialect, cancellations.c.id, select(asked.c.id))
    )


def find_conflicts(connection: Connection, requests: Sequence[CancelRequest]) -> dict[str, str]:
    """Return, by record id, the order that the record is for, wherever that is not the order asked for."""
    if not requests:
        return {}
    known = connection.execute(_known(connection), as_rows({"id": request.record_id} for request in requests))
    order_ids = {str(row.id): row.order_id for row in known}
    return {
        request.record_id: known_order
        for request in requests
        if (known_order := order_ids.get(request.record_id, request.order_id)) != request.order_id
    }


def key_conflict(request: CancelRequest, known_order: str) -> str:
    """Say that one idempotency key was used for two orders."""
    return (
        f"The idempotency key {request.intent_key!r} of connection {request.connection_id!r} already belongs to order "
        f"{known_order!r}: use another key for order {request.order_id!r}."
    )


def bury(connection: Connection, letters: Sequence[DeadLetter]) -> None:
    """Keep unreadable messages, each once, and announce them."""
    if not letters:
        return
    kept = connection.execute(
        _insert(connection.dialect.name)(dead_letters)
        .values(received_at=db_now())
        .on_conflict_do_nothing()
        .returning(dead_letters.c.id, dead_letters.c.reason, dead_letters.c.source),
        [
            {
                "source": letter.source,
                "entry_id": letter.entry_id,
                "raw": letter.raw,
                "reason": letter.reason,
                "error": letter.error,
            }
            for letter in letters
        ],
    )
    announce(
        connection,
        [
            (None, "dead_letter.kept", {"dead_letter_id": row.id, "reason": row.reason, "source": row.source})
            for row in kept
        ],
    )


def _insert(dialect: str) -> type[postgresql.Insert | sqlite.Insert]:
    return sqlite.Insert if dialect == "sqlite" else postgresql.Insert


def _first_of_each(requests: Sequence[CancelRequest]) -> list[CancelRequest]:
    # One statement may not meet the same key twice; the first one is the record.
    return list({request.record_id: request for request in reversed(requests)}.values())


def _as_row(request: CancelRequest) -> dict[str, object]:
    return {
        "id": request.record_id,
        "connection_id": request.connection_id,
        "order_id": request.order_id,
        "idempotency_key": request.intent_key,
        "priority": request.priority,
        "send_by": instant_or_none(request.send_by),
        "requested_by": request.requested_by,
        "reason": request.reason,
        "metadata": request.metadata,
        "requested_at": instant_or_none(request.requested_at),
    }
