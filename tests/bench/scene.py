"""Several connections before a local Trackstar with its limits, in a process of its own, and our workers.

The parts `pace`, `flood`, `urgent` and `outage` are measured here: what counts is when Trackstar saw which request.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from cryptography.fernet import Fernet
from harness.deployment import CELERY, Worker

from worker.client import CancelClient
from worker.ledger import connections
from worker.ledger.vault import TokenVault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.bench import Bench
    from bench.ledgers import Ledger

API_KEY = "bench-api-key"


class Scene:
    """One deployment of ours, as long as the `with` block lasts."""

    def __init__(self, bench: Bench, ledger: Ledger, trackstar_url: str, folder: Path) -> None:
        self.client = CancelClient(bench.parts.redis_url, ledger.url)
        self._trackstar = f"{trackstar_url}/_sandbox"
        self._ledger = ledger
        self._folder = folder
        self._key = Fernet.generate_key().decode()
        self._workers: list[Worker] = []
        self._session = requests.Session()
        self.env = {
            "PATH": str(Path(sys.executable).parent),
            "REDIS_URL": bench.parts.redis_url,
            "DATABASE_URL": ledger.url,
            "TRACKSTAR_API_KEY": API_KEY,
            "TRACKSTAR_BASE_URL": trackstar_url,
            "CREDENTIAL_KEYS": self._key,
        }

    def add_connections(self, names: Sequence[str]) -> None:
        vault = TokenVault([self._key])
        with self._ledger.engine.begin() as connection:
            for name in names:
                self.control("connections", id=name, access_token=f"token-of-{name}")
                connections.add(connection, name, vault.encrypt(f"token-of-{name}"))

    def start_workers(self, count: int, **settings: str) -> None:
        for number in range(count):
            folder = self._folder / f"worker-{len(self._workers)}"
            folder.mkdir(parents=True)
            worker = Worker((*CELERY, "-n", f"cancel{number}@%h"), self.env | settings, folder)
            self._workers.append(worker)
        for worker in self._workers:
            worker.wait_until_ready()

    def enqueue(self, connection_id: str, names: Sequence[str], **fields: Any) -> None:
        self.client.enqueue_many([{"connection_id": connection_id, "order_id": name, **fields} for name in names])

    def control(self, what: str, **fields: Any) -> Any:
        answer = self._session.post(f"{self._trackstar}/{what}", json=fields, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def traffic(self, connection_id: str) -> dict[str, int]:
        found = self._session.get(f"{self._trackstar}/connections", timeout=30).json()
        traffic: dict[str, int] = next(each["traffic"] for each in found if each["id"] == connection_id)
        return traffic

    def arrivals(self, connection_id: str) -> dict[str, float]:
        """Return when Trackstar saw the first accepted cancel of each order, in seconds since the epoch."""
        found = self._session.get(f"{self._trackstar}/orders", params={"connection_id": connection_id}, timeout=60)
        seen = {
            order["order_id"]: [r["arrived"] for r in order["truth"]["requests"] if r["kind"] == "cancel"]
            for order in found.json()
        }
        return {name: min(times) for name, times in seen.items() if times}

    def seconds_until_seen(self, connection_id: str, name: str, **fields: Any) -> float:
        """Enqueue one cancel; return how long it took until Trackstar saw it."""
        asked = time.time()
        self.enqueue(connection_id, [name], **fields)
        deadline = asked + 30
        while name not in (seen := self._order(connection_id, name)):
            if time.time() > deadline:
                raise TimeoutError(f"{name} was not sent within 30 s")
            time.sleep(0.005)
        return seen[name] - asked

    def _order(self, connection_id: str, name: str) -> dict[str, float]:
        params = {"connection_id": connection_id, "order_id": name}
        answer = self._session.get(f"{self._trackstar}/orders", params=params, timeout=30)
        requests_seen = answer.json()["truth"]["requests"] if answer.ok else []
        return {name: requests_seen[0]["arrived"]} if requests_seen else {}

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.client.close()


@contextmanager
def scene(bench: Bench) -> Iterator[Scene]:
    """Set up a fresh ledger, an empty Redis, and Trackstar."""
    bench.parts.redis.flushall()
    ledger = bench.ledgers.fresh(is_ours=True)
    program = str(Path(sys.executable).with_name("cancel-worker"))
    command = [program, "sandbox", "--port", "0", "--api-key", API_KEY]
    trackstar = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert trackstar.stdout is not None
        (url,) = re.findall(r"http://\S+", trackstar.stdout.readline())
        made = Scene(bench, ledger, url, bench.parts.folder / f"scene-{time.monotonic_ns()}")
        try:
            yield made
        finally:
            made.close()
    finally:
        trackstar.terminate()
        trackstar.wait(10)
        bench.ledgers.drop(ledger)
