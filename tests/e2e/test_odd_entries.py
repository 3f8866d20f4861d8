"""Whole workers and what others put into Redis: it is set aside or repaired, it is named, and the next job is done."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import pytest
from harness.commands import run
from harness.ledgers import SLOW_LEDGERS
from sqlalchemy import select

from worker.dev.embedded import free_port
from worker.ledger.schema import dead_letters
from worker.streams import CELERY_LIST, EVENTS, INBOX

if TYPE_CHECKING:
    from harness.deployment import Deployment, Worker

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS)

LAST_ID = "18446744073709551615-18446744073709551615"


def peak_megabytes(worker: Worker) -> float:
    """Return the most memory that a process has used so far."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found.group(1)) / 1024


def kept(deployment: Deployment) -> list[tuple[str, str]]:
    with deployment.ledger.connect() as db:
        rows = db.execute(select(dead_letters.c.source, dead_letters.c.reason).order_by(dead_letters.c.id))
        return [(row.source, row.reason) for row in rows]


def is_done(deployment: Deployment, shop: str, order_id: str) -> bool:
    deployment.trackstar.add_order(shop, order_id)
    return "succeeded" == deployment.client.wait(deployment.client.enqueue(shop, order_id), 60).status


def ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.deployment(ledgers=SLOW_LEDGERS, settings={"CONCURRENCY": "4"})
def test_messages_of_any_length_cost_a_worker_no_memory_and_nobody_waits(deployment: Deployment, shop: str) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    assert is_done(deployment, shop, "before")
    before = peak_megabytes(worker)
    deployment.redis.xadd(INBOX, {"job": b"[" * 150_000_000})
    deployment.redis.lpush(CELERY_LIST, b"{}," * 6_000_000)

    assert is_done(deployment, shop, "after")
    deployment.wait_until(lambda: len(kept(deployment)) == 2, "both dead letters")
    assert {(INBOX, "too_large"), (CELERY_LIST, "too_large")} == set(kept(deployment))
    assert peak_megabytes(worker) < before + 30
    assert worker.alive


@pytest.mark.parametrize("stream", [INBOX, EVENTS])
def test_a_stream_whose_last_id_is_taken_by_a_stranger_is_repaired(
    deployment: Deployment, shop: str, stream: str
) -> None:
    worker = deployment.start_worker()
    worker.wait_until_ready()
    deployment.redis.xadd(stream, {"job": "x"}, id=LAST_ID)
    worker.wait_for_line("stream.repaired")

    assert {"stream": stream, "problem": "ids_ahead"}.items() <= worker.told("stream.repaired").items()
    assert is_done(deployment, shop, "after")
    deployment.wait_until(
        lambda: b"cancellation.ended" in [fields.get(b"type") for _, fields in deployment.redis.xrange(EVENTS)],
        "the event",
    )


def test_a_list_in_the_place_of_the_inbox_is_named_and_the_worker_is_not_ready(
    deployment: Deployment, shop: str
) -> None:
    deployment.redis.lpush(INBOX, "x")
    port = free_port()
    worker = deployment.start_worker(HEALTH_PORT=str(port))
    worker.wait_for_line("redis.refuses")

    sentence = f"{INBOX} holds a list, not a stream: rename or delete it"
    assert sentence == worker.told("redis.refuses")["remedy"]
    assert "WRONGTYPE" == worker.told("intake.unavailable")["error"]
    status, body = ready(port)
    assert (503, True) == (status, sentence in body)
    code, said = run(deployment, "enqueue", "o-1", "-c", shop)
    assert (3, True) == (code, sentence in said)
    deployment.redis.delete(INBOX)
    assert is_done(deployment, shop, "after")
    deployment.wait_until(lambda: ready(port)[0] == 200, "the worker to be ready")


def test_who_enqueues_what_has_ended_is_told_by_a_sentence_and_an_exit_code(deployment: Deployment, shop: str) -> None:
    deployment.start_worker()
    assert is_done(deployment, shop, "o-1")
    code, said = run(deployment, "enqueue", "o-1", "o-2", "-c", shop)

    assert 1 == code
    assert "order 'o-1'" in said
    assert "has ended already: succeeded" in said
    assert " o-2" in said
    deployment.redis.xadd(INBOX, {"job": json.dumps({"connection_id": shop, "order_id": "o-1"})})
    deployment.wait_until(
        lambda: (
            b"cancellation.already_ended" in [fields.get(b"type") for _, fields in deployment.redis.xrange(EVENTS)]
        ),
        "the event",
    )
    assert 1 == deployment.trackstar.order(shop, "o-1").truth.effective_cancels
