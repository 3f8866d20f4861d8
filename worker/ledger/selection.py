"""Which cancellations are sent next: the connections that have something to send, and the rows whose turn it is.

Builds the queries that choose; `transitions.claim_next` claims what they choose. Each is answered from a partial
index, so its cost does not grow with what has ended or still waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.cancellation.fairness import PRIORITY_RANK
from worker.ledger.dialects import (
    bind_rows,
    built_once_per_dialect,
    db_now,
    hidden_from_planner,
    id_in_chosen,
    rows_parameter,
)
from worker.ledger.schema import IN_TURN, PENDING, RANK, cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c
k = connections.c

# As a value and not by EXISTS, which PostgreSQL may turn into a join: one row answers it, however many wait.
HAS_PENDING = (
    sa.select(sa.literal(1)).where(c.connection_id == k.id, PENDING).limit(1).correlate(connections).scalar_subquery()
).is_not(None)
# Of a refusal that is known only the read is missing; all others send a cancel.
SENDS = c.evidence.is_(None)
HAS_SEND = (
    sa.select(sa.literal(1))
    .where(c.connection_id == k.id, PENDING, SENDS)
    .limit(1)
    .correlate(connections)
    .scalar_subquery()
).is_not(None)
OPEN = k.hold_reason.is_(None)
_name = sa.bindparam("name", type_=sa.Text())
_share = sa.bindparam("share", type_=sa.Integer())
_probe_due = k.hold_reason.is_not(None) & (k.probe_at <= db_now())
# A cancel that is worthless by now is not sent; a refusal that must be read is read at any time.
_IN_TIME = sa.or_(c.send_by.is_(None), c.send_by > db_now(), c.evidence.is_not(None))


class ReadyConnection(msgspec.Struct, frozen=True):
    """A connection that has something to send: its own rate, and whether it may only probe."""

    connection_id: str
    writes_per_second: float | None
    probing: bool


_READY = sa.select(k.id, k.writes_per_second, k.hold_reason.is_not(None)).where(sa.or_(OPEN, _probe_due), HAS_PENDING)


@built_once_per_dialect
def _ready_among(dialect: str) -> sa.Select[tuple[str, float | None, bool]]:
    return _READY.where(k.id.in_(sa.select(rows_parameter(dialect, {"name": sa.Text()}).c.name)))


def ready_connections(db: sa.Connection, only: Sequence[str] | None = None) -> list[ReadyConnection]:
    """Return the connections that have something to send and may, or may probe; `only` these, where it is not None."""
    if only is None:
        rows = db.execute(_READY)
    else:
        rows = db.execute(_ready_among(db), bind_rows({"name": name} for name in only))
    return [ReadyConnection(row[0], row[1], bool(row[2])) for row in rows]


def next_of_shares(
    dialect: str, may_send: sa.ColumnElement[bool], *only: sa.ColumnElement[bool]
) -> sa.Select[tuple[str]]:
    """Choose the next rows of many connections: (name, share) by the parameter `rows`. Not on SQLite (LATERAL)."""
    source = rows_parameter(dialect, {"name": sa.Text(), "share": sa.Integer()})
    turn = _next(source.c.name).where(*only).limit(source.c.share).lateral("turn")
    sending = source.join(connections, (k.id == source.c.name) & may_send)
    return sa.select(turn.c.id).select_from(sending.join(turn, sa.true()))


def next_of_one(may_send: sa.ColumnElement[bool], *only: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    """Choose the next rows of one connection, by the parameters `name` and `share`."""
    return _next(_name).where(_named(may_send), *only).limit(_share)


def _next(name: sa.ColumnElement[str]) -> sa.Select[tuple[str]]:
    return in_turn(name).with_for_update(skip_locked=True, of=cancellations)


def in_turn(name: sa.ColumnElement[str]) -> sa.Select[tuple[str]]:
    """Choose the rows of one connection that may be sent, as their turn comes."""
    return sa.select(c.id).where(c.connection_id == name, PENDING, _IN_TIME).order_by(*IN_TURN)


def _named(may_send: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.select(sa.literal(1)).where(k.id == _name, may_send).exists()


def oldest_of_one(dialect: str) -> sa.Select[tuple[str]]:
    """Choose the rows of one connection that have waited longest, by the parameters `name` and `share`."""
    # The oldest row is the first of one of six index ranges: priority (3) x with or without send_by (2).
    ranges = [
        sa.select(c.id, c.requested_at)
        .where(c.connection_id == _name, PENDING, RANK == rank, _IN_TIME, *without)
        .order_by(c.send_by.asc().nulls_last(), c.requested_at)
        .limit(_share)
        .subquery()
        for rank in PRIORITY_RANK.values()
        for without in ((), (c.send_by.is_(None),))
    ]
    heads = sa.union_all(*(sa.select(each.c.id, each.c.requested_at) for each in ranges)).subquery()
    oldest = sa.select(heads.c.id).where(_named(OPEN)).group_by(heads.c.id).order_by(sa.func.min(heads.c.requested_at))
    # Another dispatcher looks at the same heads: what it has in hand is left to it, never waited for.
    free = sa.select(c.id).where(
        id_in_chosen(dialect, c.id, oldest.limit(_share)), hidden_from_planner(c.status) == "pending"
    )
    return free.with_for_update(skip_locked=True)


ANY: sa.ColumnElement[bool] = sa.true()  # also a held connection: for its probe
