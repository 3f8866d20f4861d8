"""Connections: one customer's warehouse, one access token each. Knows rows; tokens come and go encrypted."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.status import Status
from worker.ledger.dialects import db_now, insert
from worker.ledger.holds import CREDENTIALS, RATE_LIMITED, UNKNOWN_CONNECTION
from worker.ledger.outbox import add_events
from worker.ledger.schema import LEASED, PENDING, WAITING, WATCHED, cancellations, connections
from worker.ledger.vault import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

c = cancellations.c
k = connections.c

DEFAULT = "default"
SHOWN_UNKNOWN = 20  # of those that nobody has added: a producer may invent thousands

# What a new token sets right; an operator's hold and an outage stay.
_ENDED_BY_A_TOKEN = (CREDENTIALS, UNKNOWN_CONNECTION)


class ConnectionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One connection as people see it; never its token."""

    id: str
    name: str | None
    owner: str | None
    integration_name: str | None
    writes_per_second: float | None
    hold_reason: str | None
    held_at: datetime | None
    held_until: datetime | None  # where the hold ends by itself at a known time
    has_token: bool
    waiting: int | None = None  # cancellations that have not ended; None where they were not counted


def add(
    db: sa.Connection,
    connection_id: str,
    encrypted_token: str,
    *,
    name: str | None = None,
    owner: str | None = None,
    integration_name: str | None = None,
    writes_per_second: float | None = None,
) -> None:
    """Add a connection, or give a known one a new token. Jobs that waited for it go on."""
    stated = _stated(name=name, owner=owner, integration_name=integration_name, writes_per_second=writes_per_second)
    statement = insert(db.dialect.name, connections).values(
        id=connection_id, access_token=encrypted_token, created_at=db_now(), updated_at=db_now(), **stated
    )
    ends = connections.c.hold_reason.in_(_ENDED_BY_A_TOKEN)
    changes = {
        "access_token": encrypted_token,
        "updated_at": db_now(),
        **{
            column: sa.case((ends, sa.null()), else_=connections.c[column])
            for column in ("hold_reason", "held_at", "probe_at")
        },
        **stated,
    }
    held = db.execute(
        sa.select(connections.c.hold_reason).where(connections.c.id == connection_id).with_for_update()
    ).scalar()
    db.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes))
    if held in _ENDED_BY_A_TOKEN:
        add_events(db, [(None, "connection.resumed", {"connection_id": connection_id})])


def change(
    db: sa.Connection,
    connection_id: str,
    *,
    name: str | None = None,
    owner: str | None = None,
    integration_name: str | None = None,
    writes_per_second: float | None = None,
) -> None:
    """Change what is stated of a known connection, an empty text to nothing; its token and its hold stay."""
    stated = _stated(name=name, owner=owner, integration_name=integration_name, writes_per_second=writes_per_second)
    if stated:
        db.execute(sa.update(connections).where(k.id == connection_id).values(updated_at=db_now(), **stated))


def _stated(**given: str | float | None) -> dict[str, Any]:
    return {column: value or None for column, value in given.items() if value is not None}


def ensure_default(db: sa.Connection, encrypt: Callable[[], str], decrypt: Callable[[str], str], token: str) -> None:
    """Keep the connection `default` at the token of the settings; an unchanged one is not touched.

    One that no key reads any more is encrypted anew: the settings say what it is.
    """
    kept = db.execute(sa.select(connections.c.access_token).where(connections.c.id == DEFAULT)).scalar_one_or_none()
    known = None
    if kept is not None:
        with suppress(CredentialsError):
            known = decrypt(kept)
    if known != token:
        add(db, DEFAULT, encrypt(), name=DEFAULT)


# Counted in the partial indexes of what is live, whose size is that of the backlog; never in what has ended. Pending
# rows are found by their connection; those that wait for a time, or are in flight, are read once for all of them.
_pending = sa.select(sa.func.count()).where(c.connection_id == k.id, PENDING).correlate(connections).scalar_subquery()
_others = sa.union_all(sa.select(c.connection_id).where(WAITING), sa.select(c.connection_id).where(LEASED)).subquery()
_elsewhere = (
    sa.select(_others.c.connection_id, sa.func.count().label("count")).group_by(_others.c.connection_id).subquery()
)
_FACTS = (
    k.id,
    k.name,
    k.owner,
    k.integration_name,
    k.writes_per_second,
    k.hold_reason,
    k.held_at,
    sa.case((k.hold_reason == RATE_LIMITED, k.probe_at)).label("held_until"),
    k.access_token.is_not(None).label("has_token"),
)
_ROW = sa.select(*_FACTS, (_pending + sa.func.coalesce(_elsewhere.c.count, 0)).label("waiting")).outerjoin_from(
    connections, _elsewhere, _elsewhere.c.connection_id == k.id
)
_UNKNOWN = k.hold_reason == UNKNOWN_CONNECTION


def list_all(db: sa.Connection, *, unknown: int | None = None) -> list[ConnectionRow]:
    """Return every connection that somebody has added, and at most so many (None: all) that nobody has; each by id."""
    rows = [
        *db.execute(_ROW.where(k.hold_reason.is_distinct_from(UNKNOWN_CONNECTION)).order_by(k.id)),
        *db.execute(_unknown_ones(unknown)),
    ]
    return [ConnectionRow(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's documented name


def _unknown_ones(most: int | None) -> sa.Select[Any]:
    # Chosen first and counted afterwards: there may be as many as a producer has invented.
    chosen = sa.select(k.id).where(_UNKNOWN).order_by(k.id).limit(most).subquery()
    return _ROW.where(k.id.in_(sa.select(chosen.c.id))).order_by(k.id)


def count_unknown(db: sa.Connection) -> int:
    """Return how many connections nobody has added: jobs came for their ids, or their token was forgotten."""
    return db.execute(sa.select(sa.func.count()).select_from(connections).where(_UNKNOWN)).scalar_one()


def find(db: sa.Connection, connection_id: str) -> ConnectionRow | None:
    """Return one connection, or None where no job has named it and nobody has added it; `waiting` is not counted."""
    row = db.execute(sa.select(*_FACTS).where(k.id == connection_id)).one_or_none()
    return ConnectionRow(**row._mapping) if row else None  # noqa: SLF001


def known(db: sa.Connection, connection_id: str) -> ConnectionRow:
    """Return one connection; raises ValueError with a sentence where no job has named it and nobody has added it."""
    row = find(db, connection_id)
    if row is None:
        raise ValueError(f"There is no connection {connection_id}: see `cancel-worker connections list`.")
    return row


def people_of(db: sa.Connection, ids: Collection[str]) -> dict[str, tuple[str | None, str | None]]:
    """Return name and owner of these connections by their id."""
    rows = db.execute(sa.select(k.id, k.name, k.owner).where(k.id.in_(ids)))
    return {row.id: (row.name, row.owner) for row in rows}


def count_waiting(db: sa.Connection, connection_id: str) -> int:
    """Return how many cancellations of one connection have not ended."""
    mine = (
        sa.select(sa.func.count()).where(c.connection_id == connection_id, which)
        for which in (PENDING, WAITING, LEASED)
    )
    return sum(db.execute(sa.select(*(each.scalar_subquery() for each in mine))).one())


class Affected(msgspec.Struct, frozen=True):
    """What has not ended of one connection and one priority, and its earliest `send_by`."""

    priority: str
    count: int
    send_by: datetime | None


def affected(db: sa.Connection, connection_id: str) -> list[Affected]:
    """Return who waits for a connection, by priority, the most urgent first."""
    # By the partial indexes of what is live, as `list_all` counts.
    live = sa.union_all(
        *(
            sa.select(c.priority, c.send_by).where(c.connection_id == connection_id, which)
            for which in (PENDING, WAITING, LEASED)
        )
    ).subquery()
    rows = db.execute(
        sa.select(live.c.priority, sa.func.count(), sa.func.min(live.c.send_by)).group_by(live.c.priority)
    )
    return sorted((Affected(*row) for row in rows), key=lambda each: PRIORITY_RANK[each.priority])


def last_success(db: sa.Connection, connection_id: str) -> datetime | None:
    """Return when a cancel of a connection last succeeded, proven or as Trackstar said."""
    return db.execute(
        sa.select(c.ended_at)
        .where(c.connection_id == connection_id, WATCHED, c.status == Status.SUCCEEDED.value)
        .order_by(c.ended_at.desc())
        .limit(1)
    ).scalar()


def encrypted_tokens(db: sa.Connection) -> dict[str, str]:
    """Return the encrypted token of each connection that has one, by id in order."""
    rows = db.execute(sa.select(k.id, k.access_token).where(k.access_token.is_not(None)).order_by(k.id))
    return {row.id: row.access_token for row in rows}


def remove(db: sa.Connection, connection_id: str) -> None:
    """Forget the token; the connection is held as unknown until somebody adds it again."""
    db.execute(
        sa.update(connections)
        .where(k.id == connection_id)
        .values(
            access_token=sa.null(),
            hold_reason=UNKNOWN_CONNECTION,
            held_at=db_now(),
            probe_at=sa.null(),
            updated_at=db_now(),
        )
    )
    add_events(db, [(None, "connection.removed", {"connection_id": connection_id})])


def rekey(db: sa.Connection, reencrypt: Callable[[str, str], str]) -> int:
    """Encrypt every token anew, which is told with its connection's id; return how many there are."""
    rows = db.execute(sa.select(k.id, k.access_token).where(k.access_token.is_not(None)).with_for_update()).all()
    for row in rows:
        db.execute(
            sa.update(connections).where(k.id == row.id).values(access_token=reencrypt(row.access_token, row.id))
        )
    return len(rows)
