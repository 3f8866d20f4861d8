"""What the dispatcher asks the ledger: who has something to send, and the next rows of those whose turn it is.

Every question is answered from a partial index, so its cost does not grow with what has ended or still waits.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    func,
    literal,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)

from worker.ledger.sqltypes import RecordId, among, as_rows, db_now, given, now_plus_given, once, unindexed
from worker.ledger.tables import PENDING, cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Row

c = cancellations.c
k = connections.c

# As a value and not by EXISTS, which PostgreSQL may turn into a join: one row answers it, however many wait.
HAS_PENDING = (
    select(literal(1)).where(c.connection_id == k.id, PENDING).limit(1).correlate(connections).scalar_subquery()
).is_not(None)
_open = k.hold_reason.is_(None)
_name = bindparam("name", type_=Text())
_share = bindparam("share", type_=Integer())
_probe_due = k.hold_reason.is_not(None) & (k.probe_at <= db_now())
# Urgent, normal, bulk: the alphabet happens to run backwards.
_IN_TURN = (c.priority.desc(), c.send_by.asc().nulls_last(), c.requested_at)


class Sender(msgspec.Struct, frozen=True):
    """A connection that has something to send: its own rate, and whether it may only probe."""

    connection_id: str
    writes_per_second: float | None
    probing: bool


_SENDERS = select(k.id, k.writes_per_second, k.hold_reason.is_not(None)).where(or_(_open, _probe_due), HAS_PENDING)


@once
def _senders_among(dialect: str) -> Any:
    return _SENDERS.where(k.id.in_(select(given(dialect, {"name": Text()}).c.name)))


def senders(connection: Connection, only: Sequence[str] | None = None) -> list[Sender]:
    """Return the connections that have something to send and may, or may probe; `only` these, where given."""
    if only is None:
        rows = connection.execute(_SENDERS)
    else:
        rows = connection.execute(_senders_among(connection), as_rows({"name": name} for name in only))
    return [Sender(row[0], row[1], bool(row[2])) for row in rows]


class Queued(msgspec.Struct, frozen=True):
    """One cancellation on its way to Celery."""

    id: str
    connection_id: str
    priority: str
    send_by: datetime | None
    requested_at: datetime


_QUEUED_COLUMNS = (c.id, c.connection_id, c.priority, c.send_by, c.requested_at)


def queue(
    connection: Connection,
    shares: Mapping[str, int],
    owner: str,
    lease_seconds: float,
    *,
    longest_waiting: Mapping[str, int] | None = None,
    probes: bool = False,
) -> dict[str, list[Queued]]:
    """Mark the next rows of each connection as handed out, and return them in the order in which they go.

    Urgent first, then by send_by, then first come; `longest_waiting` of a connection's share go by waiting time. A
    held connection's rows stay, except for probes.
    """
    found: dict[str, list[Queued]] = {}
    for name, count in (longest_waiting or {}).items():
        values = {"name": name, "share": count, "owner": owner, "lease_seconds": lease_seconds}
        found[name] = _marked(connection, _mark_longest_waiting(connection), values)
    rest = {name: share - len(found.get(name, [])) for name, share in shares.items()}
    for row in _mark_next(connection, {n: s for n, s in rest.items() if s > 0}, owner, lease_seconds, probes=probes):
        found.setdefault(row.connection_id, []).append(row)
    return {name: sorted(rows, key=_by_turn) for name, rows in found.items() if rows}


def _mark_next(
    connection: Connection, shares: Mapping[str, int], owner: str, lease_seconds: float, *, probes: bool
) -> list[Queued]:
    if not shares:
        return []
    if connection.dialect.name == "sqlite":  # which has no LATERAL; a statement more costs it no round trip
        return [
            row
            for name, share in shares.items()
            for row in _marked(
                connection,
                _mark_one_probe(connection) if probes else _mark_one_share(connection),
                {"name": name, "share": share, "owner": owner, "lease_seconds": lease_seconds},
            )
        ]
    rows = as_rows({"name": name, "share": share} for name, share in shares.items())
    marking = _mark_probes(connection) if probes else _mark_shares(connection)
    return _marked(connection, marking, {**rows, "owner": owner, "lease_seconds": lease_seconds})


@once
def _mark_shares(dialect: str) -> Any:
    return _of_shares(dialect, _open)


@once
def _mark_probes(dialect: str) -> Any:
    return _of_shares(dialect, true())


def _of_shares(dialect: str, may_send: ColumnElement[bool]) -> Any:
    source = given(dialect, {"name": Text(), "share": Integer()})
    turn = _next(source.c.name).limit(source.c.share).lateral("turn")
    sending = source.join(connections, (k.id == source.c.name) & may_send)
    return _marking(dialect, select(turn.c.id).select_from(sending.join(turn, true())))


@once
def _mark_one_share(dialect: str) -> Any:
    return _of_one(dialect, _open)


@once
def _mark_one_probe(dialect: str) -> Any:
    return _of_one(dialect, true())


def _of_one(dialect: str, may_send: ColumnElement[bool]) -> Any:
    return _marking(dialect, _next(_name).where(_sends(may_send)).limit(_share))


def _next(name: ColumnElement[str]) -> Select[tuple[str]]:
    return (
        select(c.id)
        .where(c.connection_id == name, PENDING)
        .order_by(*_IN_TURN)
        .with_for_update(skip_locked=True, of=cancellations)
    )


def _sends(may_send: ColumnElement[bool]) -> ColumnElement[bool]:
    return select(literal(1)).where(k.id == _name, may_send).exists()


@once
def _mark_longest_waiting(dialect: str) -> Any:
    # The head of each line of the index: one of them has waited longest, and none can be overtaken for ever.
    lines = [
        select(c.id, c.requested_at)
        .where(c.connection_id == _name, PENDING, c.priority == priority, *without)
        .order_by(c.send_by.asc().nulls_last(), c.requested_at)
        .limit(_share)
        .subquery()
        for priority in ("urgent", "normal", "bulk")
        for without in ((), (c.send_by.is_(None),))
    ]
    heads = union_all(*(select(line.c.id, line.c.requested_at) for line in lines)).subquery()
    oldest = select(heads.c.id).where(_sends(_open)).group_by(heads.c.id).order_by(func.min(heads.c.requested_at))
    # Another dispatcher looks at the same heads: what it has in hand is left to it, never waited for.
    free = select(c.id).where(among(dialect, c.id, oldest.limit(_share)), unindexed(c.status) == "pending")
    return _marking(dialect, free.with_for_update(skip_locked=True))


def _marking(dialect: str, chosen: Select[tuple[str]]) -> Any:
    return (
        update(cancellations)
        .where(among(dialect, c.id, chosen))
        .values(
            status="queued",
            lease_owner=bindparam("owner", type_=Text()),
            lease_expires_at=now_plus_given("lease_seconds"),
        )
        .returning(*_QUEUED_COLUMNS)
    )


def _marked(connection: Connection, marking: Any, values: Mapping[str, object]) -> list[Queued]:
    return [_as_queued(row) for row in connection.execute(marking, values)]


def _as_queued(row: Row[tuple[str, str, str, datetime | None, datetime]]) -> Queued:
    return Queued(str(row.id), row.connection_id, row.priority, row.send_by, row.requested_at)


_RANK = {"urgent": 0, "normal": 1, "bulk": 2}


def _by_turn(row: Queued) -> tuple[int, bool, float, datetime]:
    deadline = row.send_by.timestamp() if row.send_by else 0.0
    return _RANK[row.priority], row.send_by is None, deadline, row.requested_at


def hand_back(connection: Connection, ids: Iterable[str], owner: str) -> int:
    """Make queued rows pending again that we could not, or will not, publish."""
    source = given(connection.dialect.name, {"id": RecordId})
    return connection.execute(
        update(cancellations)
        .where(c.id.in_(select(source.c.id)), c.status == "queued", c.lease_owner == owner)
        .values(status="pending", lease_owner=null(), lease_expires_at=null()),
        as_rows({"id": record_id} for record_id in ids),
    ).rowcount


def hand_back_all(connection: Connection, owner: str) -> int:
    """Make everything pending again that this worker queued and nobody claimed."""
    return connection.execute(
        update(cancellations)
        .where(c.status == "queued", c.lease_owner == owner)
        .values(status="pending", lease_owner=null(), lease_expires_at=null())
    ).rowcount
