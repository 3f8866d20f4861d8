"""Connections: one customer's warehouse, one access token each. Knows rows; tokens come and go sealed."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, case, func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.ledger.outbox import announce
from worker.ledger.sqltypes import db_now
from worker.ledger.tables import cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.sql.dml import Insert

DEFAULT = "default"

# What a new token sets right; an operator's hold and an outage stay.
_ENDED_BY_A_TOKEN = ("credentials", "unknown_connection")


class ConnectionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One connection as people see it; never its token."""

    id: str
    name: str | None
    integration_name: str | None
    writes_per_second: float | None
    hold_reason: str | None
    held_at: datetime | None
    has_token: bool
    waiting: int  # cancellations that have not ended


def add(
    connection: Connection,
    connection_id: str,
    sealed_token: str,
    *,
    name: str | None = None,
    integration_name: str | None = None,
    writes_per_second: float | None = None,
) -> None:
    """Add a connection, or give a known one a new token. Jobs that waited for it go on."""
    known = {"name": name, "integration_name": integration_name, "writes_per_second": writes_per_second}
    given = {key: value for key, value in known.items() if value is not None}
    statement = _insert(connection).values(
        id=connection_id, access_token=sealed_token, created_at=db_now(), updated_at=db_now(), **given
    )
    ends = connections.c.hold_reason.in_(_ENDED_BY_A_TOKEN)
    changes = {
        "access_token": sealed_token,
        "updated_at": db_now(),
        **{
            column: case((ends, null()), else_=connections.c[column])
            for column in ("hold_reason", "held_at", "probe_at")
        },
        **given,
    }
    held = connection.execute(
        select(connections.c.hold_reason).where(connections.c.id == connection_id).with_for_update()
    ).scalar()
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes))  # type: ignore[attr-defined]
    if held in _ENDED_BY_A_TOKEN:
        announce(connection, [(None, "connection.resumed", {"connection_id": connection_id})])


def ensure_default(connection: Connection, sealed_token: str, unseal: Callable[[str], str], token: str) -> None:
    """Keep the connection `default` at the token of the settings; an unchanged one is not touched."""
    kept = connection.execute(
        select(connections.c.access_token).where(connections.c.id == DEFAULT)
    ).scalar_one_or_none()
    if kept is None or unseal(kept) != token:
        add(connection, DEFAULT, sealed_token, name=DEFAULT)


def list_all(connection: Connection) -> list[ConnectionRow]:
    waiting = (
        select(func.count())
        .where(cancellations.c.connection_id == connections.c.id, cancellations.c.ended_at.is_(None))
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            connections.c.id,
            connections.c.name,
            connections.c.integration_name,
            connections.c.writes_per_second,
            connections.c.hold_reason,
            connections.c.held_at,
            connections.c.access_token.is_not(None).label("has_token"),
            waiting.label("waiting"),
        ).order_by(connections.c.id)
    )
    return [ConnectionRow(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's documented name


def sealed_tokens(connection: Connection) -> dict[str, str]:
    """Return the encrypted token of each connection that has one."""
    k = connections.c
    rows = connection.execute(select(k.id, k.access_token).where(k.access_token.is_not(None)))
    return {row.id: row.access_token for row in rows}


def remove(connection: Connection, connection_id: str) -> None:
    """Forget the token; the connection is held as unknown until somebody adds it again."""
    k = connections.c
    connection.execute(
        update(connections)
        .where(k.id == connection_id)
        .values(
            access_token=null(),
            hold_reason="unknown_connection",
            held_at=db_now(),
            probe_at=null(),
            updated_at=db_now(),
        )
    )
    announce(connection, [(None, "connection.removed", {"connection_id": connection_id})])


def rekey(connection: Connection, renew: Callable[[str], str]) -> int:
    """Encrypt every token anew; return how many there are. Raises CredentialsError where a key is missing."""
    k = connections.c
    rows = connection.execute(select(k.id, k.access_token).where(k.access_token.is_not(None)).with_for_update()).all()
    for row in rows:
        connection.execute(update(connections).where(k.id == row.id).values(access_token=renew(row.access_token)))
    return len(rows)


def _insert(connection: Connection) -> Insert:
    kind = sqlite.Insert if connection.dialect.name == "sqlite" else postgresql.Insert
    return kind(connections)
