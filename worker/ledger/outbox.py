"""The outbox: events are written in the transaction that causes them, and published afterwards, at least once.

An event is named by its row's number; how it reads, `told` knows. Knows rows; does not know the stream.
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
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

c = cancellations.c

# How long a publisher has before another may think it dead and publish again.
PUBLISH_LEASE_SECONDS = 10


NEEDS_PERSON = "cancellation.needs_person"
NewEvent = tuple[str | None, str, dict[str, Any]]  # cancellation id or None, type, payload


def add_events(db: sa.Connection, news: Iterable[NewEvent]) -> None:
    """Write events for whoever publishes next. Payloads hold ids, statuses and reasons only."""
    _write(db, news, lease_seconds=0)


def add_leased_events(db: sa.Connection, news: Iterable[NewEvent]) -> list[int]:
    """Write events that the caller publishes once this is committed; they fall to others when it does not.

    Returns their numbers.
    """
    return _write(db, news, lease_seconds=PUBLISH_LEASE_SECONDS)


def _write(db: sa.Connection, news: Iterable[NewEvent], lease_seconds: float) -> list[int]:
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
    return sorted(row.id for row in written)


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
        .returning(events.c.id)
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
        .returning(events.c.id)
    )


def take_unpublished(db: sa.Connection, limit: int) -> list[int]:
    """Lease up to `limit` events that nobody is publishing."""
    taken = db.execute(_take(db), {"limit": limit, "lease_seconds": PUBLISH_LEASE_SECONDS})
    return sorted(row.id for row in taken)


@built_once_per_dialect
def _mark(dialect: str) -> Any:
    source = rows_parameter(dialect, {"id": RowId})
    return sa.update(events).where(id_in_chosen(dialect, events.c.id, sa.select(source.c.id))).values(publish_at=None)


def mark_published(db: sa.Connection, ids: Sequence[int]) -> None:
    db.execute(_mark(db), bind_rows({"id": event_id} for event_id in ids))


# What `known_payload` asks of a row.
KNOWN = (
    *(c.id, c.connection_id, c.order_id, c.traceparent, c.generation, c.status, c.verdict, c.evidence),
    *(c.as_of, c.known_by, c.needs_person, c.outcome_reason.label("reason")),
)


def known_payload(row: Any, **more: Any) -> dict[str, Any]:
    """Say what is known of an order, and since when: ids, words and times, never a document or a person's data."""
    return {
        **named(str(row.id), row),
        "generation": row.generation,
        "status": row.status,
        "verdict": row.verdict,
        "evidence": row.evidence,
        "safe_to_refund": safe_to_refund(Status(row.status), Verdict(row.verdict) if row.verdict else None),
        "as_of": _instant(row.as_of),
        "known_by": _instant(row.known_by),
        "needs_person": row.needs_person,
        "reason": row.reason,
        **more,
    }


def ended_payload(row: Any) -> dict[str, Any]:
    """Say how a cancellation ended."""
    return known_payload(row, attempts=row.attempts)


def _instant(value: datetime | None) -> str | None:
    return value.isoformat() if value else None
