"""The schema's history, applied, by one process at a time. Knows where the revisions are; not what is in them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from worker.ledger.database import read_only
from worker.ledger.dialects import is_sqlite
from worker.ledger.index_builds import LIMITS, UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

LOCK_TRIES = 30  # to get its lock of a table
LOCK_PAUSE_SECONDS = 1.0  # in which those who waited behind it have their turn
LOCK_TAKEN = {"55P03", "40P01"}  # not in time, or it and a worker waited for each other
MIGRATION_LOCK = 7_263_915_402  # any number that nobody else uses: one migration at a time
# How often is looked whether another migration has ended. Short waits: a signal is heard between them.
LOOK_SECONDS = 0.2
SQLITE_BUSY_MS = 500

# An index is built beside this transaction, and waits for each that keeps its snapshot.
_COMMITTED = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
# Held until the transaction ends: a session's own lock would stay behind in a pooler's session.
_LOCK = text(
    "SELECT set_config('lock_timeout', :for_a_lock, true), set_config('statement_timeout', :for_a_statement, true),"
    " pg_try_advisory_xact_lock(:number)"
).bindparams(for_a_lock=LIMITS["lock_timeout"], for_a_statement=LIMITS["statement_timeout"], number=MIGRATION_LOCK)


class SchemaError(SQLAlchemyError):
    """The tables are not those of this code; the text says what to do."""


class Fit(StrEnum):
    """How a schema stands to this code."""

    FITS = "fits"
    DUE = "due"  # it is older: a migration is due
    NEWER = "newer"
    MISSING = "missing"  # there is none yet


def alembic_config(db: Connection | None = None) -> Config:
    """Return where the revisions are, and on which connection they are applied, if on any."""
    here = Path(__file__).resolve().parents[1]
    # Beside the package in a checkout, inside it in a wheel.
    packaged = here / "_migrations"
    config = Config()
    config.set_main_option("script_location", str(packaged if packaged.is_dir() else here.parent / "migrations"))
    config.set_main_option(
        "file_template", "%%(year)d%%(month).2d%%(day).2d_%%(hour).2d%%(minute).2d_%%(rev)s_%%(slug)s"
    )
    if db is not None:
        config.attributes["connection"] = db
    return config


@contextmanager
def _own_connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as db:
        # Closed for good afterwards: what is set here is for nobody else.
        db.detach()
        if is_sqlite(engine.dialect.name):
            # SQLite changes a table by copying it, and would delete the rows that refer to the one it drops.
            for pragma in ("foreign_keys = OFF", f"busy_timeout = {SQLITE_BUSY_MS}"):
                db.connection.cursor().execute(f"PRAGMA {pragma}")
        yield db


@contextmanager
def _alone(db: Connection, waiting: Callable[[str], object]) -> Iterator[None]:
    """Open a transaction in which nobody else migrates; while another does, wait, and say so once."""
    begin = _begin_on_sqlite if is_sqlite(db.dialect.name) else _begin_on_postgresql
    told = False
    while sentence := begin(db):
        if not told:
            waiting(sentence)
        told = True
        time.sleep(LOOK_SECONDS)
    try:
        yield
        db.commit()
    except UnfinishedError:
        db.commit()
        raise
    finally:
        db.rollback()


def _begin_on_postgresql(db: Connection) -> str | None:
    db.begin()
    db.exec_driver_sql(_COMMITTED)
    if db.execute(_LOCK).one()[-1]:
        return None
    db.rollback()
    return "Another migration is running: waiting until it has ended."


def _begin_on_sqlite(db: Connection) -> str | None:
    try:
        db.begin()
    except OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        return "Another process, perhaps a migration, writes to the database: waiting until it has ended."
    return None


def history(upto: str = "head") -> list[str]:
    """Return the revisions that this code knows, up to one, oldest first."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return [each.revision for each in scripts.iterate_revisions(upto, "base")][::-1]


def head() -> str | None:
    """Return the newest revision this code knows."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def current_of(engine: Engine) -> str | None:
    """Return the revision of this ledger; None for an empty one, or a file that is not there, which none is made for.

    Changes nothing, and needs no more than SELECT on `alembic_version`.
    """
    file = engine.url.database
    if is_sqlite(engine.dialect.name) and file and file != ":memory:" and not Path(file).exists():
        return None
    with read_only(engine) as db:
        return current(db)


def current(db: Connection) -> str | None:
    """Return the revision of this database; None for an empty one."""
    return MigrationContext.configure(db).get_current_revision()


def compare(found: str | None) -> Fit:
    """Return how a schema of this revision stands to this code."""
    if found is None:
        return Fit.MISSING
    known = history()
    return Fit.FITS if found == known[-1] else Fit.DUE if found in known else Fit.NEWER


def refuse_unfit(db: Connection) -> None:
    """Raise SchemaError where the tables are older than this code, or missing.

    A worker meets newer ones while a release rolls out, and on the way back. They fit: a migration only adds.
    """
    if compare(found := current(db)) in {Fit.MISSING, Fit.DUE}:
        raise SchemaError(
            f"The ledger's schema is {found or 'empty'}, this worker needs {head()}: run `cancel-worker migrate`."
        )


def refuse_newer(found: str | None) -> None:
    """Raise SchemaError where a schema of this revision is newer than this code."""
    if compare(found) is Fit.NEWER:
        raise SchemaError(f"The ledger's schema is {found}, which a newer cancel-worker has made: migrate with that.")


def migrate(engine: Engine, revision: str = "head", waiting: Callable[[str], object] = lambda _: None) -> None:
    """Bring the schema to a revision, forwards, each step in a transaction of its own.

    A second migration waits as long as the first works, and either for who holds a table; `waiting` is told why, in a
    sentence. Raises SchemaError where the schema is newer than this code, OperationalError where a table stays taken.
    """
    with _own_connection(engine) as db:
        tries, more = 0, True
        while more:
            try:
                with _alone(db, waiting):
                    more = _upgrade_one(db, history(revision))
                tries = 0
            except UnfinishedError as part:
                waiting(str(part))
                time.sleep(LOOK_SECONDS)
            except OperationalError as error:
                tries += 1
                if getattr(error.orig, "sqlstate", None) not in LOCK_TAKEN or tries == LOCK_TRIES:
                    raise
                if tries == 1:
                    waiting("A long transaction keeps a table from being changed: trying again.")
                time.sleep(LOCK_PAUSE_SECONDS)


def _upgrade_one(db: Connection, wanted: list[str]) -> bool:
    """Apply the next of the wanted revisions; return whether there was one."""
    found = current(db)
    refuse_newer(found)
    missing = wanted[wanted.index(found) + 1 :] if found in wanted else wanted if found is None else []
    if missing:
        command.upgrade(alembic_config(db), missing[0])
    return bool(missing)


def roll_back(engine: Engine, revision: str = "base") -> None:
    """Bring the schema back to a revision. What later revisions held is gone."""
    with _own_connection(engine) as db, _alone(db, lambda _: None):
        command.downgrade(alembic_config(db), revision)


def check(engine: Engine) -> None:
    """Raise where the tables of the code and the newest revision differ."""
    with _own_connection(engine) as db:
        command.check(alembic_config(db))


def write_revision(engine: Engine, sentence: str) -> None:
    """Write a new revision file from the difference between the code's tables and this database."""
    with _own_connection(engine) as db:
        command.revision(alembic_config(db), sentence, autogenerate=True)
