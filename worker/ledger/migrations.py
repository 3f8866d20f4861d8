"""The schema's history, applied. Knows where the revisions are; does not know what is in them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine


def _config(db: Connection | None = None) -> Config:
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
        # Closed for good afterwards: from the pool it would go on holding the migration's lock and time limits.
        db.detach()
        yield db


def head() -> str | None:
    """Return the newest revision this code knows."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def current(db: Connection) -> str | None:
    """Return the revision of this database; None for an empty one."""
    return MigrationContext.configure(db).get_current_revision()


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to a revision, forwards."""
    with _own_connection(engine) as db:
        command.upgrade(_config(db), revision)
        db.commit()


def roll_back(engine: Engine, revision: str = "base") -> None:
    """Bring the schema back to a revision. What later revisions held is gone."""
    with _own_connection(engine) as db:
        command.downgrade(_config(db), revision)
        db.commit()


def check(engine: Engine) -> None:
    """Raise where the tables of the code and the newest revision differ."""
    with _own_connection(engine) as db:
        command.check(_config(db))


def write_revision(engine: Engine, sentence: str) -> None:
    """Write a new revision file from the difference between the code's tables and this database."""
    with _own_connection(engine) as db:
        command.revision(_config(db), sentence, autogenerate=True)
