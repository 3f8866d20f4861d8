"""What may stand on the Celery list. Every malformed message that a Celery worker is known to trip over is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from harness.messages import ALIEN, GOOD, IDS, JOB

from worker.envelope import ATTEMPT_BATCH, Call, UnacceptableMessage, read_call, write_call


@pytest.mark.parametrize(("raw", "reason"), [(each.raw, each.reason) for each in ALIEN], ids=[e.name for e in ALIEN])
def test_a_message_that_no_worker_can_run_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(UnacceptableMessage) as refusal:
        read_call(raw)

    assert reason == refusal.value.reason
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize("raw", [each.raw for each in GOOD], ids=[each.name for each in GOOD])
def test_a_message_in_any_form_that_celery_runs_is_understood(raw: bytes) -> None:
    call = read_call(raw)

    assert (call.args, call.kwargs) in (([IDS], {}), ([], JOB))


def test_what_celery_is_handed_is_read_back_as_the_same_call() -> None:
    call = Call(task=ATTEMPT_BATCH, id="t-1", args=[IDS], kwargs={})

    assert call == read_call(write_call(call))


def test_of_a_strangers_headers_nothing_reaches_celery() -> None:
    body = base64.b64encode(json.dumps([[IDS], {}, {"chain": [{"task": "other"}]}]).encode()).decode()
    stranger: dict[str, Any] = {
        "body": body,
        "content-type": "application/json",
        "headers": {
            "task": ATTEMPT_BATCH,
            "id": "t-1",
            "eta": "2099-01-01",
            "expires": "2001-01-01",
            "timelimit": "x",
        },
        "properties": {"body_encoding": "base64", "delivery_tag": "theirs", "delivery_info": {}, "priority": 9},
    }
    written = json.loads(write_call(read_call(json.dumps(stranger).encode())))

    assert not {"eta", "expires", "timelimit"} & set(written["headers"])
    assert [[IDS], {}, {}] == json.loads(written["body"])
    assert "theirs" != written["properties"]["delivery_tag"]
