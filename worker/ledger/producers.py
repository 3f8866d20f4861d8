"""The table of producers: who has a stream of its own, and what each may. Knows rows; does not know Redis."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.producer import MAX_PRODUCERS, Producer, check_rights, problem_of_producer
from worker.ledger.dialects import db_now
from worker.ledger.schema import producers

if TYPE_CHECKING:
    from collections.abc import Sequence

r = producers.c


class UnknownProducerError(ValueError):
    """There is no such producer; the text says so."""


class ProducerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One producer as people see it."""

    name: str
    connections: list[str] | None  # None: all
    urgent: bool
    per_second: float | None  # None: no limit
    created_at: datetime
    created_by: str


def add(
    db: sa.Connection,
    name: str,
    *,
    by: str,
    connections: Sequence[str] | None = None,
    urgent: bool = False,
    per_second: float | None = None,
) -> None:
    """Add a producer, by this actor. Raises ValueError where the name or the rights cannot be, or it is there."""
    if problem := problem_of_producer(name):
        raise ValueError(f"{name!r} {problem}.")
    check_rights(connections, per_second)
    if find(db, name):
        raise ValueError(f"Producer {name} is there already: change it with `producers change {name}`.")
    if db.execute(sa.select(sa.func.count()).select_from(producers)).scalar_one() >= MAX_PRODUCERS:
        raise ValueError(f"There are {MAX_PRODUCERS} producers, which is the most: remove one that nobody uses.")
    rights = {"connections": _stored(connections), "urgent": urgent, "per_second": per_second}
    db.execute(sa.insert(producers).values(name=name, **rights, created_at=db_now(), created_by=by))


def change(db: sa.Connection, name: str, **rights: Any) -> None:
    """Change what a producer may: `connections` (None: all), `urgent`, `per_second` (None: no limit), as given."""
    known(db, name)
    check_rights(rights.get("connections"), rights.get("per_second"))
    if "connections" in rights:
        rights["connections"] = _stored(rights["connections"])
    db.execute(sa.update(producers).where(r.name == name).values(**rights))


def remove(db: sa.Connection, name: str) -> None:
    """Forget a producer: what is on its stream, and what still comes there, becomes dead letters."""
    known(db, name)
    db.execute(sa.delete(producers).where(r.name == name))


def list_all(db: sa.Connection) -> list[ProducerRow]:
    """Return every producer, by name."""
    rows = db.execute(sa.select(producers).order_by(r.name))
    return [ProducerRow(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's documented name


def find(db: sa.Connection, name: str) -> ProducerRow | None:
    """Return one producer, or None."""
    row = db.execute(sa.select(producers).where(r.name == name)).one_or_none()
    return ProducerRow(**row._mapping) if row else None  # noqa: SLF001


def known(db: sa.Connection, name: str) -> ProducerRow:
    """Return one producer. Raises UnknownProducerError."""
    row = find(db, name)
    if row is None:
        raise UnknownProducerError(f"There is no producer {name}: see `cancel-worker producers list`.")
    return row


def rights(db: sa.Connection) -> dict[str, Producer]:
    """Return what each producer may, by name: the first of them, where somebody has written more than there can be."""
    rows = db.execute(sa.select(r.name, r.connections, r.urgent, r.per_second).order_by(r.name).limit(MAX_PRODUCERS))
    found = (Producer(**row._mapping) for row in rows)  # noqa: SLF001
    return {each.name: each for each in found if problem_of_producer(each.name) is None}


def _stored(connections: Sequence[str] | None) -> list[str] | None:
    return None if connections is None else sorted(set(connections))
