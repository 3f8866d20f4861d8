"""What an orchestrator hears: alive while its threads run, ready while it takes what is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests
from harness.deployment import through
from harness.truth import record_id
from sqlalchemy import make_url

if TYPE_CHECKING:
    from pathlib import Path

    from harness.deployment import Deployment, Worker

# What a worker says of itself does not depend on the kind of its ledger.
pytestmark = pytest.mark.deployment(ledgers=("sqlite",), settings={"HEALTH_PORT": "0"})


def ask(worker: Worker, probe: str) -> tuple[int, list[str]]:
    worker.wait_for_line("health.listening")
    port = worker.told("health.listening")["port"]
    answer = requests.get(f"http://127.0.0.1:{port}/{probe}", timeout=5)
    return answer.status_code, answer.json()["problems"]


def test_a_worker_that_takes_its_jobs_is_alive_and_ready(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    deployment.trackstar.add_order(shop, "o-1")
    deployment.client.wait(deployment.client.enqueue(shop, "o-1"), 30)

    assert (200, []) == ask(worker, "livez")
    assert (200, []) == ask(worker, "readyz")


def test_a_worker_without_redis_is_alive_and_unready_until_it_is_back(deployment: Deployment) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    deployment.redis_server.stop()
    deployment.wait_until(lambda: ask(worker, "readyz")[0] == 503, "the worker to turn unready", 60)

    assert (200, []) == ask(worker, "livez")
    assert ask(worker, "readyz")[1][0].startswith("Redis has not answered for")

    deployment.redis_server.start()
    deployment.wait_until(lambda: ask(worker, "readyz")[0] == 200, "the worker to be ready again")


def test_a_worker_that_is_connected_but_consumes_nothing_turns_unready_and_says_so(
    deployment: Deployment, shop: str, tmp_path: Path
) -> None:
    # What a wedged consumer looks like from outside: connected, alive, taking nothing.
    wedged = tmp_path / "wedged"
    wedged.touch()
    waiting = through("idle.py", "kombu.transport.redis:Channel._brpop_start", str(wedged))
    worker = deployment.start_worker(command=waiting)
    worker.wait_until_consuming()
    deployment.trackstar.add_order(shop, "o-1")
    deployment.client.enqueue(shop, "o-1")
    deployment.wait_until(lambda: ask(worker, "readyz")[0] == 503, "the worker to turn unready", 60)

    assert "has taken none of it" in ask(worker, "readyz")[1][0]
    assert (200, []) == ask(worker, "livez")

    wedged.unlink()
    deployment.client.wait(record_id("o-1"), 30)
    deployment.wait_until(lambda: ask(worker, "readyz")[0] == 200, "the worker to be ready again")


def test_a_port_that_is_taken_is_told_in_one_sentence(deployment: Deployment) -> None:
    taken = make_url(deployment.redis_url).port
    worker = deployment.start_worker(HEALTH_PORT=str(taken))

    assert 1 == worker.wait_until_dead()
    assert f"HEALTH_PORT is {taken}, which cannot be used" in worker.output
    assert "Traceback" not in worker.output
