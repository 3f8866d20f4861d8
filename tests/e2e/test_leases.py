"""Leases hold by the ledger's clock: a paused worker that comes back too late, and one whose clock is wrong."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.deployment import CELERY, through
from harness.ledgers import SLOW_LEDGERS
from harness.settings import SHORT
from harness.truth import leftovers, record_id, untruths, wait_for_ends

if TYPE_CHECKING:
    from harness.deployment import Deployment

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT, writes_per_second=None)

STOPPED_AFTER_ITS_CLAIM = through("killable.py", "SIGSTOP", "claimed, before the publish")


def test_a_worker_paused_past_its_lease_cannot_overwrite_what_its_successor_recorded(
    deployment: Deployment, shop: str
) -> None:
    # The answer to the paused worker says no; the one that its successor gets says yes.
    deployment.trackstar.add_order(shop, "o-1", script=["pause+422", "ok"])
    paused = deployment.start_worker()
    deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    paused.send(signal.SIGSTOP)
    deployment.trackstar.release(shop, "o-1")  # the answer lies in the socket of a process that does not run
    deployment.start_worker()
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
    deployment: Deployment, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    paused = deployment.start_worker(command=STOPPED_AFTER_ITS_CLAIM)
    paused.wait_until_consuming()
    deployment.client.enqueue(shop, "o-1")
    deployment.wait_until(lambda: paused.stopped, "the worker to stop itself after its claim")
    deployment.start_worker()
    recorded = deployment.client.wait(record_id("o-1"), 30)
    paused.send(signal.SIGCONT)
    deployment.trackstar.add_order(shop, "o-2")
    deployment.client.wait(deployment.client.enqueue(shop, "o-2"), 30)

    assert "succeeded" == recorded.status
    assert 1 == len(deployment.trackstar.order(shop, "o-1").truth.cancels)
    assert recorded == deployment.client.get(record_id("o-1"))


def test_a_worker_that_comes_too_late_to_send_gives_its_claim_back_without_a_doubt(
    deployment: Deployment, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    paused = deployment.start_worker(command=STOPPED_AFTER_ITS_CLAIM, LEASE_SECONDS="12")  # late after 4.5 s
    paused.wait_until_consuming()  # a message that nobody consumes in time is given back too, without being late
    deployment.client.enqueue(shop, "o-1")
    deployment.wait_until(lambda: paused.stopped, "the worker to stop itself after its claim")
    claimed_at = deployment.record(record_id("o-1")).first_sent_at
    assert claimed_at
    too_late = claimed_at + timedelta(seconds=5)
    deployment.wait_until(lambda: datetime.now(UTC) > too_late, "the claim to be too old to be used")
    paused.send(signal.SIGCONT)
    recorded = deployment.client.wait(record_id("o-1"), 30)

    assert "cancellation.started_too_late" in paused.output
    assert "cancellation.rescued" not in paused.output
    assert ("succeeded", "cancelled", 1) == (recorded.status, recorded.verdict, recorded.attempts)
    assert ["accepted"] == [each["reason"] for each in deployment.timeline(record_id("o-1")).attempts]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off_changes_nothing(deployment: Deployment, shop: str, hours: int) -> None:
    # No lease ends by itself here, however busy this machine is.
    skewed = through("skewed.py", str(hours * 3600))
    workers = [deployment.start_worker(command=each, LEASE_SECONDS="30") for each in (CELERY, skewed)]
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


def test_what_a_killed_worker_had_claimed_goes_on_soon_after_its_lease(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1", script=["pause"])
    killed = deployment.start_worker()
    deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    killed.kill()
    deployment.trackstar.release(shop, "o-1")
    deployment.start_worker()  # up long before the lease ends
    deployment.client.wait(record_id("o-1"), 60)
    attempts = deployment.timeline(record_id("o-1")).attempts

    assert ["worker_lost", "accepted", "read_cancelled"] == [row["reason"] for row in attempts]
    # By the ledger's clock: the lease, the poll that sees its end, the first backoff, and a slow machine.
    passed = (attempts[1]["started_at"] - attempts[0]["started_at"]).total_seconds()
    assert float(SHORT["LEASE_SECONDS"]) <= passed < float(SHORT["LEASE_SECONDS"]) + 20
