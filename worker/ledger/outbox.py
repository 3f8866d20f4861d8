"""The outbox: events are written in the transaction that causes them, and published afterwards, at least once.

Knows rows; does not know the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, select, update

from worker.ledger.sqltypes import RowId, among, as_rows, db_now, given, now_plus
from worker.ledger.tables import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# How long a publisher has before another may think it dead and publish again.
PUBLISH_LEASE_SECONDS = 10


class Event(msgspec.Struct, frozen=True):
    """One line for the stream."""

    id: int
    type: str
    payload: str


def announce(connection: Connection, news: Iterable[tuple[str | None, str, dict[str, Any]]]) -> None:
    """Write (cancellation id or None, type, payload) rows. Payloads hold ids, statuses and reasons only."""
    rows = [
        {
            "cancellation_id": cancellation_id,
            "type": kind,
            "payload": msgspec.json.encode(payload, enc_hook=str).decode(),
        }
        for cancellation_id, kind, payload in news
    ]
    if rows:
        connection.execute(events.insert().values(created_at=db_now(), publish_at=db_now()), rows)


def take_unpublished(connection: Connection, limit: int) -> list[Event]:
    """Lease up to `limit` events that nobody is publishing."""
    due = (
        select(events.c.id)
        .where(events.c.publish_at <= db_now())
        .order_by(events.c.publish_at, events.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = connection.execute(
        update(events)
        .where(among(connection, events.c.id, due))
        .values(publish_at=now_plus(PUBLISH_LEASE_SECONDS))
        .returning(events.c.id, events.c.type, events.c.payload)
    )
    return sorted((Event(*row) for row in taken), key=lambda event: event.id)


def mark_published(connection: Connection, ids: Sequence[int]) -> None:
    source = given(connection, {"id": RowId})
    connection.execute(
        update(events).where(events.c.id.in_(select(source.c.id))).values(publish_at=None),
        as_rows({"id": event_id} for event_id in ids),
    )
