"""What may stand on the Celery list. Every malformed message that a Celery worker is known to trip over is refused."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from harness.messages import ALIEN, GOOD, JOB, envelope

from worker.cancellation.celery_message import UnacceptableMessage, read_message, read_unacknowledged

if TYPE_CHECKING:
    from collections.abc import Callable

INFO = {"exchange": "", "routing_key": "cancellations"}


def kept(message: bytes) -> bytes:
    """Return a message as kombu keeps it from the moment it was taken until it is acknowledged."""
    return json.dumps([json.loads(message), "", "cancellations"]).encode()


@pytest.mark.parametrize(("raw", "reason"), [(each.raw, each.reason) for each in ALIEN], ids=[e.name for e in ALIEN])
def test_a_message_that_no_worker_can_run_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(UnacceptableMessage) as refusal:
        read_message(raw)

    assert reason == refusal.value.reason
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("raw", [each.raw for each in GOOD], ids=[each.name for each in GOOD])
def test_a_message_in_any_form_that_celery_runs_is_read_as_the_job_that_it_holds(raw: bytes) -> None:
    assert JOB == json.loads(read_message(raw))
    assert JOB == json.loads(read_unacknowledged(kept(raw)))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"{half", "not_json", id="not JSON"),
        pytest.param(b"[]", "not_an_object", id="an empty list"),
        pytest.param(b'["a", "b", "c"]', "not_an_object", id="a list that keeps no message"),
        pytest.param(kept(envelope(headers={"task": "shop.charge", "id": "t-1"})), "unknown_task", id="a stranger's"),
    ],
)
def test_what_was_taken_and_not_acknowledged_is_judged_as_strictly(raw: bytes, reason: str) -> None:
    with pytest.raises(UnacceptableMessage) as refusal:
        read_unacknowledged(raw)

    assert reason == refusal.value.reason


@pytest.mark.parametrize("content", [([JOB], {}, {}), ([], [JOB], {}), ([], "job", {}), (None, JOB, {})], ids=str)
def test_a_job_comes_as_kwargs_and_in_no_other_way(content: Any) -> None:
    with pytest.raises(UnacceptableMessage) as refusal:
        read_message(envelope(content))

    assert "wrong_arguments" == refusal.value.reason


@pytest.mark.parametrize("read", [read_message, lambda raw: read_unacknowledged(kept(raw))], ids=["new", "kept"])
def test_of_a_strangers_headers_nothing_gets_into_the_job(read: Callable[[bytes], bytes]) -> None:
    body = base64.b64encode(json.dumps([[], JOB, {"chain": [{"task": "other"}]}]).encode()).decode()
    stranger: dict[str, Any] = {
        "body": body,
        "content-type": "application/json",
        "headers": {
            "task": "worker.cancel_order",
            "id": "t-1",
            "eta": "2099-01-01",
            "expires": "2001-01-01",
            "timelimit": "x",
        },
        "properties": {"body_encoding": "base64", "delivery_tag": "theirs", "delivery_info": INFO, "priority": 9},
    }

    assert JOB == json.loads(read(json.dumps(stranger).encode()))


def test_a_refusal_quotes_nothing_of_the_message() -> None:
    for raw in (each.raw for each in ALIEN):
        with pytest.raises(UnacceptableMessage) as refusal:
            read_message(raw)

        assert "shop.charge" not in str(refusal.value)
