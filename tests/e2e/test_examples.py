"""What `docs/examples` shows works: a producer against a real worker, receivers on requests that are really signed."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import requests
from harness.contract import FOLDER
from harness.ledgers import SLOW_LEDGERS
from harness.node import EXAMPLES, ROOT, node, run

from worker import read_stream_event
from worker.cancellation.signature import Signer
from worker.streams import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.deployment import Deployment

NEW, OLD, OTHER = (f"whsec_{base64.b64encode(letter * 32).decode()}" for letter in (b"n", b"o", b"x"))
SECONDS = 10


def in_node() -> list[str]:
    return [node(EXAMPLES), str(EXAMPLES / "receiver.mjs")]


def in_python() -> list[str]:
    return [sys.executable, str(ROOT / "docs" / "examples" / "python" / "receiver.py")]


# ---- a producer


@pytest.mark.deployment(ledgers=SLOW_LEDGERS)
def test_a_producer_in_node_has_an_order_cancelled_and_told_of(deployment: Deployment, shop: str) -> None:
    program = node(EXAMPLES)
    deployment.trackstar.add_order(shop, "1001")
    worker = deployment.start_worker(EVENT_SIGNING_SECRET=NEW)
    folder = worker.log.parent
    done = [
        run(program, EXAMPLES / "producer.mjs", shop, "1001", cwd=folder, REDIS_URL=deployment.redis_url)
        for _ in range(2)  # stated twice, it is one intent
    ]
    assert [(0, "")] * 2 == [(each.returncode, each.stderr) for each in done]
    assert done[0].stdout.startswith("order 1001 is on the inbox as entry ")

    deployment.wait_until(lambda: deployment.redis.xlen(EVENTS) >= 2, "both events")
    told = [read_stream_event(fields, NEW) for _, fields in deployment.redis.xrange(EVENTS)]
    assert 0 == worker.stop()
    assert ["cancellation.ended", "refund.released"] == [each.type for each in told][:2]
    (found,) = deployment.all()
    assert ("succeeded", "urgent", "oms") == (found.status, found.priority, found.requested_by)


def test_a_producer_in_node_says_where_redis_is_away(tmp_path: Path) -> None:
    done = run(
        node(EXAMPLES), EXAMPLES / "producer.mjs", "shop-1", "1001", cwd=tmp_path, REDIS_URL="redis://127.0.0.1:1"
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert "ECONNREFUSED" in done.stderr


# ---- receivers


class Receiver:
    """A receiver that runs, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{self.next_line().removeprefix('listening on ')}"

    def next_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return requests.post(self._url, data=body, headers=headers, timeout=SECONDS).status_code


@pytest.fixture(params=[in_node, in_python], ids=["node", "python"])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    command: Callable[[], list[str]] = request.param
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WEBHOOK_SECRET": NEW, "PORT": "0"}
    process = subprocess.Popen(
        command(), env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        yield Receiver(process)
        process.kill()


def body_of(type_: str) -> bytes:
    event = json.loads((FOLDER / "examples" / f"{type_}.json").read_text()) | {"note": "größer"}
    return json.dumps({"type": type_, "timestamp": event["at"], "data": event}, ensure_ascii=False).encode()


def signed(body: bytes, *secrets: str, ago: timedelta = timedelta()) -> dict[str, str]:
    return Signer(secrets or [NEW]).sign(json.loads(body)["data"]["id"], datetime.now(UTC) - ago, body)


def test_a_receiver_acts_once_on_what_is_signed(receiver: Receiver) -> None:
    bodies = [body_of(type_) for type_ in ("refund.released", "cancellation.ended", "refund.recalled")]
    told = [bodies[0], bodies[0], *bodies[1:]]

    assert [204] * 4 == [receiver.post(body, signed(body)) for body in told]
    assert ["pay back order 1001", "a person looks at order 1001"] == [receiver.next_line() for _ in range(2)]


def test_a_receiver_of_one_secret_takes_what_a_rotation_signs_with_two(receiver: Receiver) -> None:
    body = body_of("refund.refused")

    assert [204, 204] == [receiver.post(body, signed(body, *pair)) for pair in ((OTHER, NEW), (NEW, OLD))]
    assert "do not pay back order 1002" == receiver.next_line()


def test_a_receiver_refuses_what_is_forged_altered_old_or_long(receiver: Receiver) -> None:
    body = body_of("refund.released")
    good = signed(body)
    altered = body.replace(b'"order_id": "1001"', b'"order_id": "1002"')

    assert altered != body
    assert [400] * 5 == [
        receiver.post(altered, good),
        receiver.post(body, {}),
        receiver.post(body, signed(body, OTHER)),
        receiver.post(body, {**good, "webhook-id": "evt_1_1"}),
        receiver.post(body, signed(body, ago=timedelta(minutes=10))),
    ]
    assert 413 == receiver.post(b" " * 30_000, good)
    assert 204 == receiver.post(body, good)
    assert "pay back order 1001" == receiver.next_line()  # the first that was believed
