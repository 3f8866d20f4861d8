"""`/metrics` of real workers: each series moves when its thing happens; no order and no secret is in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import requests
from celery import Celery
from harness.deployment import API_KEY, token_of
from harness.settings import SHORT
from prometheus_client.parser import text_string_to_metric_families

from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.deployment import Deployment, Worker

# What is counted does not depend on the kind of the ledger; what is read from it, `test_gauges.py` tests on both.
pytestmark = pytest.mark.deployment(ledgers=("postgresql",), settings={"HEALTH_PORT": "0"})
FORGED = 'o"} 1\\ncancel_worker_forged_total 1'


def scraped(worker: Worker) -> str:
    worker.wait_for_line("health.listening")
    answer = requests.get(f"http://127.0.0.1:{worker.told('health.listening')['port']}/metrics", timeout=5)
    assert (200, "text/plain; version=0.0.4; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
    return answer.text


def total(worker: Worker, name: str, **labels: str) -> float:
    """Return the sum of a series over all labels that are not named."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(scraped(worker))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_each_series_moves_when_its_thing_happens(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker(REVISION="abc1234")
    for order in ("o-1", "o-2"):
        deployment.trackstar.add_order(shop, order)
        deployment.client.wait(deployment.client.enqueue(shop, order, priority="urgent"), 30)
    deployment.redis.xadd(INBOX, {"job": "no json"})
    deployment.wait_until(lambda: total(worker, "cancel_worker_dead_letters_total"), "the dead letter to be counted")

    def of(name: str, **labels: str) -> float:
        return total(worker, name, **labels)

    assert 2 == of("cancel_worker_accepted_total", source="inbox", priority="urgent")
    assert 2 == of("cancel_worker_ended_total", status="succeeded")
    assert 2 == of("cancel_worker_schedule_to_start_seconds_count", priority="urgent")
    assert 2 == of("cancel_worker_end_to_end_seconds_count", priority="urgent", status="succeeded")
    assert 2 == of("http_client_request_duration_seconds_count", http_request_method="PUT", server_address="127.0.0.1")
    assert 2 <= of("cancel_worker_permits_used_total", kind="write")
    assert 1 <= of("cancel_worker_claim_batch_size_count")
    assert 1 <= of("cancel_worker_record_batch_seconds_count")
    assert 1 == of("cancel_worker_dead_letters_total", reason="not_json")
    assert 1 == of("cancel_worker_ready")
    assert 32 == of("cancel_worker_slots")
    assert 1 == of("cancel_worker_build_info", revision="abc1234")
    assert 50 == of("cancel_worker_permits_allowed_per_second", kind="write")


def test_a_job_of_a_producers_own_transaction_counts_from_its_first_request_on(
    deployment: Deployment, shop: str
) -> None:
    deployment.trackstar.add_order(shop, "o-1")
    with deployment.ledger.begin() as db:
        cancellation_id = deployment.client.enqueue(shop, "o-1", session=db)
    worker = deployment.start_worker()
    deployment.client.wait(cancellation_id, 30)
    deployment.wait_until(lambda: total(worker, "cancel_worker_ended_total"), "its end to be counted")

    assert 0 == total(worker, "cancel_worker_accepted_total")
    assert 1 == total(worker, "cancel_worker_schedule_to_start_seconds_count", priority="normal")


@pytest.mark.deployment(
    ledgers=("postgresql",),
    settings={"HEALTH_PORT": "0", **SHORT},
    shops=("shop-1", "shop-2"),
    sync_seconds=0.2,
)
def test_what_goes_wrong_moves_its_series(deployment: Deployment, shop: str) -> None:
    scripts = {"late": ["open:0.3"], "left": ["open:ship:0.3"], "fast": ["429:0"], "broken": ["503"]}
    for order, script in scripts.items():
        deployment.trackstar.add_order(shop, order, script=script)
    deployment.trackstar.connect("shop-2", "another token")  # the one that the ledger has answers 401 from now on
    worker = deployment.start_worker()
    for order in scripts:
        deployment.client.enqueue(shop, order)
    deployment.client.enqueue("shop-2", "held")
    deployment.wait_until(lambda: deployment.hold_of("shop-2"), "the hold")
    deployment.client.enqueue("shop-2", "too late", send_by=datetime.now(UTC) + timedelta(seconds=2))
    with Celery("oms", broker=deployment.redis_url, set_as_current=False) as app:
        app.send_task("worker.cancel_order", kwargs={"connection_id": shop, "order_id": "?"}, queue="cancellations")

    def of(name: str, **labels: str) -> Callable[[], float]:
        return lambda: total(worker, name, **labels)

    for moves in (
        of("cancel_worker_accepted_total", source="celery", priority="normal"),
        of("cancel_worker_rate_limited_total"),
        of("http_client_request_duration_seconds_count", http_response_status_code="503", error_type="503"),
        of("cancel_worker_holds_total", reason="credentials"),
        of("cancel_worker_send_by_missed_total"),
        of("cancel_worker_verdicts_raised_total", verdict_from="accepted", verdict_to="cancelled"),
        of("cancel_worker_contradictions_total", verdict_from="accepted", verdict_to="not_cancelled"),
        of("cancel_worker_time_to_proof_seconds_count", evidence="read_back"),
        of("cancel_worker_permits_used_total", kind="read"),
        of("cancel_worker_connections_held", reason="credentials"),
    ):
        deployment.wait_until(moves, "a series to move")


@pytest.mark.deployment(ledgers=("postgresql",), settings={"HEALTH_PORT": "0", **SHORT})
def test_a_claim_of_a_worker_that_was_lost_counts_where_it_is_decided(deployment: Deployment, shop: str) -> None:
    deployment.trackstar.add_order(shop, "o-1", script=["pause+ok", "ok"])
    lost = deployment.start_worker()
    deployment.client.enqueue(shop, "o-1")
    deployment.trackstar.wait_for_pause(shop, "o-1", timeout=20)
    lost.kill()
    deployment.trackstar.release(shop, "o-1")
    other = deployment.start_worker()
    deployment.wait_until(lambda: total(other, "cancel_worker_rescued_total"), "the rescue")

    assert 1 == total(other, "cancel_worker_rescued_total")


def test_no_label_holds_an_order_a_person_a_connection_or_a_secret(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    deployment.trackstar.add_order(shop, FORGED)
    job = {
        "connection_id": shop,
        "order_id": FORGED,
        "requested_by": "ann@example.org",
        "reason": "PRIVATE",
        "metadata": {"PRIVATE": "PRIVATE"},
        "reference_id": "PRIVATE",
    }
    deployment.redis.xadd(INBOX, {"job": json.dumps(job)})
    deployment.redis.xadd(INBOX, {"job": json.dumps({**job, "priority": "PRIVATE"})})
    deployment.wait_until(lambda: total(worker, "cancel_worker_ended_total"), "the cancellation to be counted")
    deployment.wait_until(lambda: total(worker, "cancel_worker_dead_letters_total"), "the dead letter to be counted")

    text = scraped(worker)

    for secret in ("forged", "PRIVATE", "ann@", shop, API_KEY, token_of(shop), deployment.credential_key):
        assert secret not in text


@pytest.mark.deployment(ledgers=("postgresql",), settings={"HEALTH_PORT": "0", "METRICS_CONNECTIONS": "true"})
def test_connections_are_named_where_the_setting_says_so(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    deployment.wait_until(lambda: total(worker, "cancel_worker_connection_info", connection_id=shop), "its name")

    assert {True} == {
        line.startswith("cancel_worker_connection_info{") for line in scraped(worker).splitlines() if shop in line
    }


def test_a_redis_that_is_away_makes_no_error(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    deployment.redis_server.stop()
    deployment.wait_until(lambda: 0 == total(worker, "cancel_worker_ready"), "the worker to turn unready", 60)

    assert 0 == total(worker, "cancel_worker_ended_total", status="rejected")
    deployment.redis_server.start()
    deployment.wait_until(lambda: total(worker, "cancel_worker_ready"), "the worker to be ready again", 60)
