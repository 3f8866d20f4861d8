"""What a worker and an operator may do on PostgreSQL, table by table, and what the role of a session lacks of it.

`ops/postgres/roles.sql` grants these, by columns where it can; a test compares the two. SQLite knows no roles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.ledger.dialects import is_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WHERE_ROLES_ARE = (
    "ops/postgres/roles.sql, run as a superuser or as the owner of the tables, grants what each role needs"
)
_SEQUENCE = "USAGE"  # of the numbers of its rows
WORKER = {
    "alembic_version": "SELECT",
    "connections": "SELECT INSERT UPDATE",
    "cancellations": "SELECT INSERT UPDATE DELETE",
    "documents": "SELECT INSERT UPDATE DELETE",
    "attempts": "SELECT INSERT UPDATE DELETE",
    "events": "SELECT INSERT UPDATE DELETE USAGE",
    "refunds": "SELECT INSERT UPDATE DELETE",
    "cursors": "SELECT INSERT UPDATE",
    "endpoints": "SELECT UPDATE DELETE",
    "deliveries": "SELECT INSERT UPDATE DELETE",
    "delivery_tries": "SELECT INSERT DELETE USAGE",
    "dead_letters": "SELECT INSERT UPDATE DELETE USAGE",
    "freshness": "SELECT INSERT UPDATE",
    "producers": "SELECT",
    "audit": "INSERT USAGE",
}
OPERATOR = {
    "alembic_version": "SELECT",
    "connections": "SELECT INSERT UPDATE",
    "cancellations": "SELECT UPDATE DELETE",
    "documents": "SELECT UPDATE DELETE",
    "attempts": "SELECT UPDATE DELETE",
    "events": "SELECT INSERT UPDATE DELETE USAGE",
    "refunds": "SELECT INSERT UPDATE DELETE",
    "cursors": "SELECT INSERT UPDATE",
    "endpoints": "SELECT INSERT UPDATE DELETE",
    "deliveries": "SELECT INSERT UPDATE DELETE",
    "delivery_tries": "SELECT DELETE",
    "dead_letters": "SELECT UPDATE DELETE",
    "freshness": "SELECT INSERT UPDATE",
    "producers": "SELECT INSERT UPDATE DELETE",
    "audit": "SELECT INSERT UPDATE USAGE",
}


class Role(msgspec.Struct, frozen=True):
    """The role of a session: its name, what it lacks, and whether no right binds it."""

    name: str
    superuser: bool
    lacks: tuple[str, ...]  # as 'INSERT on audit'; of the work, a worker's or an operator's, that it lacks least of


_ROLE = sa.text("SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user")
# A right on some columns counts; DELETE is of a whole table. A table that is not there is nobody's fault here.
_LACKS = sa.text("""
    SELECT asked.table_name, asked.verb
    FROM unnest(CAST(:tables AS text[]), CAST(:verbs AS text[])) WITH ORDINALITY AS asked (table_name, verb, number),
        to_regclass(asked.table_name) AS found
    WHERE found IS NOT NULL AND NOT CASE asked.verb
        WHEN 'USAGE' THEN has_sequence_privilege(pg_get_serial_sequence(asked.table_name, 'id'), 'USAGE')
        WHEN 'DELETE' THEN has_table_privilege(found, 'DELETE')
        ELSE has_any_column_privilege(found, asked.verb) END
    ORDER BY asked.number
""")


def role_of(db: sa.Connection) -> Role | None:
    """Return the role of this session, with what it lacks; None on SQLite. Two or three short statements."""
    if is_sqlite(db.dialect.name):
        return None
    name, superuser = tuple(db.execute(_ROLE).one())
    return Role(name, superuser, min((_lacks(db, each) for each in (WORKER, OPERATOR)), key=len))


def _lacks(db: sa.Connection, needs: Mapping[str, str]) -> tuple[str, ...]:
    pairs = [(table, verb) for table, verbs in needs.items() for verb in verbs.split()]
    rows = db.execute(_LACKS, {"tables": [table for table, _ in pairs], "verbs": [verb for _, verb in pairs]})
    return tuple(_told(map(tuple, rows)))


def _told(rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    for table, verb in rows:
        yield f"USAGE on {table}_id_seq" if verb == _SEQUENCE else f"{verb} on {table}"
