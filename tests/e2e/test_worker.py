"""One worker process as people and producers see it: what it opens, its end, what it tells and what it keeps quiet."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from harness.deployment import token_of
from harness.onlooker import Onlooker
from harness.truth import record_id
from sqlalchemy import make_url, update

from worker.ledger.schema import cancellations
from worker.streams import DEAD_LETTERS, EVENTS, INBOX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment

    from worker.ledger.record import Cancellation

PERSON = "Rosalind Franklin-Unmistakable"


@contextmanager
def celery_app(deployment: Deployment) -> Iterator[Celery]:
    """A producer or an onlooker that knows nothing of this package but its address."""
    with Celery("another", broker=deployment.redis_url, set_as_current=False) as app:
        yield app


def test_a_job_of_any_language_is_cancelled_and_its_outcome_told(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    deployment.start_worker()
    deployment.redis.xadd(INBOX, {"job": json.dumps({"connection_id": shop, "order_id": "o-1"})})
    ((_, ((_, fields),)),) = deployment.redis.xread({EVENTS: "0"}, count=1, block=30_000)

    assert b"cancellation.ended" == fields[b"type"]
    event = json.loads(fields[b"event"])
    assert ("succeeded", "cancelled", "yes") == (event["status"], event["verdict"], event["safe_to_refund"])
    assert record_id("o-1") == event["cancellation_id"]
    assert "cancelled" == deployment.trackstar.order(shop, "o-1").truth.status


def test_a_celery_producer_sends_a_task_with_the_same_fields(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    deployment.start_worker()
    with celery_app(deployment) as app:
        for _ in range(2):
            fields = {"connection_id": shop, "order_id": "o-1", "requested_by": "oms"}
            app.send_task("worker.cancel_order", kwargs=fields, queue="cancellations")
        ended = _wait(deployment, "o-1")

    assert ("succeeded", "cancelled", "oms") == (ended.status, ended.verdict, ended.requested_by)
    assert 1 == deployment.trackstar.order(shop, "o-1").truth.effective_cancels


def _wait(deployment: Deployment, order_id: str) -> Cancellation:
    deployment.wait_until(lambda: deployment.client.get(record_id(order_id)), f"the record of {order_id}")
    return deployment.client.wait(record_id(order_id), 30)


def test_a_bad_task_of_a_celery_producer_is_a_dead_letter_and_stops_nobody(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    deployment.start_worker()
    with celery_app(deployment) as app:
        app.send_task("worker.cancel_order", kwargs={"order": "o-1"}, queue="cancellations")
        app.send_task("worker.no_such_task", kwargs={"a": 1}, queue="cancellations")
        app.send_task("worker.attempt_batch", args=(["no id"],), queue="cancellations")
        app.send_task("worker.attempt_batch", kwargs={"nothing": 1}, queue="cancellations")
        app.send_task("worker.cancel_order", kwargs={"connection_id": shop, "order_id": "o-1"}, queue="cancellations")

    assert "succeeded" == _wait(deployment, "o-1").status
    deployment.wait_until(
        lambda: b"dead_letter.kept" in [fields[b"type"] for _, fields in deployment.redis.xrange(DEAD_LETTERS)],
        "the dead letter",
    )


def test_an_asked_worker_ends_with_0_after_what_is_in_flight(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "slow", script=["pause"])
    worker = deployment.start_worker()
    slow = deployment.client.enqueue(shop, "slow")
    deployment.trackstar.wait_for_pause(shop, "slow", 30)
    worker.process.terminate()
    worker.wait_for_line("takes nothing new")
    deployment.trackstar.release(shop, "slow")

    assert 0 == worker.process.wait(30)
    assert ("succeeded", 1) == (deployment.record(slow).status, deployment.record(slow).attempts)
    assert "worker.stopped" in worker.output


def test_an_idle_worker_ends_with_0(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()

    assert 0 == worker.stop()


def test_another_worker_goes_on_where_a_killed_one_was(deployment: Deployment, shop: str) -> None:
    """The dead one's request may have landed, so its key stays the same."""
    deployment.trackstar.add_order(shop, "o-1", script=["pause_applied+succeeded_then:reset"])
    first = deployment.start_worker()
    job = deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", 30)
    first.process.kill()
    first.process.wait()
    deployment.trackstar.release(shop, "o-1")
    with deployment.ledger.begin() as connection:  # let the time come at which its lease ends
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(cancellations).values(lease_expires_at=past))
    deployment.start_worker()
    ended = deployment.client.wait(job, 30)
    truth = deployment.trackstar.order(shop, "o-1").truth

    assert ("succeeded", "cancelled", "replayed_response") == (ended.status, ended.verdict, ended.evidence)
    reasons = [row["reason"] for row in deployment.timeline(job).attempts]
    assert ["worker_lost", "accepted", "read_cancelled"] == reasons
    assert ((job,), 1) == (truth.keys, truth.effective_cancels)


def test_a_worker_that_was_set_up_wrongly_says_in_one_sentence_what_to_change(deployment: Deployment) -> None:
    worker = deployment.start_worker(LEASE_SECONDS="10")

    assert 1 == worker.process.wait(30)
    assert "LEASE_SECONDS is 10" in worker.output
    assert "set it to at least" in worker.output
    assert "Traceback" not in worker.output


def test_no_secret_and_no_personal_data_leaves_the_ledger(deployment: Deployment, shop: str) -> None:
    document = {"ship_to_address": {"full_name": PERSON}}
    for order_id, script in {"a": [], "b": ["500"], "c": ["401"], "d": ["html"], "e": ["400:integration"]}.items():
        deployment.trackstar.add_order(shop, order_id, script=script, document=document)
    worker = deployment.start_worker()
    ids = [deployment.client.enqueue(shop, order_id) for order_id in "abde"]
    for job in ids:
        deployment.client.wait(job, 30)
    deployment.client.enqueue(shop, "c")
    deployment.wait_until(lambda: deployment.hold_of(shop) == "credentials", "the hold")
    for kind, count in ((b"cancellation.ended", len(ids)), (b"connection.held", 1)):
        deployment.wait_until(lambda: count == _told(deployment).count(kind), f"each {kind!r}")  # noqa: B023
    in_redis = _dump(deployment.redis)
    assert 0 == worker.stop()

    secrets = [token_of(shop), deployment.api_key, deployment.credential_key]
    assert [] == [secret for secret in [*secrets, PERSON] if secret in worker.output]
    assert [] == [secret for secret in [*secrets, PERSON] if secret.encode() in in_redis]
    assert ids[0].encode() in in_redis  # it is a dump indeed
    url = make_url(deployment.database_url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        kept = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        assert PERSON.encode() in kept  # the snapshot; so what follows means something
        assert [] == [secret for secret in secrets if secret.encode() in kept]


def _told(deployment: Deployment) -> list[bytes]:
    return [fields[b"type"] for _, fields in deployment.redis.xrange(EVENTS)]


def _dump(redis: Any) -> bytes:
    kinds = {
        b"string": redis.get,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        b"stream": redis.xrange,
    }
    return repr({key: kinds[redis.type(key)](key) for key in redis.scan_iter()}).encode()


def test_flower_follows_each_cancellation_under_its_own_id(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1", script=["503"])
    deployment.trackstar.add_order(shop, "o-2", status="fulfilled")
    deployment.start_worker()
    with celery_app(deployment) as app, Onlooker(app) as onlooker:
        onlooker.wait_for("worker-heartbeat")  # it hears
        good, bad = (deployment.client.enqueue(shop, order_id) for order_id in ("o-1", "o-2"))
        onlooker.wait_for("task-succeeded")
        onlooker.wait_for("task-failed")
    tasks = [event for event in onlooker.seen if event["type"].startswith("task-")]

    assert {good, bad} == {event["uuid"] for event in tasks}
    assert [
        *("task-sent", "task-received", "task-started"),
        *("task-sent", "task-retried", "task-received", "task-started"),
        "task-succeeded",
    ] == [event["type"] for event in tasks if event["uuid"] == good]
    assert ["task-sent", "task-received", "task-started", "task-failed"] == [
        event["type"] for event in tasks if event["uuid"] == bad
    ]
    received = next(event for event in tasks if event["uuid"] == good and "args" in event)
    assert ("cancel_order", "('shop-1', 'o-1')") == (received["name"], received["args"])
    assert "http_503" in next(event["exception"] for event in tasks if event["type"] == "task-retried")
    assert "rejected(refused_by_warehouse: not_cancelled)" == next(
        event["exception"] for event in tasks if event["type"] == "task-failed"
    )
