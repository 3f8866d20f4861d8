"""How Alembic reaches the ledger: on the connection, and in the transaction, that `worker.ledger.migrations` opens.

Or not at all: then it writes what it would do, as SQL (`worker.ledger.migration_scripts`).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

from alembic import context

from worker.ledger import dialects
from worker.ledger.schema import metadata

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Indexes over an expression. SQLite's are not reflected either: who copies their table (a batch) makes them anew.
EXPRESSION_INDEXES = {"ix_cancellations_turn", "ix_cancellations_reference", "ix_cancellations_number"}


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
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        render_item=render_item,
        include_object=include_object,
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


def write(dialect: str) -> None:
    context.configure(
        dialect_name=dialect,
        target_metadata=metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},  # no % is doubled
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    write(context.config.attributes["dialect"])
else:
    run(context.config.attributes["connection"])
