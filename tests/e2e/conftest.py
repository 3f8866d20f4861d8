"""A whole deployment with real processes: Redis, a ledger, a local Trackstar, and `celery -A worker worker`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from worker.client import CancelClient
from worker.embedded import EmbeddedRedis, embedded_redis
from worker.ledger import connections, reading
from worker.ledger.engine import open_ledger
from worker.trackstar.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from worker.ledger.credentials import TokenVault
    from worker.ledger.reading import Cancellation, Timeline

API_KEY = "api-key-0815-very-secret"
START_SECONDS = 30.0
STOP_SECONDS = 30.0


class Worker:
    """One worker process and all that it says."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._log = folder / "worker.log"
        celery = Path(sys.executable).with_name("celery")
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [celery, "-A", "worker", "worker"], env=env, cwd=folder, stdout=output, stderr=output
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while "worker.started" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def stop(self) -> int:
        """Ask it to end as an orchestrator does; return its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Deployment:
    """Everything but the workers; `start_worker` adds those."""

    def __init__(self, redis: EmbeddedRedis, sandbox: Sandbox, database_url: str, folder: Path, key: str) -> None:
        self.redis_url = redis.url
        self.redis = Redis.from_url(redis.url, socket_timeout=60)  # above the longest wait for an event
        self.database_url = database_url
        self.trackstar = sandbox.world
        self.api_key = API_KEY
        self.credential_key = key
        self.ledger: Engine = open_ledger(database_url)
        self.client = CancelClient(redis.url, database_url)
        self._folder = folder
        self._workers: list[Worker] = []
        self.env = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": redis.url,
            "DATABASE_URL": database_url,
            "TRACKSTAR_API_KEY": API_KEY,
            "TRACKSTAR_BASE_URL": sandbox.url,
            "CREDENTIAL_KEYS": key,
            "RETRY_BASE_SECONDS": "0.2",
        }

    def start_worker(self, **settings: str) -> Worker:
        folder = self._folder / f"worker-{len(self._workers)}"
        folder.mkdir()
        worker = Worker(self.env | settings, folder)
        self._workers.append(worker)
        return worker

    def add_connection(self, vault: TokenVault, name: str, token: str) -> None:
        """Let the ledger know a connection and its token."""
        with self.ledger.begin() as connection:
            connections.add(connection, name, vault.seal(token))

    def hold_of(self, name: str) -> str | None:
        with self.ledger.connect() as connection:
            return next(row.hold_reason for row in connections.list_all(connection) if row.id == name)

    def all(self) -> list[Cancellation]:
        with self.ledger.connect() as connection:
            return reading.find(connection, limit=1000)

    def timeline(self, record_id: str) -> Timeline:
        with self.ledger.connect() as connection:
            found = reading.timeline(connection, record_id)
        assert found is not None
        return found

    def wait_until(self, fact: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
        """Look at the ledger or at Redis until it is as it should be; neither tells a test by itself."""
        deadline = time.monotonic() + timeout
        while not fact():
            alive = [worker.process.poll() is None for worker in self._workers]
            assert time.monotonic() < deadline, f"Waited {timeout:g} s for {what}, in vain; workers alive: {alive}"
            time.sleep(0.05)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.client.close()
        self.ledger.dispose()
        self.redis.close()


@pytest.fixture(scope="session")
def make_deployment(
    make_database: Callable[[str], str], credential_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Make a deployment with a ledger of a kind, for as long as the `with` block lasts."""

    @contextmanager
    def make(kind: str, **options: Any) -> Iterator[Deployment]:
        with ExitStack() as stack:
            # Its own Redis: another test of this process would empty a shared one.
            redis = stack.enter_context(embedded_redis())
            sandbox = stack.enter_context(Sandbox(API_KEY, **options))
            folder = tmp_path_factory.mktemp("deployment")
            deployment = Deployment(redis, sandbox, make_database(kind), folder, credential_key)
            stack.callback(deployment.close)
            yield deployment

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request: pytest.FixtureRequest, make_deployment: Any) -> Iterator[Deployment]:
    """A deployment of both kinds, without a worker so far."""
    with make_deployment(request.param) as made:
        yield made
