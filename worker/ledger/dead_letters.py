"""Dead letters: messages that could not be read, kept with their bytes, why, and which of them were sent again."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.inputs.entries import kept_of
from worker.ledger.dialects import db_now, insert, now_plus_parameter
from worker.ledger.outbox import add_events
from worker.ledger.schema import dead_letters

if TYPE_CHECKING:
    from collections.abc import Sequence


d = dead_letters.c

# What a flood may leave here in an hour, by all workers: so many with all their bytes, so many with their first 4 KB.
# What is read well and refused for another reason has room of its own, which no flood of rubbish takes.
HOUR_SECONDS = 3600.0
MAX_WHOLE_PER_HOUR = 500
MAX_UNREADABLE_PER_HOUR = 5_000
MAX_PER_HOUR = 10_000
_OF_GOOD_JOBS = frozenset({"key_conflict", "refused_by_ledger", "kills_its_reader"})
_NEVER_WHOLE = frozenset({"too_large"})


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not become a cancellation, to be kept."""

    source: str  # the stream or list it came from
    entry_id: str | None  # on that source; the same entry is kept once
    raw: bytes  # as it came; may hold anything
    reason: str  # a bounded snake_case word
    error: str


class DeadLetterRow(DeadLetter, frozen=True, kw_only=True):
    """One message that is kept, with its number."""

    id: int
    received_at: datetime
    requeued_at: datetime | None


class UnknownDeadLetterError(LookupError):
    """No dead letter has this number; the text says so."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of one kind came, and how many of them are kept."""

    source: str
    reason: str
    count: int
    kept: int


def insert_dead_letters(db: sa.Connection, new: Sequence[DeadLetter]) -> list[Kept]:
    """Keep unreadable messages, each once, as many as an hour may bring; return what is new, as counts.

    An event tells of each kind. What is beyond the limits is only counted.
    """
    if not new:
        return []
    chosen, beyond = _within_limits(new, _kept_lately(db))
    rows = _insert(db, chosen)
    kept, counted = (Counter((each.source, each.reason) for each in which) for which in (rows, beyond))
    last = {(row.source, row.reason): row.id for row in sorted(rows, key=lambda row: row.id)}
    found = [
        Kept(
            source=source,
            reason=reason,
            count=kept[source, reason] + counted[source, reason],
            kept=kept[source, reason],
        )
        for source, reason in sorted({*kept, *counted})
    ]
    add_events(
        db,
        [
            (
                None,
                "dead_letter.kept",
                {**msgspec.structs.asdict(each), "dead_letter_id": last.get((each.source, each.reason))},
            )
            for each in found
        ],
    )
    return found


def _kept_lately(db: sa.Connection) -> int:
    newest = sa.select(d.received_at).order_by(d.id.desc()).limit(MAX_PER_HOUR).subquery()
    query = sa.select(sa.func.count()).where(newest.c.received_at > now_plus_parameter("seconds"))
    return db.execute(query, {"seconds": -HOUR_SECONDS}).scalar_one()


def _within_limits(new: Sequence[DeadLetter], lately: int) -> tuple[list[DeadLetter], list[DeadLetter]]:
    chosen: list[DeadLetter] = []
    beyond: list[DeadLetter] = []
    for each in new:
        limit = MAX_PER_HOUR if each.reason in _OF_GOOD_JOBS else MAX_UNREADABLE_PER_HOUR
        if lately + len(chosen) >= limit:
            beyond.append(each)
            continue
        whole = each.reason not in _NEVER_WHOLE and lately + len(chosen) < MAX_WHOLE_PER_HOUR
        raw, error = kept_of(each.raw, each.error, whole=whole)
        chosen.append(msgspec.structs.replace(each, raw=raw, error=error))
    return chosen, beyond


def _insert(db: sa.Connection, letters: Sequence[DeadLetter]) -> Sequence[sa.Row[Any]]:
    if not letters:
        return []
    return db.execute(
        insert(db.dialect.name, dead_letters)
        .values(received_at=db_now())
        .on_conflict_do_nothing()
        .returning(d.id, d.reason, d.source),
        [msgspec.structs.asdict(each) for each in letters],
    ).all()


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
