"""What the database says of itself: version, encoding, size, and when `cancellations` was vacuumed last.

Knows what PostgreSQL and SQLite call these; does not know what is good or bad.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from worker.ledger.dialects import is_sqlite
from worker.ledger.schema import cancellations


class Vacuum(msgspec.Struct, frozen=True):
    """How PostgreSQL cleans the table of cancellations."""

    live_rows: int
    dead_rows: int
    age_seconds: float | None  # since the last one; None: there was none since the statistics were reset
    transaction_age: int  # transactions since the oldest one of the database that is not frozen


class Checkup(msgspec.Struct, frozen=True):
    """A database, in its own words."""

    kind: str
    version: str
    encoding: str
    size: int  # bytes
    vacuum: Vacuum | None = None  # SQLite has none that runs by itself


_SERVER = sa.text("""
    SELECT current_setting('server_version'), pg_encoding_to_char(encoding), pg_database_size(oid), age(datfrozenxid)
    FROM pg_database WHERE datname = current_database()
""")
_TABLE = sa.text("""
    SELECT n_live_tup, n_dead_tup, extract(epoch FROM now() - greatest(last_vacuum, last_autovacuum))::float8
    FROM pg_stat_user_tables WHERE relid = to_regclass(:name)
""")


def checkup(db: sa.Connection) -> Checkup:
    """Ask the database what it is; three short statements at most."""
    if is_sqlite(db.dialect.name):
        encoding, pages, page = (
            db.execute(sa.text(f"PRAGMA {what}")).scalar_one() for what in ("encoding", "page_count", "page_size")
        )
        version = db.execute(sa.text("SELECT sqlite_version()")).scalar_one()
        return Checkup("SQLite", version, encoding, pages * page)
    version, encoding, size, age = db.execute(_SERVER).one()
    row = db.execute(_TABLE, {"name": cancellations.name}).one_or_none()
    vacuum = Vacuum(row[0], row[1], row[2], age) if row else None
    return Checkup("PostgreSQL", version, encoding, size, vacuum)
