"""What a message of the Celery list `cancellations` may be: read from bytes as a job, or refused with a reason.

Producers that speak Celery send the task `worker.cancel_order` with a job's fields as kwargs. Of such a message only
the kwargs and the header `traceparent` count: others (an expiry, a countdown, a chain) could drop or delay a job.
Knows Celery's protocols 2 and 1 as bytes; what a job may hold, `request` knows.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NoReturn

import msgspec

from worker.inputs.traceparent import read_traceparent

CANCEL_ORDER = "worker.cancel_order"


class UnacceptableMessage(ValueError):  # noqa: N818 - the word for it
    """The message is none that a worker can run. `reason` is a bounded snake_case word."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def read_message(raw: bytes) -> bytes:
    """Return the job of a message, as JSON. Raises UnacceptableMessage."""
    return _job(_json(raw, "not_json", "The message is not JSON."))


def read_unacknowledged(raw: bytes) -> bytes:
    """Return the job of a message as kombu keeps it until it is acknowledged. Raises UnacceptableMessage."""
    kept = _json(raw, "not_json", "The message is not JSON.")
    return _job(kept[0] if isinstance(kept, list) and kept else kept)


def _job(envelope: Any) -> bytes:
    if not isinstance(envelope, dict):
        _refuse("not_an_object", "The message is JSON, but no object.")
    properties = _part(envelope, "properties")
    if not isinstance(properties.get("delivery_tag"), str):
        _refuse("no_delivery_tag", "The message has no `delivery_tag` among its properties.")
    if not isinstance(properties.get("delivery_info"), dict):
        _refuse("no_delivery_info", "The message has no `delivery_info` among its properties.")
    body = _body(envelope, properties)
    headers = _part(envelope, "headers")
    if isinstance(body, dict) and "args" in body:  # protocol 1 keeps everything in the body
        headers, body = {**body, **headers}, [body["args"], body.get("kwargs", {}), {}]
    return _arguments(headers, body)


def _arguments(headers: dict[str, Any], body: Any) -> bytes:
    task, call_id = headers.get("task"), headers.get("id")
    if not isinstance(task, str):
        _refuse("no_task", "The message names no task.")
    if task != CANCEL_ORDER:
        _refuse("unknown_task", f"This list takes the task {CANCEL_ORDER} and no other.")
    if not isinstance(call_id, str) or not call_id:
        _refuse("no_id", "The message has no id.")
    if not isinstance(body, list) or len(body) != 3:  # noqa: PLR2004 - [args, kwargs, embed]
        _refuse("body_not_a_call", "The body is not a list of args, kwargs and options.")
    args, kwargs, _ = body
    if args != [] or not isinstance(kwargs, dict):
        _refuse("wrong_arguments", f"The task {CANCEL_ORDER} takes a job's fields as kwargs, and no args.")
    # Where a tracing library of the producer's puts it; a job's own field goes before it.
    trace = read_traceparent(headers.get("traceparent"))
    return msgspec.json.encode({"traceparent": trace, **kwargs} if trace else kwargs)


def _body(envelope: dict[str, Any], properties: dict[str, Any]) -> Any:
    if envelope.get("content-type", "application/json") != "application/json":
        _refuse("content_type", "The body is not of the content type application/json.")
    body = envelope.get("body")
    if isinstance(body, dict):
        return body
    if not isinstance(body, str):
        _refuse("no_body", "The message has no body.")
    if properties.get("body_encoding") != "base64":
        return _json(body, "body_not_json", "The body is not JSON.")
    try:
        content = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        _refuse("body_not_base64", "The body is not base64, though it says so.")
    return _json(content, "body_not_json", "The body is not JSON.")


def _json(text: str | bytes, reason: str, sentence: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        _refuse(reason, sentence)


def _part(envelope: dict[str, Any], name: str) -> dict[str, Any]:
    part = envelope.get(name)
    return part if isinstance(part, dict) else {}


def _refuse(reason: str, sentence: str) -> NoReturn:
    raise UnacceptableMessage(reason, sentence)
