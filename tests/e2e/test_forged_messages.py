"""What a stranger who may publish, or write to a worker's own list, can do to a worker: nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.worker.control import Panel
from harness.truth import leftovers, record_id, untruths, wait_for_ends

from worker.broker.worker_queue import batch_message

if TYPE_CHECKING:
    from harness.deployment import Deployment, Worker

# What is forged reaches no ledger of any kind; what the ledger does about it is SQL like any other.
pytestmark = pytest.mark.deployment(ledgers=("postgresql",))

RAW = (
    b"",
    b"\x80\x04\x95",
    b"[]",
    b'"shutdown"',
    b"{}",
    b'{"body": null}',
    b'{"method": "shutdown"}',
    b"x" * 1_000_000,
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "add_consumer": {"queue": "cancellations"},
    "election": {"id": "1", "topic": "task", "action": {"task": "worker.attempt_batch", "args": [["nobody's"]]}},
    "hello": {"from_node": "a stranger", "revoked": {}},
    "pool_grow": {"n": 3},
    "pool_shrink": {"n": 3},
    "rate_limit": {"task_name": "worker.attempt_batch", "rate_limit": "1/h"},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}},
    "shutdown": {"msg": "go home"},
    "time_limit": {"task_name": "worker.attempt_batch", "hard": 0.1},
}


def own_list(worker: Worker) -> str:
    return f"cancellations.{worker.told('worker.started')['owner']}"


def forge_commands(app: Any, queue: str, job: str) -> None:
    """Send each command that Celery's workers know, as a program of an operator would."""
    by_id = {"revoke": {"task_id": job, "terminate": True}, "terminate": {"task_id": job, "signal": "KILL"}}
    known = ARGUMENTS | by_id | {"cancel_consumer": {"queue": queue}}
    for name in sorted(Panel.data):
        app.control.broadcast(name, arguments=known.get(name, {}))


def forge_raw_messages(deployment: Deployment) -> None:
    """Publish what no program of Celery's would, on each channel on which workers or Flower may listen."""
    for channel in (
        b"/0.celery.pidbox",
        b"/0.celeryev/worker.elect",
        b"/0.celeryev/*",
        *deployment.redis.pubsub_channels(),
    ):
        for raw in RAW:
            deployment.redis.publish(channel, raw)


@pytest.mark.parametrize("remote_control", ["false", "true"])
def test_nobody_ends_or_disturbs_a_worker_by_a_broadcast(
    deployment: Deployment, shop: str, remote_control: str
) -> None:
    worker = deployment.start_worker(CELERY_REMOTE_CONTROL=remote_control)
    worker.wait_until_consuming()
    deployment.trackstar.add_order(shop, "o-1", script=["pause"])
    job = deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", 30)
    with Celery("stranger", broker=deployment.redis_url, set_as_current=False) as app:
        forge_commands(app, own_list(worker), job)
        forge_raw_messages(deployment)
        forge_commands(app, own_list(worker), job)
        if remote_control == "true":  # it still answers
            deployment.wait_until(lambda: app.control.ping(timeout=1.0), "an answer")
        else:
            assert [] == app.control.ping(timeout=1.0)
    deployment.trackstar.release(shop, "o-1")
    deployment.trackstar.add_order(shop, "o-2")
    deployment.client.enqueue(shop, "o-2")
    wait_for_ends(deployment, [job, record_id("o-2")])

    assert [] == untruths(deployment, ["o-1", "o-2"], shop)
    assert {1} == {row.attempts for row in deployment.all()}
    assert worker.alive
    # Where it listens, what is no message makes it connect anew.
    assert "true" == remote_control or "Traceback" not in worker.output
    assert 0 == worker.stop()


def test_an_odd_id_in_a_batch_does_nothing_that_the_ledger_would_not(deployment: Deployment, shop: str) -> None:
    for order_id in ("done", "mine", "next"):
        deployment.trackstar.add_order(shop, order_id, script=["pause"] if order_id == "mine" else [])
    worker = deployment.start_worker()
    worker.wait_until_consuming()
    wait_for_ends(deployment, [deployment.client.enqueue(shop, "done")])
    other = deployment.start_worker()
    other.wait_until_consuming()
    in_flight = deployment.client.enqueue(shop, "mine")
    deployment.trackstar.wait_for_pause(shop, "mine", 30)
    forged: list[Any] = [
        [record_id("done")] * 100,
        [in_flight] * 100,
        [record_id("nobody's"), "", "x" * 100_000, "\x00", "'; DROP TABLE cancellations; --"],
        [None, 7, True, {}, [[record_id("done")]], 1e308],
        [f"{number}" for number in range(50_000)],
        {"ids": [record_id("done")]},
        "no list",
        None,
    ]
    for each in (worker, other):
        for ids in forged:
            deployment.redis.lpush(own_list(each), message(own_list(each), ids))
    deployment.wait_until(lambda: not deployment.messages(), "all that was forged to be taken")
    deployment.trackstar.release(shop, "mine")
    wait_for_ends(deployment, [in_flight, deployment.client.enqueue(shop, "next")])

    assert [] == untruths(deployment, ["done", "mine", "next"], shop)
    assert {1} == {len(order.truth.cancels) for order in deployment.trackstar.orders(shop)}
    assert {1} == {row.attempts for row in deployment.all()}
    for each in (worker, other):
        assert each.alive
        assert len(each.output) < 100_000
        assert 0 == each.stop()
    assert [] == leftovers(deployment)


def message(queue: str, ids: Any) -> bytes:
    """Write what a worker's list holds, with arguments of any form."""
    told = json.loads(batch_message(queue, ["one"]))
    return json.dumps({**told, "body": json.dumps([[ids], {}, {}])}).encode()
