"""What is forgotten after its time, in small batches.

Nothing that is undecided goes: only what has ended with a proof, and whose events have been published. Knows rows; how
long they are kept, the caller knows.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.status import PROVEN
from worker.ledger.dialects import RecordId, bind_rows, built_once_per_dialect, id_in_chosen, now_plus, rows_parameter
from worker.ledger.schema import (
    attempts,
    cancellations,
    dead_letters,
    delivery_tries,
    documents,
    events,
    refunds,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

c, d, e, r = cancellations.c, documents.c, events.c, refunds.c

BATCH = 200  # rows in one transaction: short enough to stand in nobody's way
_DECIDED = c.verdict.in_(sorted(PROVEN))
_UNTOLD = sa.exists(sa.select(e.id).where(e.cancellation_id == c.id, e.publish_at.is_not(None)))


class Place(msgspec.Struct, frozen=True):
    """How far rows were looked at, in the order of receipt: what is undecided is not looked at again and again."""

    received_at: datetime
    id: str


class Pruned(msgspec.Struct, frozen=True):
    """How many rows went, and where to go on; None where no more are old enough."""

    count: int
    after: Place | None = None


def prune_facts(db: sa.Connection, seconds: float, after: Place | None = None, limit: int = BATCH) -> Pruned:
    """Delete cancellations that have ended so long ago, with their attempts, events and documents."""
    rows = db.execute(_oldest(seconds, after, limit)).all()
    _delete(db, [str(row.id) for row in rows if row.may])
    last = Place(rows[-1].received_at, str(rows[-1].id)) if len(rows) == limit else None
    return Pruned(sum(row.may for row in rows), last)


def count_facts(db: sa.Connection, seconds: float) -> int:
    """Return how many `prune_facts` would delete in all."""
    since = _ago(seconds)
    which = c.received_at < since, c.ended_at < since, _DECIDED, ~_UNTOLD
    return db.execute(sa.select(sa.func.count()).select_from(cancellations).where(*which)).scalar_one()


def _oldest(seconds: float, after: Place | None, limit: int) -> sa.Select[Any]:
    since = _ago(seconds)
    may = sa.and_(c.ended_at.is_not(None), c.ended_at < since, _DECIDED, ~_UNTOLD)
    query = sa.select(c.id, c.received_at, sa.func.coalesce(may, sa.false()).label("may")).where(c.received_at < since)
    if after is not None:
        beyond = (c.received_at > after.received_at) | (c.id > after.id)
        query = query.where(c.received_at >= after.received_at, beyond)
    return query.order_by(c.received_at, c.id).limit(limit).with_for_update(of=cancellations, skip_locked=True)


def _ago(seconds: float) -> sa.ScalarSelect[Any]:
    # A clock that moves while a statement runs is no bound of an index: all that is too young would be read.
    return sa.select(now_plus(sa.literal(-seconds, sa.Float()))).scalar_subquery()


def _delete(db: sa.Connection, ids: Sequence[str]) -> None:
    if ids:
        for statement in _deleting(db):
            db.execute(statement, bind_rows({"id": each} for each in ids))


@built_once_per_dialect
def _deleting(dialect: str) -> list[Any]:
    chosen = sa.select(rows_parameter(dialect, {"id": RecordId}).c.id)
    # What refers to a cancellation goes before it.
    of = ((attempts, attempts.c.cancellation_id), (events, e.cancellation_id), (documents, d.cancellation_id))
    return [sa.delete(table).where(id_in_chosen(dialect, key, chosen)) for table, key in (*of, (cancellations, c.id))]


def prune_documents(db: sa.Connection, seconds: float, limit: int = BATCH) -> int:
    """Delete documents that were kept so long ago; return how many."""
    since = _ago(seconds)
    old = sa.select(d.cancellation_id.label("id")).where(d.kept_at < since).order_by(d.kept_at).limit(limit)
    chosen = old.with_for_update(skip_locked=True)
    gone = sa.delete(documents).where(id_in_chosen(db.dialect.name, d.cancellation_id, chosen))
    return len(db.execute(gone.returning(d.cancellation_id)).all())


def prune_dead_letters(db: sa.Connection, seconds: float, limit: int = BATCH) -> int:
    """Delete dead letters that came so long ago; return how many."""
    letter = dead_letters.c
    since = _ago(seconds)
    # Their numbers are in the order of receipt.
    old = sa.select(letter.id).where(letter.received_at < since).order_by(letter.id).limit(limit)
    gone = sa.delete(dead_letters).where(
        id_in_chosen(db.dialect.name, letter.id, old.with_for_update(skip_locked=True))
    )
    return len(db.execute(gone.returning(letter.id)).all())


def prune_tries(db: sa.Connection, seconds: float, limit: int = BATCH) -> int:
    """Delete tries of webhooks that were made so long ago; return how many."""
    t = delivery_tries.c
    # Their numbers are in the order of their times: the oldest are looked at, and no more.
    oldest = sa.select(t.id, t.at).order_by(t.id).limit(limit).subquery()
    chosen = sa.select(oldest.c.id).where(oldest.c.at < _ago(seconds))
    gone = sa.delete(delivery_tries).where(id_in_chosen(db.dialect.name, t.id, chosen))
    return len(db.execute(gone.returning(t.id)).all())


def prune_events(db: sa.Connection, seconds: float, limit: int = BATCH) -> int:
    """Delete events of no cancellation, such as of a hold, that were written so long ago; return how many."""
    chosen = sa.select(e.id).where(*_old_events(seconds)).limit(limit).with_for_update(skip_locked=True)
    gone = sa.delete(events).where(id_in_chosen(db.dialect.name, e.id, chosen))
    return len(db.execute(gone.returning(e.id)).all())


def prune_refunds(db: sa.Connection, seconds: float, limit: int = BATCH) -> int:
    """Delete what was told so long ago of orders whose cancellations are all gone; return how many rows."""
    chosen = sa.select(r.connection_id, r.order_id).where(*_old_refunds(seconds)).limit(limit)
    return db.execute(sa.delete(refunds).where(sa.tuple_(r.connection_id, r.order_id).in_(chosen))).rowcount


def _old_refunds(seconds: float) -> tuple[sa.ColumnElement[bool], ...]:
    known = sa.exists(sa.select(c.id).where(c.order_id == r.order_id, c.connection_id == r.connection_id))
    return r.changed_at < _ago(seconds), ~known


def count_refunds(db: sa.Connection, seconds: float) -> int:
    """Return how many rows `prune_refunds` would delete in all, before any cancellation goes."""
    return _count(db, refunds, *_old_refunds(seconds))


def _old_events(seconds: float) -> tuple[sa.ColumnElement[bool], ...]:
    return e.cancellation_id.is_(None), e.publish_at.is_(None), e.created_at < _ago(seconds)


def count_documents(db: sa.Connection, seconds: float) -> int:
    """Return how many documents `prune_documents` would delete in all."""
    return _count(db, documents, d.kept_at < _ago(seconds))


def count_tries(db: sa.Connection, seconds: float) -> int:
    """Return how many tries `prune_tries` would delete in all."""
    return _count(db, delivery_tries, delivery_tries.c.at < _ago(seconds))


def count_events(db: sa.Connection, seconds: float) -> int:
    """Return how many events `prune_events` would delete in all."""
    return _count(db, events, *_old_events(seconds))


def count_dead_letters(db: sa.Connection, seconds: float) -> int:
    """Return how many dead letters `prune_dead_letters` would delete in all."""
    return _count(db, dead_letters, dead_letters.c.received_at < _ago(seconds))


def _count(db: sa.Connection, table: sa.Table, *which: sa.ColumnElement[bool]) -> int:
    return db.execute(sa.select(sa.func.count()).select_from(table).where(*which)).scalar_one()
