"""What Celery's own tools say of a worker: its events as celery-exporter counts them, and `celery inspect`.

The Redis of these tests has a password: nothing may tell it, and remote commands must pass as everything else does.
"""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from harness.deployment import API_KEY, CELERY, token_of
from harness.exporter import Exporter, Labels
from harness.onlooker import Onlooker

from worker.client import CancelClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment, Worker

REDIS_PASSWORD = "redis-password-of-the-tests"
NAME = "cancel@shelf-7"
RETRY_SECONDS = 6.0  # far more than a busy machine is late
OURS = Labels("cancel_order", "shelf-7", "cancellations")

pytestmark = pytest.mark.deployment(
    ledgers=("sqlite",),
    settings={"RETRY_BASE_SECONDS": f"{RETRY_SECONDS}", "CONCURRENCY": "7", "CELERY_REMOTE_CONTROL": "true"},
)


@pytest.fixture
def locked(deployment: Deployment) -> str:
    """Give the Redis of the deployment a password; return its address with it."""
    deployment.redis.config_set("requirepass", REDIS_PASSWORD)
    url = deployment.redis_url.replace("redis://", f"redis://:{REDIS_PASSWORD}@")
    deployment.env["REDIS_URL"] = url
    return url


@pytest.fixture
def oms(deployment: Deployment, locked: str) -> Iterator[CancelClient]:
    with closing(CancelClient(locked, deployment.database_url)) as client:
        yield client


@contextmanager
def stranger(url: str) -> Iterator[Celery]:
    """A Celery app that knows nothing of this package but its address."""
    with Celery("another", broker=url, set_as_current=False) as app:
        yield app


def start(deployment: Deployment) -> Worker:
    worker = deployment.start_worker(command=(*CELERY, "-n", NAME))
    worker.wait_until_consuming()
    return worker


def celery(deployment: Deployment, *words: str) -> str:
    """Return what `celery -A worker` says; none of its secrets is in it."""
    command = [CELERY[0], "-A", "worker", *words]
    ended = subprocess.run(command, env=deployment.env, capture_output=True, text=True, check=False, timeout=60)
    said = ended.stdout + ended.stderr
    assert 0 == ended.returncode, said
    for secret in (REDIS_PASSWORD, API_KEY, token_of("shop-1"), deployment.credential_key):
        assert secret not in said
    return said


def of_worker(said: str) -> Any:
    return json.loads(said.splitlines()[0])[NAME]


def test_celery_exporter_counts_what_came_of_each_cancellation(deployment: Deployment, shop: str, locked: str) -> None:
    for order_id in ("good-1", "good-2", "good-3"):
        deployment.trackstar.add_order(shop, order_id, script=["slow:0.3"])
    deployment.trackstar.add_order(shop, "late", script=["503"])
    deployment.trackstar.add_order(shop, "gone", status="fulfilled")
    with deployment.ledger.begin() as db:
        for order_id in ("good-1", "good-2", "good-3", "late", "gone"):
            deployment.client.enqueue(shop, order_id, session=db)
    enqueued = time.time()
    with stranger(locked) as app, Onlooker(app) as onlooker:
        start(deployment)
        onlooker.wait_for("worker-heartbeat")
        deployment.wait_until(lambda: all(each.ended for each in deployment.all()), "the last of five")
        deployment.wait_until(lambda: 5 == sum(map(_ends, onlooker.seen)), "the last of their events")
    seen = Exporter(onlooker.seen)
    began = min(event["timestamp"] for event in onlooker.seen if event["type"] == "task-started")

    assert {"task-sent": 6, "task-received": 6, "task-started": 6, "task-succeeded": 4, "task-failed": 1} | {
        "task-retried": 1
    } == {kind: count for (kind, labels), count in seen.tasks.items() if labels == OURS}
    assert {OURS} == {labels for _, labels in seen.tasks}
    assert 1 == sum(event["eta"] is not None for event in onlooker.seen if event["type"] == "task-sent")
    assert {"rejected": 1} == seen.exceptions
    assert {True: 3, False: 1} == {slow: [s >= 0.3 for s in seen.runtimes[OURS]].count(slow) for slow in (True, False)}
    *first, retry = seen.waits[OURS]
    assert 5 == len(first)
    assert all(began - enqueued - 0.1 <= wait <= began - enqueued + 10 for wait in first)
    assert retry < RETRY_SECONDS  # it was due at its eta: what it waited for on purpose is no wait
    assert {"shelf-7": True} == seen.up


def _ends(event: dict[str, Any]) -> bool:
    return event["type"] in ("task-succeeded", "task-failed")


def test_inspect_says_which_orders_are_in_flight(deployment: Deployment, shop: str, oms: CancelClient) -> None:
    for order_id in ("o-1", "o-2"):
        deployment.trackstar.add_order(shop, order_id, script=["pause"])
    worker = start(deployment)
    before = time.time()
    ids = {order_id: oms.enqueue(shop, order_id) for order_id in ("o-1", "o-2")}
    for order_id in ids:
        deployment.trackstar.wait_for_pause(shop, order_id, 30)
    tasks = of_worker(celery(deployment, "inspect", "active", "--json"))
    stats = of_worker(celery(deployment, "inspect", "stats", "--json"))

    assert {(ids[order_id], "cancel_order", shop, order_id) for order_id in ids} == {
        (task["id"], task["name"], *task["args"]) for task in tasks
    }
    assert {(NAME, worker.process.pid)} == {(task["hostname"], task["worker_pid"]) for task in tasks}
    assert all(before <= task["time_start"] <= time.time() for task in tasks)
    assert (7, 2, 5) == tuple(stats["pool"][name] for name in ("max-concurrency", "used", "free"))
    assert [worker.process.pid] == stats["pool"]["processes"]
    assert {"cancel_order": 2} == stats["total"]
    with stranger(deployment.env["REDIS_URL"]) as app:
        with Onlooker(app) as onlooker:
            onlooker.wait_for("worker-heartbeat")
        assert {"shelf-7": 2} == Exporter(onlooker.seen).active
        (found,) = app.control.inspect().query_task(ids["o-1"])[NAME].values()
        assert ("active", [shop, "o-1"]) == (found[0], found[1]["args"])
    for order_id in ids:
        deployment.trackstar.release(shop, order_id)
    deployment.wait_until(lambda: all(each.ended for each in deployment.all()), "both ends")

    assert "- empty -" in celery(deployment, "inspect", "active")


def test_the_other_commands_say_what_is_so_and_no_secret(deployment: Deployment, locked: str) -> None:
    start(deployment)

    assert "1 node online." in celery(deployment, "status")
    assert ["worker.attempt_batch", "worker.cancel_order"] == of_worker(
        celery(deployment, "inspect", "registered", "--json")
    )
    assert ["cancellations"] == [
        queue["name"] for queue in of_worker(celery(deployment, "inspect", "active_queues", "--json"))
    ]
    for words in (("report",), ("inspect", "report")):
        said = celery(deployment, *words)
        assert "celery:5.7" in said
        assert "redis:" in said
    for with_defaults in ("false", "true"):
        said = celery(deployment, "inspect", "conf", "--json", with_defaults)
        assert "cancellations" == of_worker(said)["task_default_queue"]
    with stranger(locked) as app:
        assert {NAME: {"ok": "pong"}} == app.control.inspect().ping()


def test_what_celery_cannot_do_here_is_refused_with_what_does_it(deployment: Deployment, locked: str) -> None:
    start(deployment)
    with stranger(locked) as app:
        (revoked,) = app.control.revoke("507e96a9-661c-5ec0-9111-e90849c68384", reply=True)
        (grown,) = app.control.pool_grow(3, reply=True)

    assert "withdraw" in revoked[NAME]["error"]
    assert "CONCURRENCY" in grown[NAME]["error"]
