"""Indexes of a large table, built by a migration while workers write to it.

Knows how each database builds one without stopping writers, and how a build that was interrupted goes on; which
indexes there are, revisions know.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from worker.ledger.dialects import is_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    Index = tuple[list[str | sa.TextClause], str | None]  # columns or expressions, condition

# Of whatever a migration does but builds. One that cannot get its lock of a table quickly gives up, rather than hold
# every worker behind it. More than PostgreSQL's `deadlock_timeout` of a second, when an automatic VACUUM gives way.
LIMITS = {"lock_timeout": "2s", "statement_timeout": "10min"}
# After so long it is the others' turn: on SQLite nobody else writes meanwhile.
TURN_SECONDS = 1.0

_FOUND = sa.text(
    "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)
_FOUND_ON_SQLITE = sa.text("SELECT name, 1 FROM sqlite_master WHERE type = 'index' AND tbl_name = :table")
_SCHEMA = sa.text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(:table)"
)
# A transaction keeps the snapshot of its last query until another statement comes: this one needs none.
_WITHOUT_SNAPSHOT = "SET LOCAL idle_in_transaction_session_timeout = 0"
# For who runs SQL that was written down, and cannot look first.
_DROP_HALF_BUILT = (
    "DO $$ BEGIN IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('{name}') AND NOT indisvalid)"
    " THEN DROP INDEX {name}; END IF; END $$"
)


class UnfinishedError(Exception):
    """The revision has done a part of its work, which is to be committed; the rest comes with the next try."""


def build_indexes(migration: Operations, table: str, indexes: Mapping[str, Index]) -> None:
    """Build those of a table's indexes that are missing. Raises UnfinishedError when some are left for the next turn.

    On PostgreSQL each is built in a session of its own, outside of any transaction, while rows are written. The
    caller's transaction keeps other migrations away meanwhile, and is idle.
    """
    if migration.get_context().as_sql:
        _write(migration, table, indexes)
        return
    db = migration.get_bind()
    sqlite = is_sqlite(db.dialect.name)
    found = db.execute(_FOUND_ON_SQLITE if sqlite else _FOUND, {"table": table})
    valid: dict[str, bool] = {name: bool(fit) for name, fit in found}
    missing = {name: index for name, index in indexes.items() if not valid.get(name)}
    if sqlite:
        _build(migration, table, missing)
    elif missing:
        # A session behind a pooler has no search_path outside of a transaction.
        schema = db.execute(_SCHEMA, {"table": table}).scalar_one()
        db.exec_driver_sql(_WITHOUT_SNAPSHOT)
        with _outside_transactions(db) as own:
            beside = Operations(MigrationContext.configure(own))
            for name in missing.keys() & valid.keys():  # half built
                beside.drop_index(name, table, schema=schema, if_exists=True, postgresql_concurrently=True)
            _build(beside, table, missing, schema)


def _write(migration: Operations, table: str, indexes: Mapping[str, Index]) -> None:
    """Write how PostgreSQL builds them outside of any transaction, also where a build was cut off before."""
    with migration.get_context().autocommit_block():
        for name in indexes:
            migration.execute(_DROP_HALF_BUILT.format(name=name))
        for limit in LIMITS:
            migration.execute(f"SET {limit} = 0")
        for name in indexes:
            _create(migration, name, table, indexes[name])
        for limit, value in LIMITS.items():
            migration.execute(f"SET {limit} = '{value}'")


def _build(migration: Operations, table: str, missing: Mapping[str, Index], schema: str | None = None) -> None:
    until = time.monotonic() + TURN_SECONDS
    for place, (name, index) in enumerate(missing.items()):
        if place and time.monotonic() > until:
            raise UnfinishedError(f"Indexes are built beside the work: {len(missing) - place} are left.")
        _create(migration, name, table, index, schema)


def _create(migration: Operations, name: str, table: str, index: Index, schema: str | None = None) -> None:
    columns, condition = index
    where = sa.text(condition) if condition else None
    migration.create_index(
        name,
        table,
        columns,
        schema=schema,
        if_not_exists=True,
        postgresql_concurrently=True,
        postgresql_where=where,
        sqlite_where=where,
    )


@contextmanager
def _outside_transactions(db: Connection) -> Iterator[Connection]:
    """Open another session, without limits of time: a build takes as long as the table, and older transactions, last.

    Nobody waits for it but other changes of the table and VACUUM.
    """
    with db.engine.connect() as own:
        own.execution_options(isolation_level="AUTOCOMMIT").detach()  # closed for good afterwards
        driver: Any = own.connection.dbapi_connection
        # A pooler has another number, and would leave what is set here to somebody else: its role's limits hold.
        if own.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() == driver.info.backend_pid:
            for limit in LIMITS:
                own.exec_driver_sql(f"SET {limit} = 0")
        yield own
