"""The audit: one row for each act of a person, written in the transaction of the act; and what people ask of it.

Knows which facts of a target may be kept: never a token, a document, or what an order says of a person. Does not know
what an act does, nor why it is allowed.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.request import is_record_id
from worker.inputs.receivers import origin_of
from worker.inputs.text import printable
from worker.ledger.dialects import RecordId, bind_rows, db_now, id_in_chosen, rows_parameter
from worker.ledger.schema import audit, cancellations, connections, dead_letters, endpoints, freshness, producers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

a, c, d, k, p, r = audit.c, cancellations.c, dead_letters.c, connections.c, endpoints.c, producers.c

Facts = dict[str, Any]  # of one target, by name; what JSON can hold


class Action(StrEnum):
    """What a person does, in the word of the command."""

    ADD = "add"
    SET = "set"
    ROTATE = "rotate"
    REKEY = "rekey"
    HOLD = "hold"
    RESUME = "resume"
    REMOVE = "remove"
    MEND_LINK = "mend-link"
    CHANGE = "change"
    WITHDRAW = "withdraw"
    REPLAY = "replay"
    REQUEUE = "requeue"
    RESOLVE = "resolve"
    REVEAL = "reveal"
    PRUNE = "prune"
    REDACT = "redact"
    PAUSE = "pause"
    TEST = "test"


class Kind(StrEnum):
    """What an act is done to."""

    CANCELLATION = "cancellation"
    CONNECTION = "connection"  # without an id: all of them
    DEAD_LETTER = "dead_letter"
    ENDPOINT = "endpoint"
    LEDGER = "ledger"  # without an id
    PRODUCER = "producer"


class By(msgspec.Struct, frozen=True):
    """Who acts, and why; bounded, and without what a terminal obeys. Made by `acting`."""

    actor: str
    reason: str | None = None


def acting(actor: str, reason: str | None = None) -> By:
    """Bound what was said of who acts and why; a reason of blanks is none."""
    said = printable((reason or "").strip())
    return By(printable(actor)[:MAX_ACTOR_LENGTH], said if said.strip() else None)


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act of a person, as it is kept."""

    id: int
    at: datetime
    actor: str
    action: str
    target_kind: str
    target_id: str | None
    reason: str | None
    before: Facts | None  # None: it was not there, or nothing of it changed
    after: Facts | None


MAX_ACTOR_LENGTH = 255


# ---- write


@contextmanager
def recorded(
    db: sa.Connection, by: By, action: Action, kind: Kind, ids: Sequence[str | int], **more: Any
) -> Iterator[None]:
    """Write an act for each of these targets that the block changes, with what it was and is; `more` is added to that.

    Targets are locked first, as the act itself locks them. What the block leaves as it was has no act.
    """
    before = facts(db, kind, ids)
    yield
    after = facts(db, kind, ids)
    changed = [each for each in map(str, ids) if before.get(each) != after.get(each)]
    _write(db, by, action, kind, [(each, before.get(each), {**after.get(each, {}), **more}) for each in changed])


def write(
    db: sa.Connection,
    by: By,
    action: Action,
    kind: Kind,
    target_id: str | None = None,
    *,
    before: Facts | None = None,
    after: Facts | None = None,
) -> None:
    """Write one act that changes no fact of a target: numbers and words of our own may be said of it."""
    _write(db, by, action, kind, [(target_id, before, after)])


def _write(
    db: sa.Connection,
    by: By,
    action: Action,
    kind: Kind,
    changes: Iterable[tuple[str | None, Facts | None, Facts | None]],
) -> None:
    act = {"actor": by.actor, "reason": by.reason, "action": action.value, "target_kind": kind.value}
    rows = [{**act, "target_id": each, "before": before, "after": after} for each, before, after in changes]
    if rows:
        # Inline: it returns no number, which a worker has no right to read.
        db.execute(sa.insert(audit).inline().values(at=db_now()), rows)


# ---- what is kept of a target

_OF_CANCELLATION = (
    c.status,
    c.generation,
    c.priority,
    c.send_by,
    c.run_at,
    c.verdict,
    c.evidence,
    c.outcome_reason,
)
_OF_CONNECTION = (
    k.name,
    k.owner,
    k.integration_name,
    k.writes_per_second,
    k.hold_reason,
    k.held_at,
    freshness.c.trackstar_id,
)
_OF_DEAD_LETTER = (d.source, d.reason, d.requeued_at)
_OF_ENDPOINT = (p.types, p.connections, p.state, p.place)
_OF_PRODUCER = (r.connections, r.urgent, r.per_second)


def facts(db: sa.Connection, kind: Kind, ids: Sequence[str | int]) -> dict[str, Facts]:
    """Return what an act keeps of each target that is there, by id, and lock those rows until the transaction ends."""
    return _FACTS[kind](db, ids)


def _of_cancellations(db: sa.Connection, ids: Sequence[str | int]) -> dict[str, Facts]:
    asked = sa.select(rows_parameter(db.dialect.name, {"id": RecordId}).c.id)
    which = id_in_chosen(db.dialect.name, c.id, asked)
    query = _locked(sa.select(c.id, *_OF_CANCELLATION).where(which).order_by(c.id), cancellations)
    rows = db.execute(query, bind_rows({"id": each} for each in ids if is_record_id(str(each))))
    return {str(row.id): _kept(row) for row in rows}


def _of_connections(db: sa.Connection, ids: Sequence[str | int]) -> dict[str, Facts]:
    known = sa.select(k.id, k.access_token, *_OF_CONNECTION).where(k.id.in_(ids)).order_by(k.id)
    query = _locked(known.outerjoin_from(connections, freshness, freshness.c.connection_id == k.id), connections)
    return {row.id: {**_kept(row), "token": _mark(row.access_token)} for row in db.execute(query)}


def _of_dead_letters(db: sa.Connection, ids: Sequence[str | int]) -> dict[str, Facts]:
    query = _locked(sa.select(d.id, *_OF_DEAD_LETTER).where(d.id.in_(ids)).order_by(d.id), dead_letters)
    return {str(row.id): _kept(row) for row in db.execute(query)}


def _of_endpoints(db: sa.Connection, ids: Sequence[str | int]) -> dict[str, Facts]:
    known = sa.select(p.id, p.url, p.secret, *_OF_ENDPOINT).where(p.id.in_(ids)).order_by(p.id)
    rows = db.execute(_locked(known, endpoints)).all()
    return {row.id: {**_kept(row), "origin": origin_of(row.url), "secret": _mark(row.secret)} for row in rows}


def _of_producers(db: sa.Connection, ids: Sequence[str | int]) -> dict[str, Facts]:
    query = _locked(sa.select(r.name.label("id"), *_OF_PRODUCER).where(r.name.in_(ids)).order_by(r.name), producers)
    return {row.id: {**_kept(row), "connections": row.connections or "all"} for row in db.execute(query)}


_FACTS: dict[Kind, Callable[[sa.Connection, Sequence[str | int]], dict[str, Facts]]] = {
    Kind.CANCELLATION: _of_cancellations,
    Kind.CONNECTION: _of_connections,
    Kind.DEAD_LETTER: _of_dead_letters,
    Kind.ENDPOINT: _of_endpoints,
    Kind.PRODUCER: _of_producers,
}


def _locked(query: sa.Select[Any], table: sa.Table) -> sa.Select[Any]:
    # As an UPDATE locks: what refers to the row can be inserted meanwhile.
    return query.with_for_update(of=table, key_share=True)


_NEVER_KEPT = {"id", "access_token", "secret", "url"}


def _kept(row: sa.Row[Any]) -> Facts:
    named = {name: value for name, value in row._mapping.items() if name not in _NEVER_KEPT}  # noqa: SLF001
    return msgspec.to_builtins(named)  # type: ignore[no-any-return]


def _mark(encrypted: str | None) -> str | None:
    """Name an encrypted token: two names show that it was replaced. It is made of what is random, not of the token."""
    return hashlib.sha256(encrypted.encode()).hexdigest()[:8] if encrypted else None


# ---- ask


def find(
    db: sa.Connection,
    *,
    actor: str | None = None,
    action: str | None = None,
    kind: str | None = None,
    target_id: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[Act]:
    """Return the newest acts that match all that is given."""
    asked = {a.actor: actor, a.action: action, a.target_kind: kind, a.target_id: target_id}
    given = [column == value for column, value in asked.items() if value is not None]
    if since is not None:
        given.append(a.at >= since)
    query = sa.select(audit).where(*given).order_by(a.at.desc(), a.id.desc()).limit(limit)
    return [Act(**row._mapping) for row in db.execute(query)]  # noqa: SLF001 - SQLAlchemy's documented name
