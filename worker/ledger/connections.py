"""Connections: one customer's warehouse, one access token each. Knows rows; tokens come and go encrypted."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.ledger.dialects import db_now, insert
from worker.ledger.outbox import add_events
from worker.ledger.schema import cancellations, connections
from worker.ledger.vault import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable

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
    db: sa.Connection,
    connection_id: str,
    encrypted_token: str,
    *,
    name: str | None = None,
    integration_name: str | None = None,
    writes_per_second: float | None = None,
) -> None:
    """Add a connection, or give a known one a new token. Jobs that waited for it go on."""
    known = {"name": name, "integration_name": integration_name, "writes_per_second": writes_per_second}
    stated = {key: value for key, value in known.items() if value is not None}
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


def ensure_default(db: sa.Connection, encrypted_token: str, decrypt: Callable[[str], str], token: str) -> None:
    """Keep the connection `default` at the token of the settings; an unchanged one is not touched.

    One that no key reads any more is encrypted anew: the settings say what it is.
    """
    kept = db.execute(sa.select(connections.c.access_token).where(connections.c.id == DEFAULT)).scalar_one_or_none()
    known = None
    if kept is not None:
        with suppress(CredentialsError):
            known = decrypt(kept)
    if known != token:
        add(db, DEFAULT, encrypted_token, name=DEFAULT)


_waiting = (
    sa.select(sa.func.count())
    .where(cancellations.c.connection_id == connections.c.id, cancellations.c.ended_at.is_(None))
    .scalar_subquery()
)
_ROW = sa.select(
    connections.c.id,
    connections.c.name,
    connections.c.integration_name,
    connections.c.writes_per_second,
    connections.c.hold_reason,
    connections.c.held_at,
    connections.c.access_token.is_not(None).label("has_token"),
    _waiting.label("waiting"),
)


def list_all(db: sa.Connection) -> list[ConnectionRow]:
    """Return every connection, by id."""
    rows = db.execute(_ROW.order_by(connections.c.id))
    return [ConnectionRow(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's documented name


def find(db: sa.Connection, connection_id: str) -> ConnectionRow | None:
    """Return one connection, or None where nobody has added it."""
    row = db.execute(_ROW.where(connections.c.id == connection_id)).one_or_none()
    return ConnectionRow(**row._mapping) if row else None  # noqa: SLF001


def encrypted_tokens(db: sa.Connection) -> dict[str, str]:
    """Return the encrypted token of each connection that has one."""
    k = connections.c
    rows = db.execute(sa.select(k.id, k.access_token).where(k.access_token.is_not(None)))
    return {row.id: row.access_token for row in rows}


def remove(db: sa.Connection, connection_id: str) -> None:
    """Forget the token; the connection is held as unknown until somebody adds it again."""
    k = connections.c
    db.execute(
        sa.update(connections)
        .where(k.id == connection_id)
        .values(
            access_token=sa.null(),
            hold_reason="unknown_connection",
            held_at=db_now(),
            probe_at=sa.null(),
            updated_at=db_now(),
        )
    )
    add_events(db, [(None, "connection.removed", {"connection_id": connection_id})])


def rekey(db: sa.Connection, reencrypt: Callable[[str], str]) -> int:
    """Encrypt every token anew; return how many there are. Raises CredentialsError where a key is missing."""
    k = connections.c
    rows = db.execute(sa.select(k.id, k.access_token).where(k.access_token.is_not(None)).with_for_update()).all()
    for row in rows:
        db.execute(sa.update(connections).where(k.id == row.id).values(access_token=reencrypt(row.access_token)))
    return len(rows)
