"""A soak of some minutes, with the sandbox's mixed answers under a steady load of a shop's orders.

The truth at its end is the warehouse's, in which other people cancel, edit and ship; Trackstar's copy is never asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import psutil
from harness.truth import leftovers, record_id, untruths, wait_for_ends
from redis import RedisError
from soak.faults import FAULTS, Scene
from soak.people import People
from soak.report import console

from worker.cli.progress import progress
from worker.errors import (
    AlreadyEndedError,
    InboxUnavailableError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.runtime.freshness import ASK_SECONDS

if TYPE_CHECKING:
    from random import Random

    from harness.deployment import Deployment

    from worker.dev.sandbox.options import WorldOptions

SHOP = "shop-1"
ORDERS_PER_SECOND = 15
KNOWN_SECONDS = 5 * ASK_SECONDS  # two crawls, and two questions after their ends; and a paused worker
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
    ["open:30"],  # applied late
    ["open:10:untouched"],  # and no crawl ever brings it
    ["open"],  # accepted, and never applied
    ["wrong_id"],
]


def sandbox(dice: Random) -> WorldOptions:
    """Return how Trackstar is: its crawls come every ten seconds and take one, and its clock is not ours."""
    return {"sync_seconds": 10.0, "crawl_length": 1.0, "clock_skew": dice.uniform(-30, 30)}


class Load:
    """A producer that enqueues orders steadily, some twice, some with little time, and withdraws a few."""

    def __init__(self, deployment: Deployment, dice: Random) -> None:
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
            young = self._dice.random() < 0.05  # younger than Trackstar's copy
            script = self._dice.choice(SCRIPTS)
            self._deployment.trackstar.add_order(SHOP, order_id, script=script, synced=not young)
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
                with suppress(AlreadyEndedError):  # of an earlier try, which had been taken after all
                    self._deployment.client.enqueue(SHOP, order_id, **options)
                return
            time.sleep(0.2)

    def _withdraw(self, order_id: str) -> None:
        with suppress(TooLateError, UnknownCancellationError, LedgerUnavailableError):
            self._deployment.client.withdraw(record_id(order_id))


def soak(scene: Scene, dice: Random, minutes: float) -> dict[str, Any]:
    """Let things go wrong for some minutes, and report what came of it."""
    deployment, struck = scene.deployment, Counter[str]()
    faults = [each for each in FAULTS if scene.postgres or not each.name.startswith("PostgreSQL")]
    for worker in deployment.workers:
        worker.wait_until_ready()
    deadline = time.monotonic() + minutes * 60
    survivor, early = psutil.Process(scene.survivor.process.pid), 0
    load = Load(deployment, dice)
    with (
        load,
        People(deployment.trackstar, SHOP, load.orders, dice) as people,
        progress("seconds", minutes * 60, console=console) as shown,
    ):
        while (left := deadline - time.monotonic()) > 0:
            shown.reach(minutes * 60 - left)
            time.sleep(min(left, dice.uniform(1, 5)))
            fault = dice.choice(faults)
            console.print(f"{len(load.orders):6} orders  {fault.name}", highlight=False)
            fault.strike(scene)
            struck[fault.name] += 1
            if not early and left < minutes * 60 * 0.6:
                early = survivor.memory_info().rss
    console.print("The faults are over: every order comes to its end.")
    deployment.ledger.dispose()  # the last fault may have cut its connections
    wait_for_ends(deployment, map(record_id, load.orders), timeout=180)
    with suppress(RedisError):
        deployment.wait_until(lambda: not leftovers(deployment), "Redis to be empty")
    deployment.wait_until(lambda: not awaited(deployment), "all that is waited for", KNOWN_SECONDS)
    found = lasting_untruths(deployment, load.orders)
    rows = deployment.all(limit=1_000_000)
    return {
        "faults": struck + people.struck,
        "orders": len(load.orders),
        "statuses": Counter(f"{row.status}, {row.verdict} by {row.evidence}" for row in rows)
        + Counter(f"for a person: {row.needs_person}" for row in rows if row.needs_person),
        "untruths": [*found, *leftovers(deployment)],
        "growth": survivor.memory_info().rss / early if early else 1.0,
        "survived": scene.survivor.alive,
        "redis_clients": len(deployment.redis.client_list()),
    }


def awaited(deployment: Deployment) -> list[str]:
    """Return what is still waited for: a crawl, or a read."""
    rows = deployment.all(limit=1_000_000)
    return [row.id for row in rows if row.confirm_at is not None or row.known_by is not None]


def lasting_untruths(deployment: Deployment, orders: list[str]) -> list[str]:
    """Return what stays untrue once a crawl has brought all, and was looked at: what has shipped after a proof."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while (found := untruths(deployment, orders, SHOP)) and time.monotonic() < deadline:
        time.sleep(5)
    return found
