"""A migration as SQL, for whoever may not let a program change the tables: `psql` or `sqlite3` runs it.

Knows how either stops at an error, and what keeps a script from a schema that it does not fit; what is done to the
tables, revisions know.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from alembic import command
from sqlalchemy import event

from worker.ledger.database import open_ledger
from worker.ledger.dialects import is_sqlite
from worker.ledger.index_builds import LIMITS
from worker.ledger.migrations import MIGRATION_LOCK, SchemaError, alembic_config, history, migrate

if TYPE_CHECKING:
    from sqlalchemy import Engine

BASE = "base"  # the name of a ledger without tables
_VERSIONS = "CREATE TABLE alembic_version", "CREATE TABLE IF NOT EXISTS alembic_version"
_ANEW = "After an error, have it written anew: what is done is left out."

_POSTGRESQL = f"""\
-- The ledger's schema from {{since}} to {{upto}}, for PostgreSQL. Run it as the owner of the tables, not in one
-- transaction: psql --file=THIS DATABASE_URL. Where a table is in use for {LIMITS["lock_timeout"]}, that is an error.
-- {_ANEW}
\\set ON_ERROR_STOP on
{"".join(f"SET {name} = '{value}';{chr(10)}" for name, value in LIMITS.items())}
DO $$ BEGIN
    -- Held until this session ends. Whoever waited for it would keep indexes from being built.
    IF NOT pg_try_advisory_lock({MIGRATION_LOCK}) THEN
        RAISE EXCEPTION 'Another migration is running: wait until it has ended.';
    END IF;
    {{guard}}
END $$;

"""
_FITS = """IF NOT EXISTS (SELECT FROM alembic_version WHERE version_num = '{since}') THEN
        RAISE EXCEPTION 'The schema is not {since}, from which this was written.';
    END IF;"""
_SQLITE = f"""\
-- The ledger's schema from {{since}} to {{upto}}, for SQLite: sqlite3 FILE < THIS
-- {_ANEW}
.bail on
.timeout 15000
PRAGMA foreign_keys = OFF;
{{guard}}
"""
_FITS_ON_SQLITE = """CREATE TEMP TABLE written_from (revision CHECK (revision = '{since}'));
INSERT INTO written_from SELECT version_num FROM alembic_version;
DROP TABLE written_from;"""
_NO_ORPHANS = "-- Rows that refer to nothing: none are shown where all is well.\nPRAGMA foreign_key_check;\n"


def script(dialect: str, since: str | None, upto: str = "head") -> str:
    """Return the SQL from one revision, or from nothing, to another; a comment where there is nothing to do.

    Raises SchemaError where this code does not know the revision.
    """
    known = history(upto)
    since = None if since == BASE else since
    if since is not None and since not in known:
        raise SchemaError(f"This cancel-worker knows no revision {since}: name one of {', '.join(known)}, or {BASE}.")
    if since == known[-1]:
        return f"-- The ledger's schema is at {since}: nothing to do.\n"
    write = _write_for_sqlite if is_sqlite(dialect) else _write_for_postgresql
    # A ledger that was brought back to nothing has this table still.
    return write(since, known[-1]).replace(*_VERSIONS)


def _write_for_postgresql(since: str | None, upto: str) -> str:
    config = alembic_config()
    config.output_buffer = written = StringIO()
    config.attributes["dialect"] = "postgresql"
    command.upgrade(config, f"{since or BASE}:{upto}", sql=True)
    guard = _FITS.format(since=since) if since else ""
    return _POSTGRESQL.format(since=since or "nothing", upto=upto, guard=guard) + written.getvalue()


def _write_for_sqlite(since: str | None, upto: str) -> str:
    """Write down what is done to an empty ledger: SQLite's tables are read before they are copied."""
    with TemporaryDirectory() as folder:
        ledger = open_ledger(f"sqlite:///{Path(folder) / 'ledger.sqlite3'}")
        if since:
            migrate(ledger, since)
        written = _listen(ledger)
        migrate(ledger, upto)
        ledger.dispose()
    guard = _FITS_ON_SQLITE.format(since=since) if since else ""
    statements = "".join(f"{each.strip()};\n" for each in written)
    return _SQLITE.format(since=since or "nothing", upto=upto, guard=guard) + statements + _NO_ORPHANS


def _listen(ledger: Engine) -> list[str]:
    """Return a list to which is added whatever changes this ledger from now on, transactions in full or not at all."""
    written: list[str] = []

    @event.listens_for(ledger, "before_cursor_execute")
    def _hear(_db: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().startswith(("SELECT", "PRAGMA")):
            written.append(statement)

    @event.listens_for(ledger, "commit")
    def _end(_db: Any) -> None:
        if written[-1:] == ["BEGIN IMMEDIATE"]:
            written.pop()
        else:
            written.append("COMMIT")

    return written
