"""Dead letters: messages that could not be read, kept with their bytes, why, and which of them were sent again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.ledger.dialects import db_now, insert
from worker.ledger.outbox import add_events
from worker.ledger.schema import dead_letters

if TYPE_CHECKING:
    from collections.abc import Sequence


d = dead_letters.c


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not become a cancellation, to be kept."""

    source: str  # the stream or list it came from
    entry_id: str | None  # on that source; the same entry is kept once
    raw: bytes  # as it came; may hold anything
    reason: str  # a bounded snake_case word
    error: str


class DeadLetterRow(msgspec.Struct, frozen=True, kw_only=True):
    """One message that is kept, with its number."""

    id: int
    source: str  # the stream or list it came from
    entry_id: str | None
    raw: bytes  # as it came; may hold anything
    reason: str
    error: str
    received_at: datetime
    requeued_at: datetime | None


class UnknownDeadLetterError(LookupError):
    """No dead letter has this number; the text says so."""


def insert_dead_letters(db: sa.Connection, new: Sequence[DeadLetter]) -> None:
    """Keep unreadable messages, each once, with an event for each."""
    if not new:
        return
    kept = db.execute(
        insert(db.dialect.name, dead_letters)
        .values(received_at=db_now())
        .on_conflict_do_nothing()
        .returning(d.id, d.reason, d.source),
        [msgspec.structs.asdict(each) for each in new],
    )
    add_events(
        db,
        [
            (None, "dead_letter.kept", {"dead_letter_id": row.id, "reason": row.reason, "source": row.source})
            for row in kept
        ],
    )


def find(db: sa.Connection, *, requeued: bool = False, limit: int = 50) -> list[DeadLetterRow]:
    """Return the newest dead letters; those that were sent again only where asked for."""
    query = sa.select(dead_letters).order_by(d.id.desc()).limit(limit)
    if not requeued:
        query = query.where(d.requeued_at.is_(None))
    return [_as_row(row) for row in db.execute(query)]


def get(db: sa.Connection, number: int) -> DeadLetterRow:
    """Return one dead letter. Raises UnknownDeadLetterError."""
    row = db.execute(sa.select(dead_letters).where(d.id == number)).one_or_none()
    if row is None:
        raise UnknownDeadLetterError(f"There is no dead letter {number}: see `cancel-worker dead-letters list`.")
    return _as_row(row)


def note_requeued(db: sa.Connection, number: int) -> None:
    """Note that a dead letter was sent again; its bytes stay."""
    db.execute(sa.update(dead_letters).where(d.id == number).values(requeued_at=db_now()))
    add_events(db, [(None, "dead_letter.requeued", {"dead_letter_id": number})])


def _as_row(row: sa.Row[Any]) -> DeadLetterRow:
    return DeadLetterRow(**row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
