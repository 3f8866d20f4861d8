"""Leases hold by the ledger's clock: a paused worker that comes back too late, and one whose clock is wrong."""

from __future__ import annotations

import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import skewed
from harness.ledgers import SLOW_LEDGERS
from harness.truth import leftovers, record_id, untruths, wait_for_ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.credentials import TokenVault

SETTINGS = {
    "CONNECT_TIMEOUT_SECONDS": "0.5",
    "REQUEST_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "5.7",
    "RETRY_CAP_SECONDS": "1",
    "READ_BACK_SECONDS": "1,2,3",
}

HALTING = (sys.executable, str(Path(skewed.__file__).with_name("halting.py")), "celery", "-A", "worker", "worker")


@pytest.fixture(params=SLOW_LEDGERS)
def deployment(request: pytest.FixtureRequest, make_deployment: Any) -> Iterator[Any]:
    with make_deployment(request.param) as made:
        yield made


@pytest.fixture
def shop(deployment: Any, vault: TokenVault) -> str:
    deployment.trackstar.connect("shop-1", "token-of-shop-1", writes_per_second=None)
    deployment.add_connection(vault, "shop-1", "token-of-shop-1")
    return "shop-1"


def test_a_worker_paused_past_its_lease_cannot_overwrite_what_its_successor_recorded(
    deployment: Any, shop: str
) -> None:
    # The answer to the paused worker says no; the one that its successor gets says yes.
    deployment.trackstar.add_order(shop, "o-1", script=["pause+422", "ok"])
    paused = deployment.start_worker(**SETTINGS)
    deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    paused.send(signal.SIGSTOP)
    deployment.trackstar.release(shop, "o-1")  # the answer lies in the socket of a process that does not run
    deployment.start_worker(**SETTINGS)
    recorded = deployment.client.wait(record_id("o-1"), 30)
    paused.send(signal.SIGCONT)
    paused.wait_for_line("cancellation.attempted")

    assert ("succeeded", "cancelled", "response") == (recorded.status, recorded.verdict, recorded.evidence)
    # Its answer, or, where its watchdog was quicker, that it came too late.
    late = [["validation_failed", "accepted"], ["read_timeout", "accepted"]]
    deployment.wait_until(
        lambda: [row["reason"] for row in deployment.timeline(record_id("o-1")).attempts] in late,
        "the late answer to be kept as evidence",
    )
    assert recorded == deployment.client.get(record_id("o-1"))
    assert [] == untruths(deployment, ["o-1"], shop)
    assert paused.alive


def test_a_worker_paused_between_its_claim_and_its_request_does_not_send_it_any_more(
    deployment: Any, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    paused = deployment.start_worker(command=HALTING, **SETTINGS)
    deployment.client.enqueue(shop, "o-1")
    deployment.wait_until(lambda: paused.stopped, "the worker to stop itself after its claim")
    deployment.start_worker(**SETTINGS)
    recorded = deployment.client.wait(record_id("o-1"), 30)
    paused.send(signal.SIGCONT)
    deployment.trackstar.add_order(shop, "o-2")
    deployment.client.wait(deployment.client.enqueue(shop, "o-2"), 30)

    assert "succeeded" == recorded.status
    assert 1 == len(deployment.trackstar.order(shop, "o-1").truth.cancels)
    assert recorded == deployment.client.get(record_id("o-1"))


def test_a_worker_that_comes_too_late_to_send_gives_its_claim_back_without_a_doubt(deployment: Any, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    paused = deployment.start_worker(command=HALTING, **SETTINGS | {"LEASE_SECONDS": "12"})  # late after 4.5 s
    deployment.client.enqueue(shop, "o-1")
    deployment.wait_until(lambda: paused.stopped, "the worker to stop itself after its claim")
    (row,) = deployment.all()
    late = row.first_sent_at + timedelta(seconds=5)
    deployment.wait_until(lambda: datetime.now(UTC) > late, "the claim to be too old to be used")
    paused.send(signal.SIGCONT)
    recorded = deployment.client.wait(record_id("o-1"), 30)

    assert "cancellation.started_too_late" in paused.output
    assert "cancellation.rescued" not in paused.output
    assert ("succeeded", "cancelled", 1) == (recorded.status, recorded.verdict, recorded.attempts)
    assert ["accepted"] == [each["reason"] for each in deployment.timeline(record_id("o-1")).attempts]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_changes_nothing(deployment: Any, shop: str, hours: int) -> None:
    command = (sys.executable, skewed.__file__, str(hours * 3600), "celery", "-A", "worker", "worker")
    settings = SETTINGS | {"LEASE_SECONDS": "30"}  # none ends by itself here, however busy this machine is
    workers = [deployment.start_worker(**settings), deployment.start_worker(command=command, **settings)]
    for worker in workers:
        worker.wait_until_ready()
    orders = [f"o-{number}" for number in range(60)]
    for number, order_id in enumerate(orders):
        deployment.trackstar.add_order(shop, order_id, script=(["503"], ["slow:0.3+ok"], [])[number % 3])
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": order_id} for order_id in orders])
    wait_for_ends(deployment, [record_id(each) for each in orders])
    deployment.wait_until(lambda: not leftovers(deployment), "Redis to be empty")

    assert [] == untruths(deployment, orders, shop)
    assert {1, 2} == {len(deployment.trackstar.order(shop, each).truth.cancels) for each in orders}
    assert all("cancellation.rescued" not in worker.output for worker in workers)


def test_what_a_killed_worker_had_claimed_goes_on_soon_after_its_lease(deployment: Any, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1", script=["pause"])
    killed = deployment.start_worker(**SETTINGS)
    deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    killed.kill()
    deployment.trackstar.release(shop, "o-1")
    deployment.start_worker(**SETTINGS)  # up long before the lease ends
    deployment.client.wait(record_id("o-1"), 60)
    attempts = deployment.timeline(record_id("o-1")).attempts

    assert ["worker_lost", "accepted"] == [row["reason"] for row in attempts]
    # By the ledger's clock: the lease, the poll that sees its end, the first backoff, and a slow machine.
    passed = (attempts[1]["started_at"] - attempts[0]["started_at"]).total_seconds()
    assert float(SETTINGS["LEASE_SECONDS"]) <= passed < float(SETTINGS["LEASE_SECONDS"]) + 10
