"""How Alembic reaches the ledger: the same engine as the worker, under time limits, one transaction per revision."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from worker.environment import from_environment
from worker.ledger import dialects
from worker.ledger.database import open_ledger
from worker.ledger.schema import metadata

# A migration that cannot get its lock quickly gives up, rather than hold every worker behind it.
LOCK_TIMEOUT = "5s"
STATEMENT_TIMEOUT = "10min"
# Indexes over an expression. SQLite's are not reflected either: who copies their table (a batch) makes them anew.
EXPRESSION_INDEXES = {"ix_cancellations_turn"}
MIGRATION_LOCK = 7_263_915_402  # any number that nobody else uses: one migration at a time


def render_item(_kind: str, item: Any, autogen: Any) -> str | Literal[False]:
    """Write our own column types into revisions by their names."""
    if isinstance(item, dialects.UtcTimestamp):
        autogen.imports.add("from worker.ledger.dialects import UtcTimestamp")
        return "UtcTimestamp()"
    return False


def include_object(_item: Any, name: str | None, kind: str, *_: Any) -> bool:
    """Leave out of comparisons what Alembic cannot compare; a test compares all indexes to the word."""
    return not (kind == "index" and name in EXPRESSION_INDEXES)


def run(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
        connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
        connection.commit()
    else:
        # SQLite changes a table by copying it, and would delete the rows that refer to the one it drops.
        connection.connection.dbapi_connection.execute("PRAGMA foreign_keys = OFF")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        render_item=render_item,
        include_object=include_object,
        transaction_per_migration=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction(), warnings.catch_warnings():
        for said in ("Skipped unsupported reflection of expression", "autogenerate skipping .* expression-based"):
            warnings.filterwarnings("ignore", message=said)
        context.run_migrations()
    if connection.dialect.name == "sqlite" and (
        orphans := connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    ):
        raise RuntimeError(f"The migration left {len(orphans)} rows that refer to nothing: restore the backup.")


shared = context.config.attributes.get("connection")
if shared is not None:
    run(shared)
else:
    engine = open_ledger(from_environment("DATABASE_URL") or "sqlite:///cancellations.sqlite3")
    with engine.connect() as connection:
        run(connection)
    engine.dispose()
