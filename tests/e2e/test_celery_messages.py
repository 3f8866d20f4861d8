"""The Celery list is a second inbox. Whatever stands there, or happens to Celery, stops no worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.deployment import through
from harness.messages import ALIEN, GOOD, JOB
from harness.truth import record_id
from sqlalchemy import select

from worker.ledger.schema import dead_letters as kept

if TYPE_CHECKING:
    from harness.deployment import Deployment

QUEUE = "cancellations"


def dead_letters(deployment: Deployment) -> list[tuple[str, str, bytes]]:
    with deployment.ledger.connect() as connection:
        d = kept.c
        return [tuple(row) for row in connection.execute(select(d.source, d.reason, d.raw).order_by(d.id))]


def test_each_malformed_message_is_a_dead_letter_and_the_next_job_is_done(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    for number, alien in enumerate(ALIEN):
        deployment.trackstar.add_order(shop, f"o-{number}")
        deployment.redis.lpush(QUEUE, alien.raw)
        deployment.client.wait(deployment.client.enqueue(shop, f"o-{number}"), 20)
    deployment.wait_until(lambda: len(dead_letters(deployment)) >= len(ALIEN), "the dead letters")

    assert [(QUEUE, alien.reason, alien.raw) for alien in ALIEN] == dead_letters(deployment)
    assert worker.alive
    assert 1 == worker.output.count("worker.started")
    assert "Connection to broker lost" not in worker.output
    assert 0 == deployment.redis.llen(QUEUE)


def test_malformed_messages_that_wait_for_a_worker_do_not_keep_it_from_starting(
    deployment: Deployment, shop: str
) -> None:
    for alien in ALIEN:
        deployment.redis.lpush(QUEUE, alien.raw)
    deployment.trackstar.add_order(shop, "o-1")
    deployment.client.enqueue(shop, "o-1")
    worker = deployment.start_worker()
    deployment.wait_until(lambda: len(dead_letters(deployment)) >= len(ALIEN), "the dead letters")

    assert "succeeded" == deployment.client.wait(record_id("o-1"), 20).status
    assert sorted((QUEUE, alien.reason, alien.raw) for alien in ALIEN) == sorted(dead_letters(deployment))
    assert worker.alive


def test_a_job_that_came_in_any_form_that_celery_runs_is_done(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, JOB["order_id"])
    deployment.start_worker()
    for good in GOOD:
        deployment.redis.lpush(QUEUE, good.raw)
    deployment.wait_until(lambda: deployment.client.get(record_id(JOB["order_id"])), "the record")

    assert "succeeded" == deployment.client.wait(record_id(JOB["order_id"]), 20).status
    assert [] == dead_letters(deployment)
    assert 1 == deployment.trackstar.order(shop, JOB["order_id"]).truth.effective_cancels


def test_an_error_that_celery_does_not_expect_or_ends_by_does_not_end_the_worker(
    deployment: Deployment, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    worker = deployment.start_worker(command=through("stumbling.py"))
    ended = deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30)

    assert "succeeded" == ended.status
    assert 2 == worker.output.count('"consumer.restarted"')
    assert worker.alive
    assert 0 == worker.stop()
