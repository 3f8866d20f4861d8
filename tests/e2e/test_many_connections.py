"""Many connections at once, with real workers: pace, order, holds. What is measured here is counted, not timed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.ledgers import SLOW_LEDGERS
from harness.settings import SHORT
from harness.slots import SlotLog, arrivals, fullest_second, late, without_a_slot
from harness.truth import record_id, untruths, wait_for_ends

from worker.ledger import holds
from worker.streams import EVENTS

if TYPE_CHECKING:
    from harness.deployment import Deployment, Worker

    from worker.ledger.vault import TokenVault

SHOPS = ("shop-1", "shop-2", "shop-3", "shop-4")
SETTINGS = SHORT | {
    "CONNECT_TIMEOUT_SECONDS": "1",
    "REQUEST_TIMEOUT_SECONDS": "2",
    "LEASE_SECONDS": "10",
    "RETRY_CAP_SECONDS": "2",
}
pytestmark = [
    pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SETTINGS, shops=SHOPS, sync_seconds=0.5),
    pytest.mark.usefixtures("shop"),
]

PER_SECOND = 50  # requests that Trackstar accepts of one token
# At 98 % of that, 51 slots span 1.02 s: Trackstar refuses a request only if the fiftieth before it came 20 ms late.
# Half of that allows for a worker's error about Redis' clock, which is half a round trip.
LATE_SECONDS = 0.01


def enqueue(
    deployment: Deployment, shop: str, names: list[str], *, script: tuple[str, ...] = (), **options: Any
) -> None:
    for name in names:
        deployment.trackstar.add_order(shop, name, script=script)
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": name, **options} for name in names])


def in_order_of_arrival(deployment: Deployment, shop: str) -> list[str]:
    """Return the order ids of a connection in the order in which Trackstar saw their first cancel."""
    orders = [order for order in deployment.trackstar.orders(shop) if order.truth.cancels]
    return [order.order_id for order in sorted(orders, key=lambda order: order.truth.cancels[0].arrived)]


def events(deployment: Deployment, kind: str) -> list[dict[str, Any]]:
    return [json.loads(f[b"event"]) for _, f in deployment.redis.xrange(EVENTS) if f[b"type"] == kind.encode()]


def await_events(deployment: Deployment, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind as soon as there is one: it follows a moment after the ledger's commit."""
    deployment.wait_until(lambda: events(deployment, kind), f"the event {kind}")
    return events(deployment, kind)


def ids(shop: str, names: list[str]) -> list[str]:
    return [record_id(name, shop) for name in names]


def two_workers(deployment: Deployment, **settings: str) -> list[Worker]:
    workers = [deployment.start_worker(**settings), deployment.start_worker(**settings)]
    for worker in workers:
        worker.wait_until_consuming()  # what is handed out before uses slots for nothing
    return workers


def keeps_the_pace(deployment: Deployment, log: SlotLog, per_second: int) -> None:
    """Compare what a connection sent with the slots that it had.

    How many requests arrive in a second cannot be exact: one that the machine delays arrives beside a later one. Exact
    is how many slots there are in a second, and that no request arrives without one.
    """
    arrived = [moment for moment in arrivals(deployment.trackstar, "shop-1") if moment > log.since]

    assert fullest_second(slot.send_at for slot in log.slots) <= per_second
    assert [] == without_a_slot(arrived, log.slots)
    assert deployment.trackstar.traffic("shop-1").writes_refused <= len(late(arrived, log.slots, LATE_SECONDS))


def test_two_workers_together_keep_the_limit_of_a_token_and_lose_nothing_by_it(deployment: Deployment) -> None:
    names = [f"o-{number}" for number in range(200)]
    two_workers(deployment, REQUEST_TIMEOUT_SECONDS="10", LEASE_SECONDS="30")
    with SlotLog(deployment.redis_url, "shop-1", PER_SECOND) as log:
        enqueue(deployment, "shop-1", names)
        wait_for_ends(deployment, ids("shop-1", names), 90)

    keeps_the_pace(deployment, log, PER_SECOND)
    assert [] == untruths(deployment, names, "shop-1")
    # A 429 spends no attempt.
    assert {1} == {row.attempts for row in deployment.all()}


def test_a_429_pauses_its_connection_for_all_workers_and_no_other(deployment: Deployment) -> None:
    two_workers(deployment, RETRY_CAP_SECONDS="5")  # no server is obeyed for longer than that
    enqueue(deployment, "shop-1", ["slow-down"], script=("429:4",))
    deployment.trackstar.wait_for_request("shop-1", "slow-down", timeout=20)
    deployment.wait_until(lambda: deployment.record(record_id("slow-down")).status == "waiting", "the 429's record")
    enqueue(deployment, "shop-1", ["behind"])
    enqueue(deployment, "shop-2", ["beside"])
    wait_for_ends(deployment, [*ids("shop-1", ["slow-down", "behind"]), *ids("shop-2", ["beside"])])
    refused = deployment.trackstar.order("shop-1", "slow-down").truth.cancels[0]
    behind, beside = (
        deployment.trackstar.order(shop, name).truth.cancels[0].arrived
        for shop, name in (("shop-1", "behind"), ("shop-2", "beside"))
    )

    assert refused.ended
    assert behind - refused.ended >= 3.9
    assert beside < behind
    assert 1 == deployment.record(record_id("slow-down")).attempts


def test_a_lower_limit_that_the_server_tells_is_kept(deployment: Deployment) -> None:
    deployment.trackstar.connect("shop-1", writes_per_second=10)
    deployment.start_worker()
    enqueue(deployment, "shop-1", ["o-first"])
    wait_for_ends(deployment, ids("shop-1", ["o-first"]))
    names = [f"o-{number}" for number in range(40)]
    # Trackstar still counts the first one, which was sent before the limit was known.
    its_second = arrivals(deployment.trackstar, "shop-1")[0] + 1.0
    deployment.wait_until(lambda: time.time() > its_second, "Trackstar's second to be over")
    with SlotLog(deployment.redis_url, "shop-1", 10) as log:
        enqueue(deployment, "shop-1", names)
        wait_for_ends(deployment, ids("shop-1", names), 60)

    keeps_the_pace(deployment, log, 10)


def test_an_urgent_cancel_and_a_neighbour_overtake_a_flood(deployment: Deployment) -> None:
    flood = [f"o-{number}" for number in range(300)]
    enqueue(deployment, "shop-1", flood, priority="bulk")
    deployment.start_worker()
    deployment.wait_until(lambda: len(in_order_of_arrival(deployment, "shop-1")) > 20, "the flood to begin")
    before = len(in_order_of_arrival(deployment, "shop-1"))
    enqueue(deployment, "shop-1", ["urgent"], priority="urgent")
    enqueue(deployment, "shop-2", ["neighbour"])
    wait_for_ends(deployment, [*ids("shop-1", ["urgent"]), *ids("shop-2", ["neighbour"])])
    place = in_order_of_arrival(deployment, "shop-1").index("urgent")

    # Within the next second of the flood, whatever this machine calls a second.
    assert place - before <= 60
    assert len(in_order_of_arrival(deployment, "shop-1")) < len(flood)


def test_slow_answers_of_one_connection_do_not_take_all_threads(deployment: Deployment) -> None:
    slow = [f"o-{number}" for number in range(40)]
    enqueue(deployment, "shop-1", slow, script=("slow:1.5+ok",))
    deployment.start_worker(CONCURRENCY="8")
    order = deployment.trackstar.order
    deployment.wait_until(lambda: sum(order("shop-1", each).truth.in_flight for each in slow) >= 6, "slow answers")
    enqueue(deployment, "shop-2", ["neighbour"])
    deployment.client.wait(record_id("neighbour", "shop-2"), 30)

    done = sum(row.ended for row in deployment.all() if row.connection_id == "shop-1")
    assert done < len(slow) / 2  # the neighbour did not wait for the flood to end


def test_an_outage_holds_its_connection_probes_it_and_lets_the_backlog_out_in_order(deployment: Deployment) -> None:
    deployment.trackstar.connect("shop-1", fault="503")
    names = [f"o-{number:03}" for number in range(60)]
    enqueue(deployment, "shop-1", names)
    deployment.start_worker()
    deployment.wait_until(lambda: deployment.hold_of("shop-1") == holds.OUTAGE, "the hold")
    enqueue(deployment, "shop-2", ["neighbour"])

    assert "succeeded" == deployment.client.wait(record_id("neighbour", "shop-2"), 30).status
    spent = deployment.trackstar.traffic("shop-1").writes
    assert spent < 200

    deployment.trackstar.connect("shop-1", fault=None)
    wait_for_ends(deployment, ids("shop-1", names), 90)

    assert deployment.hold_of("shop-1") is None
    assert [] == untruths(deployment, names, "shop-1")
    for kind in ("connection.held", "connection.resumed"):
        assert ["shop-1"] == [event["connection_id"] for event in await_events(deployment, kind)]
    assert deployment.trackstar.traffic("shop-1").writes <= spent + 5 + len(names)


def test_when_all_connections_fail_alike_trackstar_is_held_with_one_probe(deployment: Deployment) -> None:
    names = [f"o-{number}" for number in range(12)]
    for shop in SHOPS:
        deployment.trackstar.connect(shop, fault="502")
        enqueue(deployment, shop, [f"{shop}-{name}" for name in names])
    deployment.start_worker()
    all_held = {holds.TRACKSTAR_OUTAGE}
    deployment.wait_until(lambda: {deployment.hold_of(shop) for shop in SHOPS} == all_held, "the hold of all")

    assert 1 == len(await_events(deployment, "trackstar.held"))
    for shop in SHOPS:
        deployment.trackstar.connect(shop, fault=None)
    every = [record_id(f"{shop}-{name}", shop) for shop in SHOPS for name in names]
    wait_for_ends(deployment, every, 90)

    assert 1 == len(await_events(deployment, "trackstar.resumed"))
    assert {None} == {deployment.hold_of(shop) for shop in SHOPS}


def test_a_held_job_expires_on_time_and_truthfully_and_one_at_risk_is_announced(deployment: Deployment) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=12)).isoformat()
    with deployment.ledger.begin() as connection:
        holds.hold_by_operator(connection, "shop-1")
    enqueue(deployment, "shop-1", ["held"], send_by=soon)
    # Of two hundred a second apart, the last ones cannot be sent within twelve seconds at ten a second.
    deployment.trackstar.connect("shop-2", writes_per_second=10)
    at_risk = [f"h-{number:03}" for number in range(200)]
    enqueue(deployment, "shop-2", at_risk, send_by=soon)
    deployment.start_worker(WRITES_PER_SECOND="10")
    await_events(deployment, "cancellation.wont_make_it")
    wait_for_ends(deployment, [*ids("shop-1", ["held"]), *ids("shop-2", at_risk)], 60)
    warned = {event["order_id"] for event in events(deployment, "cancellation.wont_make_it")}
    held = deployment.record(record_id("held"))
    late = {row.order_id for row in deployment.all() if row.status == "expired" and row.connection_id == "shop-2"}

    assert ("expired", "not_cancelled", "never_sent") == (held.status, held.verdict, held.evidence)
    assert held.ended_at
    assert held.ended_at - datetime.fromisoformat(soon) < timedelta(seconds=5)
    assert late
    assert len(late & warned) > len(late) / 2
    assert [] == untruths(deployment, at_risk, "shop-2")


def test_a_rotated_token_is_used_by_a_running_worker_at_once(deployment: Deployment, vault: TokenVault) -> None:
    worker = deployment.start_worker()
    enqueue(deployment, "shop-1", ["before"])
    deployment.client.wait(record_id("before"), 30)
    deployment.trackstar.connect("shop-1", "rotated-token")
    deployment.add_connection(vault, "shop-1", "rotated-token")
    enqueue(deployment, "shop-1", ["after"])

    assert "succeeded" == deployment.client.wait(record_id("after"), 30).status
    assert 0 == deployment.trackstar.unauthorised
    assert worker.alive


def test_a_killed_worker_changes_neither_pace_nor_order(deployment: Deployment) -> None:
    names = [f"o-{number}" for number in range(150)]
    killed, _ = two_workers(deployment)
    with SlotLog(deployment.redis_url, "shop-1", PER_SECOND) as log:
        enqueue(deployment, "shop-1", names)
        deployment.wait_until(lambda: len(in_order_of_arrival(deployment, "shop-1")) > 30, "the flood to begin")
        killed.kill()
        enqueue(deployment, "shop-2", ["neighbour"])
        deployment.client.wait(record_id("neighbour", "shop-2"), 30)
        wait_for_ends(deployment, ids("shop-1", names), 90)

    keeps_the_pace(deployment, log, PER_SECOND)
    assert [] == untruths(deployment, names, "shop-1")
