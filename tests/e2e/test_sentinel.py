"""A failover by a real Sentinel under load: what was accepted ends, and workers find the new primary by themselves.

What is accepted is what a producer was told: an entry that no replica has is refused, and sent again.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import requests
from harness.deployment import API_KEY, Deployment
from harness.sentinels import Sentinels, running_sentinels
from harness.settings import SHORT
from harness.truth import record_id, untruths

from worker.client import CancelClient
from worker.dev.sandbox import Sandbox
from worker.errors import AlreadyEndedError, InboxUnavailableError
from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.deployment import Worker

    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
SETTINGS = SHORT | {"FORCE_SYNC": "false", "HEALTH_PORT": "0", "CONCURRENCY": "8", "LEASE_SECONDS": "10"}
# As docs/scale.md advises: a primary without replicas takes nothing.
ADVISED = {"min_replicas_to_write": 1, "min_replicas_max_lag": 5}
BEFORE, AFTER = 20, 20
# What a worker waits for a silent Redis, its lease, and a busy machine.
RECOVERY_SECONDS = 90.0
# What an outbox has put on a primary's stream may be gone with it: its entries are no promise (decision 8), ends are.
OF_THE_STREAM = ("its end was not told", "its money is not on the stream")

pytestmark = pytest.mark.timeout(300)


class Site(Deployment):
    """A deployment whose Redis is watched by sentinels, and a producer that sends again what was refused."""

    sentinels: Sentinels
    accepted: list[str]

    def send(self, orders: int, client: CancelClient | None = None) -> None:
        """Enqueue so many orders, each until it is accepted."""
        for _ in range(orders):
            order_id = f"o-{len(self.accepted)}"
            self.trackstar.add_order(SHOP, order_id)
            self.wait_until(partial(self._takes, order_id, client or self.client), "it to be accepted", 60)
            self.accepted.append(order_id)

    def _takes(self, order_id: str, client: CancelClient) -> bool:
        # One that has ended was taken by an earlier try after all.
        try:
            with suppress(AlreadyEndedError):
                client.enqueue(SHOP, order_id)
        except InboxUnavailableError:
            return False
        return True

    def wait_until_ended(self) -> None:
        ids = {record_id(order_id) for order_id in self.accepted}

        def ended() -> bool:
            return ids <= {row.id for row in self.all(limit=10_000) if row.ended}

        self.wait_until(ended, "every accepted one to end", RECOVERY_SECONDS)
        self.wait_until(lambda: not self.redis.xlen(INBOX), "an empty inbox", RECOVERY_SECONDS)


@pytest.fixture
def site(
    make_database: Callable[[str], str], credential_key: str, vault: TokenVault, tmp_path: Path
) -> Iterator[Site]:
    with ExitStack() as stack:
        sentinels = stack.enter_context(running_sentinels(tmp_path, replicas=2, **ADVISED))
        sandbox = stack.enter_context(Sandbox(API_KEY, sync_schedules=False))
        url = make_database("postgresql")
        made = Site(sentinels.url, url, sandbox.world, sandbox.url, tmp_path, credential_key, SETTINGS)
        stack.callback(made.close)
        made.sentinels, made.accepted = sentinels, []
        made.connect(vault, [SHOP])
        for _ in range(2):
            made.start_worker().wait_until_consuming()
        yield made


def killed(site: Site) -> None:
    site.sentinels.primary().send(signal.SIGKILL)


def stopped_for_a_while(site: Site) -> None:
    site.sentinels.primary().send(signal.SIGSTOP)


@pytest.mark.parametrize("falls", [killed, stopped_for_a_while])
def test_a_failover_under_load_loses_nothing_that_was_accepted(site: Site, falls: Callable[[Site], None]) -> None:
    old = site.sentinels.primary()
    # Its connection stays open while the primary is replaced, and leads to the one that was.
    with closing(CancelClient(site.redis_url, site.database_url)) as idle:
        site.send(1, idle)
        site.send(BEFORE)
        falls(site)
        site.send(AFTER)
        new = site.sentinels.wait_for_another_than(old)
        if falls is killed:
            old.close()
            old.start()
        else:
            old.send(signal.SIGCONT)
        site.send(AFTER, idle)
    site.sentinels.wait_until_replica(old)
    site.send(AFTER)
    site.wait_until_ended()

    assert new is site.sentinels.primary()
    assert [] == [each for each in untruths(site, site.accepted) if not any(word in each for word in OF_THE_STREAM)]
    assert {"succeeded"} == {site.record(record_id(order_id)).status for order_id in site.accepted}
    assert {1} == {order.truth.effective_cancels for order in site.trackstar.orders()}
    for worker in site.workers:
        assert worker.alive
        site.wait_until(partial(is_ready, worker), "a ready worker", RECOVERY_SECONDS)
        assert '"event":"intake.unavailable"' in worker.output, "the worker did not notice"
        assert '.crashed"' not in worker.output
        assert "consumer.restarted" not in worker.output


def test_a_worker_says_that_nobody_names_a_primary_and_is_ready_again_when_somebody_does(site: Site) -> None:
    worker = site.workers[0]
    for each in site.sentinels.sentinels:
        each.send(signal.SIGSTOP)  # so that nobody replaces what falls
    primary = site.sentinels.servers[0]
    primary.close()
    site.wait_until(lambda: any("No Sentinel" in each for each in problems(worker)), "the reason in /readyz")
    assert "names a primary" in worker.told("redis.refuses")["remedy"]
    primary.start()
    for each in site.sentinels.sentinels:
        each.send(signal.SIGCONT)
    site.wait_until(partial(is_ready, worker), "a ready worker", RECOVERY_SECONDS)


def problems(worker: Worker) -> list[str]:
    port = worker.told("health.listening")["port"]
    found: list[str] = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).json()["problems"]
    return found


def is_ready(worker: Worker) -> bool:
    return not problems(worker)
