"""The databases that contenders record in: how a fresh one is made, and what it says when all is done.

Ours is the worker's own ledger; the peers share a smaller one, whose rows are there before the clock starts.
"""

from __future__ import annotations

import shutil
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.fernet import Fernet
from sqlalchemy import NullPool, create_engine, func, insert, make_url, select

from bench.peers import tables as theirs
from worker.ledger import connections, migrations
from worker.ledger import schema as ours
from worker.ledger.database import open_ledger
from worker.ledger.vault import TokenVault

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from bench.parts import Postgres

KEY = Fernet.generate_key().decode()
CONNECTIONS = 4  # customers of the bench; the peers do not tell them apart
Job = dict[str, str]


def make_jobs(count: int) -> list[Job]:
    """Return jobs for orders that nobody has asked for before."""
    lot = uuid.uuid4().hex[:12]
    return [
        {"id": str(uuid.uuid4()), "connection_id": f"shop-{n % CONNECTIONS}", "order_id": f"{lot}-{n}"}
        for n in range(count)
    ]


class Progress(msgspec.Struct, frozen=True):
    """What one lot of jobs has come to."""

    ended: int
    last_ended_at: datetime | None


class Ledger:
    """One database of one contender."""

    def __init__(self, url: str, *, is_ours: bool) -> None:
        self.url = url
        self._is_ours = is_ours
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.engine: Engine = create_engine(parsed, poolclass=NullPool)
        tables: Any = ours if is_ours else theirs
        self._cancellations, self._attempts = tables.cancellations, tables.attempts

    def expect(self, jobs: Sequence[Job]) -> None:
        """Give a peer its rows; this worker takes its own in."""
        if self._is_ours or not jobs:
            return
        with self.engine.begin() as connection:
            connection.execute(insert(self._cancellations), [{**job, "status": "pending"} for job in jobs])

    def progress(self, since: datetime) -> Progress:
        """How many jobs have ended among those that came (ours) or were begun (theirs) since an instant."""
        c = self._cancellations.c
        came_at = c.received_at if self._is_ours else c.claimed_at
        with self.engine.connect() as connection:
            ended, last = connection.execute(
                select(func.count(), func.max(c.ended_at)).where(came_at >= since, c.ended_at.is_not(None))
            ).one()
        # SQLite keeps the peers' instants without a zone: they are UTC.
        return Progress(ended, last if last is None or last.tzinfo else last.replace(tzinfo=UTC))

    def attempts(self, since: datetime) -> int:
        """How many requests were written down since an instant."""
        with self.engine.connect() as connection:
            return connection.execute(
                select(func.count()).select_from(self._attempts).where(self._attempts.c.started_at >= since)
            ).scalar_one()


class Ledgers:
    """Makes fresh databases of both kinds, as copies of a template."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        self._templates: dict[tuple[str, bool], str] = {}

    def fresh(self, *, is_ours: bool) -> Ledger:
        """Make an empty ledger on PostgreSQL."""
        template = self._template("postgresql", is_ours=is_ours)
        return Ledger(self._postgres.create(make_url(template).database or ""), is_ours=is_ours)

    def fresh_sqlite(self, *, is_ours: bool) -> Ledger:
        template = make_url(self._template("sqlite", is_ours=is_ours)).database or ""
        path = self._folder / f"{uuid.uuid4().hex}.sqlite3"
        shutil.copy(template, path)
        return Ledger(f"sqlite:///{path}", is_ours=is_ours)

    def drop(self, ledger: Ledger) -> None:
        ledger.engine.dispose()
        if make_url(ledger.url).get_backend_name() == "postgresql":
            self._postgres.drop(ledger.url)

    def _template(self, kind: str, *, is_ours: bool) -> str:
        if (kind, is_ours) not in self._templates:
            sqlite = f"sqlite:///{self._folder}/template-{is_ours}.sqlite3"
            url = self._postgres.create() if kind == "postgresql" else sqlite
            (_lay_out_ours if is_ours else _lay_out_theirs)(url)
            self._templates[kind, is_ours] = url
        return self._templates[kind, is_ours]


def _lay_out_ours(url: str) -> None:
    engine = open_ledger(url)
    migrations.migrate(engine)
    encrypted = TokenVault([KEY]).encrypt("token-of-the-bench")
    with engine.begin() as connection:
        for number in range(CONNECTIONS):
            connections.add(connection, f"shop-{number}", encrypted, writes_per_second=1e6)
    engine.dispose()


def _lay_out_theirs(url: str) -> None:
    ledger = Ledger(url, is_ours=False)
    theirs.metadata.create_all(ledger.engine)
    ledger.engine.dispose()
