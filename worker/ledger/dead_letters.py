"""Dead letters as people see them: which messages could not be read, why, and which were sent again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, select, update

from worker.ledger.outbox import announce
from worker.ledger.sqltypes import db_now
from worker.ledger.tables import dead_letters

if TYPE_CHECKING:
    from sqlalchemy import Row

d = dead_letters.c


class KeptLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One message that could not become a cancellation."""

    id: int
    source: str  # the stream or list it came from
    entry_id: str | None
    raw: bytes  # as it came; may hold anything
    reason: str
    error: str
    received_at: datetime
    requeued_at: datetime | None


class UnknownLetterError(LookupError):
    """No dead letter has this number; the text says so."""


def find(connection: Connection, *, requeued: bool = False, limit: int = 50) -> list[KeptLetter]:
    """Return the newest letters; those that were sent again only where asked for."""
    query = select(dead_letters).order_by(d.id.desc()).limit(limit)
    if not requeued:
        query = query.where(d.requeued_at.is_(None))
    return [_as_letter(row) for row in connection.execute(query)]


def get(connection: Connection, number: int) -> KeptLetter:
    """Return one letter. Raises UnknownLetterError."""
    row = connection.execute(select(dead_letters).where(d.id == number)).one_or_none()
    if row is None:
        raise UnknownLetterError(f"There is no dead letter {number}: see `cancel-worker dead-letters list`.")
    return _as_letter(row)


def note_requeued(connection: Connection, number: int) -> None:
    """Note that a letter was sent again; its bytes stay."""
    connection.execute(update(dead_letters).where(d.id == number).values(requeued_at=db_now()))
    announce(connection, [(None, "dead_letter.requeued", {"dead_letter_id": number})])


def _as_letter(row: Row[Any]) -> KeptLetter:
    return KeptLetter(**row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
