"""The outbox: events are written in the transaction that causes them, and published afterwards, at least once.

Knows rows; does not know the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.request import named
from worker.cancellation.status import Status, Verdict, safe_to_refund
from worker.ledger.dialects import (
    RecordId,
    RowId,
    bind_rows,
    built_once_per_dialect,
    db_now,
    id_in_chosen,
    now_plus_parameter,
    rows_parameter,
)
from worker.ledger.schema import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

# How long a publisher has before another may think it dead and publish again.
PUBLISH_LEASE_SECONDS = 10


class Event(msgspec.Struct, frozen=True):
    """One line for the stream."""

    id: int
    type: str
    payload: str


_EVENT_COLUMNS = (events.c.id, events.c.type, events.c.payload)


NEEDS_PERSON = "cancellation.needs_person"
NewEvent = tuple[str | None, str, dict[str, Any]]  # cancellation id or None, type, payload


def add_events(db: sa.Connection, news: Iterable[NewEvent]) -> None:
    """Write events for whoever publishes next. Payloads hold ids, statuses and reasons only."""
    _write(db, news, lease_seconds=0)


def add_leased_events(db: sa.Connection, news: Iterable[NewEvent]) -> list[Event]:
    """Write events that the caller publishes once this is committed; they fall to others when it does not."""
    return _write(db, news, lease_seconds=PUBLISH_LEASE_SECONDS)


def _write(db: sa.Connection, news: Iterable[NewEvent], lease_seconds: float) -> list[Event]:
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
    written = db.execute(_insert(db), {**bind_rows(rows), "lease_seconds": lease_seconds})
    return _in_order(written)


@built_once_per_dialect
def _insert(dialect: str) -> Any:
    source = rows_parameter(dialect, {"cancellation_id": RecordId, "type": sa.Text(), "payload": sa.Text()})
    publish_at = now_plus_parameter("lease_seconds")
    return (
        events.insert()
        .from_select(
            ["cancellation_id", "type", "payload", "created_at", "publish_at"],
            sa.select(*source.c, db_now(), publish_at),
        )
        .returning(*_EVENT_COLUMNS)
    )


@built_once_per_dialect
def _take(dialect: str) -> Any:
    due = (
        sa.select(events.c.id)
        .where(events.c.publish_at <= db_now())
        .order_by(events.c.publish_at, events.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer()))
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(events)
        .where(id_in_chosen(dialect, events.c.id, due))
        .values(publish_at=now_plus_parameter("lease_seconds"))
        .returning(*_EVENT_COLUMNS)
    )


def take_unpublished(db: sa.Connection, limit: int) -> list[Event]:
    """Lease up to `limit` events that nobody is publishing."""
    taken = db.execute(_take(db), {"limit": limit, "lease_seconds": PUBLISH_LEASE_SECONDS})
    return _in_order(taken)


def _in_order(rows: Iterable[Any]) -> list[Event]:
    return sorted((Event(*row) for row in rows), key=lambda event: event.id)


@built_once_per_dialect
def _mark(dialect: str) -> Any:
    source = rows_parameter(dialect, {"id": RowId})
    return sa.update(events).where(id_in_chosen(dialect, events.c.id, sa.select(source.c.id))).values(publish_at=None)


def mark_published(db: sa.Connection, ids: Sequence[int]) -> None:
    db.execute(_mark(db), bind_rows({"id": event_id} for event_id in ids))


def ended_payload(row: Any) -> dict[str, Any]:
    """Say how a cancellation ended: ids, statuses and reasons, never a document or a person's data."""
    more = {"reason": row.reason, "attempts": row.attempts, "at": row.ended_at.isoformat()}
    return known_payload(row) | more


def named_row(row: Any) -> dict[str, str]:
    """Say which cancellation a row is."""
    return named(str(row.id), row)


def known_payload(row: Any) -> dict[str, Any]:
    """Say what is known of an order, and since when."""
    return {
        **named_row(row),
        "generation": row.generation,
        "status": row.status,
        "verdict": row.verdict,
        "evidence": row.evidence,
        "safe_to_refund": safe_to_refund(Status(row.status), Verdict(row.verdict)),
        **proof_payload(row),
    }


def proof_payload(row: Any) -> dict[str, Any]:
    """Say of which instant a verdict is true, and where it is none: by when it is known, or why a person must look."""
    return {
        "as_of": _instant(row.as_of),
        "known_by": _instant(row.known_by),
        "needs_person": row.needs_person,
    }


def _instant(value: datetime | None) -> str | None:
    return value.isoformat() if value else None
