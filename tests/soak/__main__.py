"""`make soak`: everything goes wrong at random for some minutes, and then the ledger is compared with the truth.

Random faults from a printed seed, on real processes, under a steady load of mixed answers. At the end: nothing lost,
nothing untrue, nothing overlapping, nothing done twice, and a worker that lived through it all has not grown.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil
from cryptography.fernet import Fernet
from harness.deployment import API_KEY, Deployment, Worker
from harness.messages import ALIEN
from harness.parts import PostgresServer, RedisServer, open_folder
from harness.truth import leftovers, record_id, untruths, wait_for_ends
from redis import RedisError
from rich.console import Console
from rich.table import Table

from worker.dev.sandbox import Sandbox
from worker.errors import InboxUnavailableError, LedgerUnavailableError, TooLateError, UnknownCancellationError
from worker.ledger import connections, migrations
from worker.ledger.database import open_ledger
from worker.ledger.vault import TokenVault
from worker.streams import INBOX

SHOP = "shop-1"
ORDERS_PER_SECOND = 15
SETTINGS = {
    "CONNECT_TIMEOUT_SECONDS": "0.5",
    "REQUEST_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "5.7",
    "RETRY_BASE_SECONDS": "0.2",
    "RETRY_CAP_SECONDS": "3",
    "READ_BACK_SECONDS": "2,6,12",
    "CONCURRENCY": "16",
}
# What Trackstar answers first; afterwards it says what the contract says. Nothing hangs for longer than a lease lasts.
SCRIPTS: list[list[str]] = [
    *[[]] * 10,
    ["503"],
    ["500", "502"],
    ["applied_then:500"],
    ["applied_then:reset"],
    ["succeeded_then:close"],
    ["succeeded_then:500"],
    ["reset", "cut"],
    ["hang:2"],
    ["slow:0.7+ok"],
    ["429:1"],
    ["html:502"],
    ["400:integration"],
    ["422"],
    ["404"],
    ["501"],
    ["open:1"],
    ["wrong_id"],
]
console = Console(width=None if sys.stdout.isatty() else 120)


class Fault(msgspec.Struct, frozen=True):
    """Something that goes wrong, and goes right again within `seconds`."""

    name: str
    strike: Callable[[Scene], None]


class Scene:
    """The deployment with all that can be broken. The first worker is never killed: it shows whether one grows."""

    def __init__(self, deployment: Deployment, redis: RedisServer, postgres: PostgresServer | None, dice: Any) -> None:
        self.deployment = deployment
        self.redis = redis
        self.postgres = postgres
        self.dice = dice
        self.survivor = self.start_worker()
        self.others = [self.start_worker(), self.start_worker()]

    def start_worker(self) -> Worker:
        return self.deployment.start_worker(**SETTINGS)

    def replace(self, end: Callable[[Worker], object]) -> None:
        number = self.dice.randrange(len(self.others))
        end(self.others[number])
        self.others[number] = self.start_worker()

    def pause_worker(self) -> None:
        worker = self.dice.choice([self.survivor, *self.others])
        worker.send(signal.SIGSTOP)
        time.sleep(self.dice.choice([2, 8]))  # within its lease, or past it
        worker.send(signal.SIGCONT)

    def redis_away(self, seconds: float) -> None:
        self.redis.kill()
        time.sleep(seconds)
        self.redis.start()

    def postgres_away(self, how: signal.Signals, seconds: float) -> None:
        if self.postgres is not None:
            self.postgres.stop(how)
            time.sleep(seconds)
            self.postgres.start()

    def cut_postgres_clients(self) -> None:
        if self.postgres is not None:
            self.postgres.end_clients()

    def strangers(self) -> None:
        for alien in self.dice.sample(ALIEN, 3):
            self.deployment.redis.lpush("cancellations", alien.raw)
        self.deployment.redis.xadd(INBOX, {"job": b"\x00rubbish"})


FAULTS = [
    Fault("a worker killed (SIGKILL)", lambda scene: scene.replace(Worker.kill)),
    Fault("a worker asked to end (SIGTERM)", lambda scene: scene.replace(Worker.stop)),
    Fault("a worker paused (SIGSTOP)", Scene.pause_worker),
    Fault("Redis restarted", lambda scene: scene.redis_away(0)),
    Fault("Redis away", lambda scene: scene.redis_away(4)),
    Fault("Redis cuts its clients", lambda scene: scene.deployment.redis.client_kill_filter(_type="normal")),
    Fault("PostgreSQL restarted", lambda scene: scene.postgres_away(signal.SIGQUIT, 0)),
    Fault("PostgreSQL away", lambda scene: scene.postgres_away(signal.SIGINT, 4)),
    Fault("PostgreSQL killed (SIGKILL)", lambda scene: scene.postgres_away(signal.SIGKILL, 1)),
    Fault("PostgreSQL cuts its clients", Scene.cut_postgres_clients),
    Fault("strangers write to Redis", Scene.strangers),
]


class Load:
    """A producer that enqueues orders steadily, some twice, some with little time, and withdraws a few."""

    def __init__(self, deployment: Deployment, dice: Any) -> None:
        self.orders: list[str] = []
        self._deployment = deployment
        self._dice = dice
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1 / ORDERS_PER_SECOND):
            order_id = f"o-{len(self.orders)}"
            self._deployment.trackstar.add_order(SHOP, order_id, script=self._dice.choice(SCRIPTS))
            options: dict[str, Any] = {"priority": self._dice.choice(["urgent", "normal", "bulk"])}
            if self._dice.random() < 0.1:
                options["send_by"] = datetime.now(UTC) + timedelta(seconds=self._dice.uniform(1, 20))
            for _ in range(self._dice.choice([1, 1, 1, 2])):
                self._enqueue(order_id, options)
            self.orders.append(order_id)
            if self._dice.random() < 0.05:
                self._withdraw(order_id)

    def _enqueue(self, order_id: str, options: dict[str, Any]) -> None:
        while True:  # as the error says: enqueue again, the same intent stays one record
            with suppress(InboxUnavailableError):
                self._deployment.client.enqueue(SHOP, order_id, **options)
                return
            time.sleep(0.2)

    def _withdraw(self, order_id: str) -> None:
        with suppress(TooLateError, UnknownCancellationError, LedgerUnavailableError):
            self._deployment.client.withdraw(record_id(order_id))


def soak(scene: Scene, dice: Any, minutes: float) -> dict[str, Any]:
    """Let things go wrong for some minutes, and report what came of it."""
    deployment, struck = scene.deployment, Counter[str]()
    faults = [each for each in FAULTS if scene.postgres or not each.name.startswith("PostgreSQL")]
    for worker in deployment.workers:
        worker.wait_until_ready()
    deadline = time.monotonic() + minutes * 60
    survivor, early = psutil.Process(scene.survivor.process.pid), 0
    with Load(deployment, dice) as load:
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, dice.uniform(1, 5)))
            fault = dice.choice(faults)
            console.print(f"{len(load.orders):6} orders  {fault.name}", highlight=False)
            fault.strike(scene)
            struck[fault.name] += 1
            if not early and left < minutes * 60 * 0.6:
                early = survivor.memory_info().rss
    wait_for_ends(deployment, map(record_id, load.orders), timeout=180)
    with suppress(RedisError):
        deployment.wait_until(lambda: not leftovers(deployment), "Redis to be empty")
    deployment.wait_until(lambda: no_read_back_is_due(deployment), "the read-backs", 60)
    return {
        "faults": struck,
        "orders": len(load.orders),
        "statuses": Counter(row.status for row in deployment.all(limit=1_000_000)),
        "untruths": [*untruths(deployment, load.orders, SHOP), *leftovers(deployment)],
        "growth": survivor.memory_info().rss / early if early else 1.0,
        "survived": scene.survivor.alive,
        "redis_clients": len(deployment.redis.client_list()),
    }


def no_read_back_is_due(deployment: Deployment) -> bool:
    return all(row.confirm_at is None for row in deployment.all(limit=1_000_000))


def report(found: dict[str, Any]) -> bool:
    """Print the result; return whether every promise was kept."""
    table = Table(box=None, show_header=False)
    for fault, count in sorted(found["faults"].items()):
        table.add_row(fault, str(count))
    table.add_row("orders", str(found["orders"]))
    for status, count in sorted(found["statuses"].items()):
        table.add_row(f"  {status}", str(count))
    kinds = Counter(sentence.split(": ", 1)[-1].split(" (")[0] for sentence in found["untruths"])
    table.add_row("lost, untrue, overlapping or done twice", str(len(found["untruths"])))
    table.add_row("memory of the worker that lived, end / middle", f"{found['growth']:.2f}")
    table.add_row("clients of Redis at the end", str(found["redis_clients"]))
    console.print(table)
    for kind, count in kinds.items():
        console.print(f"{count} x {kind}", style="red", highlight=False)
    for sentence in found["untruths"][:10]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return not found["untruths"] and found["survived"] and found["growth"] < 1.5


def main() -> int:
    """Set the scene, soak, report; return 1 where a promise was broken."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--minutes", type=float, default=3.0)
    words.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    words.add_argument("--ledger", choices=["postgresql", "sqlite"], default="postgresql")
    wish = words.parse_args()
    console.print(f"seed {wish.seed}, {wish.minutes:g} minutes, {wish.ledger}", highlight=False)
    dice = random.Random(wish.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cancel-worker-soak-")))
        redis = RedisServer(folder)
        redis.start()
        stack.callback(redis.stop)
        postgres = None
        url = f"sqlite:///{folder}/ledger.sqlite3"
        if wish.ledger == "postgresql":
            postgres = PostgresServer.create(stack.enter_context(open_folder("cancel-worker-soak-pg-")) / "data")
            postgres.start()
            stack.callback(postgres.stop)
            url = postgres.url
        key = Fernet.generate_key().decode()
        ledger = open_ledger(url)
        migrations.migrate(ledger)
        with ledger.begin() as connection:
            connections.add(connection, SHOP, TokenVault([key]).encrypt("token-of-shop-1"))
        ledger.dispose()
        sandbox = stack.enter_context(Sandbox(API_KEY, sync_seconds=2))
        sandbox.world.connect(SHOP, "token-of-shop-1")
        deployment = Deployment(redis.url, url, sandbox.world, sandbox.url, folder, key)
        stack.callback(deployment.close)
        return 0 if report(soak(Scene(deployment, redis, postgres, dice), dice, wish.minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
