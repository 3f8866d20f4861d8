"""Messages on the Celery list: each form that is a job, and malformed ones at which a plain Celery worker fails."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec

IDS = ["00000000-0000-5000-8000-000000000001"]
JOB = {"connection_id": "shop-1", "order_id": "from-celery"}


class Message(msgspec.Struct, frozen=True):
    name: str
    raw: bytes
    reason: str = ""


def envelope(
    content: Any = ([], JOB, {}), *, headers: dict[str, Any] | None = None, without: str = "", **changes: Any
) -> bytes:
    """Write a message in protocol 2 as Celery does, with changes."""
    properties = {
        "correlation_id": "t-1",
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "cancellations"},
        "delivery_tag": "d-1",
    }
    properties.pop(without, None)
    message = {
        "body": base64.b64encode(json.dumps(content).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "worker.cancel_order", "id": "t-1", "lang": "py"} if headers is None else headers,
        "properties": properties,
    }
    return json.dumps({**message, **changes}).encode()


def plain(body: str) -> dict[str, Any]:
    """Return the changes that make the body a text without base64."""
    info = {"delivery_info": {"exchange": "", "routing_key": "cancellations"}, "delivery_tag": "d-1"}
    return {"body": body, "properties": info}


ONE: dict[str, Any] = {"task": "worker.cancel_order", "id": "t-1"}

PICKLE: dict[str, Any] = {"content-type": "application/x-python-serialize"}

GOOD = [
    Message("as Celery writes it", envelope()),
    Message("a plain body", envelope(headers=ONE, **plain(json.dumps([[], JOB, {}])))),
    Message("protocol 1", envelope({**ONE, "args": [], "kwargs": JOB}, headers={})),
]

ALIEN = [
    Message("not JSON", b"\x00\xffnot json", "not_json"),
    Message("a JSON array", b"[1, 2]", "not_an_object"),
    Message("a JSON string", b'"hello"', "not_an_object"),
    Message("no delivery_tag", envelope(without="delivery_tag"), "no_delivery_tag"),
    Message("no delivery_info", envelope(without="delivery_info"), "no_delivery_info"),
    Message("no id", envelope(headers={"task": "worker.cancel_order"}), "no_id"),
    Message("no task", envelope(headers={"id": "t-1"}), "no_task"),
    Message("unknown task", envelope(headers={"task": "shop.charge", "id": "t-1"}), "unknown_task"),
    Message("body not a list", envelope({"just": "an object"}), "body_not_a_call"),
    Message("body not three parts", envelope([[], {}]), "body_not_a_call"),
    Message("bad base64", envelope().replace(b'"body": "', b'"body": "!'), "body_not_base64"),
    Message("undecodable body", envelope(headers=ONE, **plain("{half")), "body_not_json"),
    Message("no body", envelope().replace(b'"body":', b'"nobody":'), "no_body"),
    Message("pickle", envelope(**PICKLE), "content_type"),
    Message("wrong number of arguments", envelope((["a", "b", "c"], {}, {})), "wrong_arguments"),
    Message(
        "a batch of ours",  # which a worker sends to itself only
        envelope(([IDS], {}, {}), headers={"task": "worker.attempt_batch", "id": "t-1"}),
        "unknown_task",
    ),
]
