"""A whole deployment with real processes: Redis, a ledger, a local Trackstar, and `celery -A worker worker`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
from redis import Redis

from worker.client import CancelClient
from worker.ledger import connections, filters, queries
from worker.ledger.database import open_ledger
from worker.streams import connect_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Unpack

    from sqlalchemy import Engine

    from worker.dev.embedded import EmbeddedRedis
    from worker.dev.sandbox import World
    from worker.dev.sandbox.options import WorldOptions
    from worker.ledger.queries import Timeline
    from worker.ledger.record import Cancellation
    from worker.ledger.vault import TokenVault

API_KEY = "api-key-0815-very-secret"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
LAST_SECONDS = 5.0
# Of the environment of the tests; the last is how coverage reaches into processes.
PASSED_ON = ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_CONFIG")

CELERY = (str(Path(sys.executable).with_name("celery")), "-A", "worker", "worker")


def through(program: str, *words: str) -> tuple[str, ...]:
    """Return the command that starts a worker by a program of this folder, which changes one thing in it."""
    return (sys.executable, str(Path(__file__).with_name(program)), *words, "celery", *CELERY[1:])


def token_of(connection_id: str) -> str:
    return f"token-of-{connection_id}"


class Worker:
    """One worker process and all that it says."""

    def __init__(self, command: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self.log = folder / "worker.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, env=env, cwd=folder, stdout=output, stderr=output)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last_words(self) -> str:
        """Say whether it runs, and the end of what it said: for the text of a test that fails."""
        state = "runs" if self.alive else f"has ended with {self.process.returncode}"
        return f"Worker {self.process.pid} {state}:\n{self.output[-2000:]}"

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def wait_for_line(self, words: str, timeout: float = START_SECONDS) -> None:
        """Wait until these words are in its output; fail if it ends before."""
        deadline = time.monotonic() + timeout
        while words not in self.output:
            assert self.alive, self.output
            assert time.monotonic() < deadline, f"Waited {timeout:g} s for {words!r}, in vain:\n{self.output}"
            time.sleep(0.02)

    def told(self, event: str) -> dict[str, Any]:
        """Return the fields of the first log line of this event."""
        lines = (json.loads(line) for line in self.output.splitlines() if line.startswith("{"))
        return next(line for line in lines if line["event"] == event)

    def wait_until_ready(self) -> None:
        self.wait_for_line("worker.started")

    def wait_until_consuming(self) -> None:
        """Wait until Celery takes messages, a second after the worker has started."""
        self.wait_for_line(" ready.")

    def wait_until_dead(self, timeout: float = STOP_SECONDS) -> int:
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Ask it to end as an orchestrator does; return its exit status."""
        self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if not self.alive:
            return
        self.send(signal.SIGCONT)  # a stopped process does not end
        self.send(signal.SIGQUIT)  # ends it at once, with what coverage has counted
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LAST_SECONDS)
        self.kill()


class Deployment:
    """Everything but the workers; `start_worker` adds those."""

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        trackstar: World,
        trackstar_url: str,
        folder: Path,
        key: str,
        settings: Mapping[str, str] = {},
    ) -> None:
        self.redis_url = redis_url
        self.redis: Any = _client(redis_url)
        self.database_url = database_url
        self.trackstar = trackstar
        self.api_key = API_KEY
        self.credential_key = key
        self.ledger: Engine = open_ledger(database_url)
        self.client = CancelClient(redis_url, database_url)
        self.redis_server: EmbeddedRedis  # set where the Redis belongs to this deployment alone
        self.workers: list[Worker] = []
        self._folder = folder
        self.env = {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "TRACKSTAR_API_KEY": API_KEY,
            "TRACKSTAR_BASE_URL": trackstar_url,
            "CREDENTIAL_KEYS": key,
            "RETRY_BASE_SECONDS": "0.2",
            **settings,
        }

    def start_worker(self, *, command: Sequence[str] = CELERY, **settings: str) -> Worker:
        """Start one more worker process; `settings` lie over the deployment's environment."""
        folder = self._folder / f"worker-{len(self.workers)}"
        folder.mkdir()
        worker = Worker(command, self.env | settings, folder)
        self.workers.append(worker)
        return worker

    def connect(self, vault: TokenVault, names: Iterable[str]) -> None:
        """Make connections that Trackstar and the ledger know, each with its `token_of`."""
        for name in names:
            self.trackstar.connect(name, token_of(name))
            self.add_connection(vault, name, token_of(name))

    def add_connection(self, vault: TokenVault, name: str, token: str) -> None:
        """Let the ledger know a connection and its token."""
        with self.ledger.begin() as db:
            connections.add(db, name, vault.encrypt(token))

    def hold_of(self, name: str) -> str | None:
        with self.ledger.connect() as db:
            return next(row.hold_reason for row in connections.list_all(db) if row.id == name)

    def all(self, limit: int = 1000) -> list[Cancellation]:
        with self.ledger.connect() as db:
            return filters.find(db, limit=limit)

    def record(self, record_id: str) -> Cancellation:
        """Return a cancellation that the ledger knows."""
        found = self.client.get(record_id)
        assert found is not None
        return found

    def timeline(self, record_id: str) -> Timeline:
        with self.ledger.connect() as db:
            found = queries.timeline(db, record_id, snapshot=True)
        assert found is not None
        return found

    def messages(self) -> int:
        """Count the messages on the Celery lists, the producers' and each worker's."""
        return sum(self.redis.llen(name) for name in self._lists())

    def lasting_messages(self) -> dict[str, int]:
        """Count them on each list that has no end of life, by its name; none where it is empty."""
        lengths = {name.decode(): self.redis.llen(name) for name in self._lists() if self.redis.ttl(name) < 0}
        return {name: length for name, length in lengths.items() if length}

    def _lists(self) -> list[bytes]:
        return [name for name in self.redis.keys("cancellations*") if self.redis.type(name) == b"list"]

    def wait_until(self, fact: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
        """Wait until this is so; it is looked at again and again, as neither the ledger nor Redis notifies a test."""
        deadline = time.monotonic() + timeout
        while not fact():
            assert time.monotonic() < deadline, "\n".join(
                [f"Waited {timeout:g} s for {what}, in vain.", *(worker.last_words() for worker in self.workers)]
            )
            time.sleep(0.05)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.client.close()
        self.ledger.dispose()
        self.redis.close()


def _client(url: str) -> Any:
    seconds = 60  # above the longest wait for an event
    if url.startswith("sentinel"):
        return connect_redis(url, socket_timeout=seconds)
    return Redis.from_url(url, socket_timeout=seconds)


class MakeDeployment(Protocol):
    """Makes a deployment with a ledger of a kind, for as long as the `with` block lasts.

    `settings` are those of its workers, `options` those of its Trackstar.
    """

    def __call__(
        self, kind: str, settings: Mapping[str, str] = ..., **options: Unpack[WorldOptions]
    ) -> AbstractContextManager[Deployment]: ...
