"""A ledger of SQLite in which time is moved by hand. The tables and the statements are those of production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from worker.ledger import migrations
from worker.ledger.database import open_ledger
from worker.ledger.dialects import keep_time

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Engine

BUSY_MS = 2_000  # who waits for a transaction that the test itself holds waits in vain


def make_ledger(path: Path) -> Path:
    """Make a file with the tables and no row."""
    engine = open_ledger(f"sqlite:///{path}")
    migrations.migrate(engine)
    engine.dispose()
    return path


def open_at(url: str, now: Callable[[], datetime]) -> Engine:
    """Open a ledger whose clock is `now`."""
    engine = open_ledger(url)

    @event.listens_for(engine, "connect")
    def _prepare(db: Any, _record: Any) -> None:
        keep_time(db, now)
        db.execute("PRAGMA synchronous = OFF")  # nobody pulls the plug on a test
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    return engine
