"""What was enqueued together: which batches there are, and how their cancellations stand. Knows rows, not files."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.cancellation.status import Status, Verdict, safe_to_refund
from worker.ledger.schema import cancellations

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c

Outcomes = Counter[tuple[str, str]]  # by status, and by whether it is safe to refund
_NAMED = c.batch.is_not(None)


class Batch(msgspec.Struct, frozen=True):
    """One batch, and how many of it stand how."""

    name: str
    received_at: datetime  # the first of it
    outcomes: Outcomes


def find(db: sa.Connection, limit: int = 50) -> list[Batch]:
    """Return the newest batches. Their names are taken from the index one after another, however long each is."""
    names = sa.select(sa.func.min(c.batch).label("batch")).where(_NAMED).cte("names", recursive=True)
    following = sa.select(sa.func.min(c.batch)).where(_NAMED, c.batch > names.c.batch).scalar_subquery()
    names = names.union_all(sa.select(following).where(names.c.batch.is_not(None)))
    first = sa.select(sa.func.min(c.received_at)).where(_NAMED, c.batch == names.c.batch).scalar_subquery()
    rows = db.execute(
        sa.select(names.c.batch, first.label("received_at"))
        .where(names.c.batch.is_not(None))
        .order_by(first.desc(), names.c.batch)
        .limit(limit)
    ).all()
    counted = _outcomes(db, [row.batch for row in rows])
    return [Batch(row.batch, row.received_at, counted[row.batch]) for row in rows]


def get(db: sa.Connection, name: str) -> Batch | None:
    """Return one batch, or None where nothing is in it."""
    received_at = db.execute(sa.select(sa.func.min(c.received_at)).where(_NAMED, c.batch == name)).scalar_one()
    return Batch(name, received_at, _outcomes(db, [name])[name]) if received_at else None


def _outcomes(db: sa.Connection, names: Sequence[str]) -> dict[str, Outcomes]:
    rows = db.execute(
        sa.select(c.batch, c.status, c.verdict, sa.func.count().label("number"))
        .where(_NAMED, c.batch.in_(names))
        .group_by(c.batch, c.status, c.verdict)
    )
    found: dict[str, Outcomes] = {name: Counter() for name in names}
    for row in rows:
        found[row.batch][outcome(row.status, row.verdict)] += row.number
    return found


def outcome(status: str, verdict: str | None) -> tuple[str, str]:
    """Return how one stands, as outcomes are counted."""
    return status, safe_to_refund(Status(status), Verdict(verdict) if verdict else None)
