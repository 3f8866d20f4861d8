"""What of one order is erased at once: whatever may be personal, wherever the ledger holds it.

What proves the answer stays: ids, numbers, times, status, verdict, evidence, and who did what. Knows rows; what other
systems have read of them, `Redacted.told` names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.celery_message import UnacceptableMessage, read_message, read_unacknowledged
from worker.cancellation.status import PROVEN
from worker.ledger.audit import Kind
from worker.ledger.dialects import RecordId, bind_rows, id_in_chosen, rows_parameter
from worker.ledger.schema import attempts, audit, cancellations, dead_letters, documents, events

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

a, c, e, letter = audit.c, cancellations.c, events.c, dead_letters.c

WORD = "redacted"  # instead of a person's own words, where there must be some
PERSONAL = ("requested_by", "reason", "metadata", "outcome_message", "order_snapshot", "unused_fields")
LETTERS = 200  # that are looked at together: each may be long
MIN_LENGTH = 4  # of a name that is looked for among bytes which are no JSON: a shorter one stands everywhere


class Redacted(msgspec.Struct, frozen=True):
    """What was erased."""

    ids: frozenset[str]  # cancellations that were found
    undecided: frozenset[str]  # those of them whose next answer brings their document again
    told: frozenset[int]  # numbers of their events, which others may have: they were told with what is erased


def redact(db: sa.Connection, ids: Sequence[str]) -> Redacted:
    """Erase what may be personal of these cancellations, in the caller's transaction."""
    asked = sa.select(rows_parameter(db.dialect.name, {"id": RecordId}).c.id)
    given = bind_rows({"id": each} for each in ids)

    def of(column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        return id_in_chosen(db.dialect.name, column, asked)

    emptied = sa.update(cancellations).where(of(c.id)).values(dict.fromkeys(PERSONAL, sa.null()))
    rows = db.execute(emptied.returning(c.id, c.verdict), given).all()
    db.execute(sa.update(attempts).where(of(attempts.c.cancellation_id)).values(error=sa.null()), given)
    db.execute(sa.delete(documents).where(of(documents.c.cancellation_id)), given)
    told = db.execute(sa.select(e.id, e.payload).where(of(e.cancellation_id)), given).all()
    _redact_notes(db, told)
    _redact_acts(db, Kind.CANCELLATION, [str(row.id) for row in rows])
    return Redacted(
        frozenset(str(row.id) for row in rows),
        frozenset(str(row.id) for row in rows if row.verdict not in PROVEN),
        frozenset(row.id for row in told),
    )


def _redact_notes(db: sa.Connection, told: Iterable[Any]) -> None:
    """Erase what a person wrote into an event."""
    for row in told:
        payload = msgspec.json.decode(row.payload)
        if "note" in payload:
            text = msgspec.json.encode({**payload, "note": WORD}).decode()
            db.execute(sa.update(events).where(e.id == row.id).values(payload=text))


def _redact_acts(db: sa.Connection, kind: Kind, ids: Sequence[str]) -> None:
    """Erase why people acted on these; that they did, and what they changed, stays."""
    which = (a.target_kind == kind.value, a.target_id.in_(ids), a.reason.is_not(None))
    db.execute(sa.update(audit).where(*which).values(reason=WORD))


# ---- dead letters


def redact_dead_letters(db: sa.Connection, names: frozenset[str], connection_id: str | None = None) -> list[int]:
    """Empty the dead letters that name one of these orders or numbers, and no other connection; return their numbers.

    Those that were emptied before are not among them.
    """
    found = [number for number, raw in _letters(db) if _holds(raw, names, connection_id)]
    if found:
        emptied = {"raw": b"", "error": WORD}
        db.execute(sa.update(dead_letters).where(letter.id.in_(found)).values(emptied))
        _redact_acts(db, Kind.DEAD_LETTER, [str(number) for number in found])
    return found


def _letters(db: sa.Connection) -> Iterator[tuple[int, bytes]]:
    last = 0
    while True:
        query = sa.select(letter.id, letter.raw).where(letter.id > last).order_by(letter.id).limit(LETTERS)
        rows = db.execute(query).all()
        yield from ((row.id, bytes(row.raw)) for row in rows)
        if len(rows) < LETTERS:
            return
        last = rows[-1].id


def _holds(raw: bytes, names: frozenset[str], connection_id: str | None) -> bool:
    """Whether a message names one of these: as a whole value where it is JSON, else as a whole word."""
    try:
        said = msgspec.json.decode(_job_of(raw))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        long = [re.escape(name.encode()) for name in names if len(name) >= MIN_LENGTH]
        return bool(long) and bool(re.search(rb"(?<![\w-])(?:" + b"|".join(long) + rb")(?![\w-])", raw))
    its_own = said.get("connection_id") if isinstance(said, dict) else None
    return connection_id in {None, its_own or connection_id} and not names.isdisjoint(_values(said))


def _job_of(raw: bytes) -> bytes:
    for read in (read_message, read_unacknowledged):
        try:
            return read(raw)
        except UnacceptableMessage:
            continue
    return raw


def _values(said: Any) -> Iterator[str]:
    """Yield every text and number of a JSON document, however deep."""
    todo = [said]
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            todo += each.values()
        elif isinstance(each, list):
            todo += each
        elif each is not None:
            yield str(each)
