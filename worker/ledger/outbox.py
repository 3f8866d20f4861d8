"""The outbox: events are written in the transaction that causes them, and published afterwards, at least once.

Knows rows; does not know the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Integer, Text, bindparam, select, update

from worker.ledger.sqltypes import RecordId, RowId, among, as_rows, db_now, given, now_plus_given, once
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


_EVENT_COLUMNS = (events.c.id, events.c.type, events.c.payload)


News = tuple[str | None, str, dict[str, Any]]  # cancellation id or None, type, payload


def announce(connection: Connection, news: Iterable[News]) -> None:
    """Write events for whoever publishes next. Payloads hold ids, statuses and reasons only."""
    _write(connection, news, lease_seconds=0)


def announce_leased(connection: Connection, news: Iterable[News]) -> list[Event]:
    """Write events that the caller publishes once this is committed; they fall to others when it does not."""
    return _write(connection, news, lease_seconds=PUBLISH_LEASE_SECONDS)


def _write(connection: Connection, news: Iterable[News], lease_seconds: float) -> list[Event]:
    rows = [
        {
            "cancellation_id": cancellation_id,
            "type": kind,
            "payload": msgspec.json.encode(payload, enc_hook=str).decode(),
        }
        for cancellation_id, kind, payload in news
    ]
    if not rows:
        return []
    written = connection.execute(_insert(connection), {**as_rows(rows), "lease_seconds": lease_seconds})
    return _in_order(written)


@once
def _insert(dialect: str) -> Any:
    source = given(dialect, {"cancellation_id": RecordId, "type": Text(), "payload": Text()})
    publish_at = now_plus_given("lease_seconds")
    return (
        events.insert()
        .from_select(
            ["cancellation_id", "type", "payload", "created_at", "publish_at"], select(*source.c, db_now(), publish_at)
        )
        .returning(*_EVENT_COLUMNS)
    )


@once
def _take(dialect: str) -> Any:
    due = (
        select(events.c.id)
        .where(events.c.publish_at <= db_now())
        .order_by(events.c.publish_at, events.c.id)
        .limit(bindparam("limit", type_=Integer()))
        .with_for_update(skip_locked=True)
    )
    return (
        update(events)
        .where(among(dialect, events.c.id, due))
        .values(publish_at=now_plus_given("lease_seconds"))
        .returning(*_EVENT_COLUMNS)
    )


def take_unpublished(connection: Connection, limit: int) -> list[Event]:
    """Lease up to `limit` events that nobody is publishing."""
    taken = connection.execute(_take(connection), {"limit": limit, "lease_seconds": PUBLISH_LEASE_SECONDS})
    return _in_order(taken)


def _in_order(rows: Iterable[Any]) -> list[Event]:
    return sorted((Event(*row) for row in rows), key=lambda event: event.id)


@once
def _mark(dialect: str) -> Any:
    source = given(dialect, {"id": RowId})
    return update(events).where(among(dialect, events.c.id, select(source.c.id))).values(publish_at=None)


def mark_published(connection: Connection, ids: Sequence[int]) -> None:
    connection.execute(_mark(connection), as_rows({"id": event_id} for event_id in ids))
