"""How a worker ends: asked once it finishes what is in flight; asked twice it ends at once; neither loses a job."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Self

import pytest
from harness.ledgers import SLOW_LEDGERS
from harness.settings import SHORT
from harness.truth import leftovers, record_id, untruths, wait_for_ends

if TYPE_CHECKING:
    from harness.deployment import Deployment, Worker

# A request may be in flight for as long as a test likes. Of five threads one connection alone takes four.
PATIENT = SHORT | {"REQUEST_TIMEOUT_SECONDS": "20", "LEASE_SECONDS": "52", "CONCURRENCY": "5"}
pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=PATIENT, writes_per_second=None)


def four_in_flight_and_more_behind(deployment: Deployment, shop: str) -> tuple[Worker, list[str]]:
    """Start a worker that waits for four answers, as many as one connection may, with more jobs behind them."""
    worker = deployment.start_worker()
    worker.wait_until_ready()
    orders = [f"o-{number}" for number in range(12)]
    for order_id in orders:
        deployment.trackstar.add_order(shop, order_id, script=["pause"])
    deployment.client.enqueue_many([{"connection_id": shop, "order_id": order_id} for order_id in orders])
    deployment.wait_until(lambda: len(in_flight(deployment, shop, orders)) == 4, "four requests")
    return worker, orders


def in_flight(deployment: Deployment, shop: str, orders: list[str]) -> list[str]:
    return [each for each in orders if deployment.trackstar.order(shop, each).truth.in_flight]


def statuses(deployment: Deployment) -> list[str]:
    return [row.status for row in deployment.all()]


def test_sigterm_finishes_what_is_in_flight_takes_nothing_new_and_gives_back_the_rest(
    deployment: Deployment, shop: str
) -> None:
    worker, orders = four_in_flight_and_more_behind(deployment, shop)
    started = in_flight(deployment, shop, orders)
    worker.send(signal.SIGTERM)
    worker.wait_for_line("takes nothing new")
    deployment.wait_until(lambda: 4 == statuses(deployment).count("in_flight"), "the rest to be given back")
    deployment.client.enqueue(shop, "o-new")
    for order_id in started:
        deployment.trackstar.release(shop, order_id)

    assert 0 == worker.wait_until_dead()
    assert {record_id(each) for each in started} == {row.id for row in deployment.all() if row.status == "succeeded"}
    assert {"succeeded", "pending"} == set(statuses(deployment))
    assert [] == [
        each for each in orders if each not in started and deployment.trackstar.order(shop, each).truth.cancels
    ]
    assert "Traceback" not in worker.output


@pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings=SHORT | {"CONCURRENCY": "5"}, writes_per_second=None)
@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGTERM, signal.SIGTERM), id="a second SIGTERM"),
        pytest.param((signal.SIGINT, signal.SIGINT), id="a second Ctrl+C"),
        pytest.param((signal.SIGQUIT,), id="SIGQUIT"),
        pytest.param((signal.SIGTERM, signal.SIGQUIT), id="SIGQUIT after SIGTERM"),
    ],
)
def test_an_impatient_end_is_at_once_and_loses_nothing(
    deployment: Deployment, shop: str, signals: tuple[signal.Signals, ...]
) -> None:
    worker, orders = four_in_flight_and_more_behind(deployment, shop)
    worker.send(signals[0])
    if len(signals) > 1:
        worker.wait_for_line("takes nothing new")
        worker.send(signals[1])
    asked = time.monotonic()

    assert 1 == worker.wait_until_dead(5)
    assert time.monotonic() - asked < 5

    for order_id in orders:
        deployment.trackstar.release(shop, order_id)
        deployment.trackstar.alter_order(shop, order_id, script=[])
    deployment.start_worker()
    wait_for_ends(deployment, [record_id(each) for each in orders])

    assert [] == untruths(deployment, orders, shop)


def test_a_worker_that_is_told_to_end_while_redis_and_its_answers_are_away_still_ends(
    deployment: Deployment, shop: str
) -> None:
    worker, orders = four_in_flight_and_more_behind(deployment, shop)
    deployment.redis.client_kill_filter(_type="normal")
    worker.send(signal.SIGTERM)
    for order_id in in_flight(deployment, shop, orders):
        deployment.trackstar.release(shop, order_id)

    assert 0 == worker.wait_until_dead()
    assert 4 == statuses(deployment).count("succeeded")


class Load:
    """A producer that enqueues an order every few milliseconds until it is told to stop, at most `most` of them."""

    def __init__(self, deployment: Deployment, shop: str, most: int = 400) -> None:
        self.orders: list[str] = []
        self._deployment, self._shop, self._most = deployment, shop, most
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.03) and len(self.orders) < self._most:
            order_id = f"o-{len(self.orders)}"
            self._deployment.trackstar.add_order(self._shop, order_id, script=["slow:0.1+ok"])
            self._deployment.client.enqueue(self._shop, order_id)
            self.orders.append(order_id)


def test_two_workers_restarted_in_turn_under_load_make_no_error_and_no_duplicate(
    deployment: Deployment, shop: str
) -> None:
    old = [deployment.start_worker(), deployment.start_worker()]
    for worker in old:
        worker.wait_until_ready()
    with Load(deployment, shop) as load:
        deployment.wait_until(lambda: len(load.orders) >= 20, "some load")
        for worker in old:
            fresh = deployment.start_worker()
            fresh.wait_until_ready()

            assert 0 == worker.stop()

    wait_for_ends(deployment, [record_id(each) for each in load.orders])
    deployment.wait_until(lambda: not leftovers(deployment), "Redis to be empty")

    assert [] == untruths(deployment, load.orders, shop)
    assert {1} == {len(deployment.trackstar.order(shop, each).truth.cancels) for each in load.orders}
    assert {"accepted"} == {row.outcome_reason for row in deployment.all()}
    for worker in deployment.workers:
        assert "Traceback" not in worker.output
        assert '"level": "error"' not in worker.output
