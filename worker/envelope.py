"""What a message on the Celery list may be, pure: read from bytes, refused with a reason, or written anew.

Celery is handed only what is written here. Of a message that somebody else put on the list no more than the task's
name, its id and its arguments survive: other headers (an expiry, a countdown, a chain) could drop or delay a job, and
some make Celery reconnect for ever or end the worker.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NoReturn
from uuid import uuid4

import msgspec

from worker.cancellation.request import is_record_id

QUEUE = "cancellations"
ATTEMPT_BATCH = "worker.attempt_batch"
CANCEL_ORDER = "worker.cancel_order"


class UnacceptableMessage(ValueError):  # noqa: N818 - the word for it
    """The message is none that a worker can run. `reason` is a bounded snake_case word."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A task to run: one of the two that this worker has, with arguments that fit it."""

    task: str
    id: str
    args: list[Any]
    kwargs: dict[str, Any]


def read_call(raw: bytes) -> Call:
    """Read a message of Celery's protocol 2, or 1. Raises UnacceptableMessage."""
    envelope = _json(raw, "not_json", "The message is not JSON.")
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
    return _checked(headers, body)


def _checked(headers: dict[str, Any], body: Any) -> Call:
    task, call_id = headers.get("task"), headers.get("id")
    if not isinstance(task, str):
        _refuse("no_task", "The message names no task.")
    if task not in _FITS:
        _refuse("unknown_task", f"This worker has no task of that name; it has {ATTEMPT_BATCH} and {CANCEL_ORDER}.")
    if not isinstance(call_id, str) or not call_id:
        _refuse("no_id", "The message has no id.")
    if not isinstance(body, list) or len(body) != 3:  # noqa: PLR2004 - [args, kwargs, embed]
        _refuse("body_not_a_call", "The body is not a list of args, kwargs and options.")
    args, kwargs, _ = body
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not _FITS[task](args, kwargs):
        _refuse("wrong_arguments", f"The arguments do not fit the task {task}.")
    return Call(task=task, id=call_id, args=args, kwargs=kwargs)


def _are_ids(args: list[Any], kwargs: dict[str, Any]) -> bool:
    return (
        not kwargs
        and len(args) == 1
        and isinstance(args[0], list)
        and all(isinstance(each, str) and is_record_id(each) for each in args[0])
    )


def _is_job(args: list[Any], kwargs: dict[str, Any]) -> bool:  # noqa: ARG001 - what is in a job, the intake judges
    return not args


_FITS = {ATTEMPT_BATCH: _are_ids, CANCEL_ORDER: _is_job}


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


def write_call(call: Call) -> bytes:
    """Write the message that Celery is handed. What is shown of its arguments is their number, never a value."""
    return msgspec.json.encode(
        {
            "body": msgspec.json.encode([call.args, call.kwargs, {}]).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {
                "lang": "py",
                "task": call.task,
                "id": call.id,
                "root_id": call.id,
                "retries": 0,
                "argsrepr": f"{len(call.args[0])} cancellations" if call.args else "one job",
                "kwargsrepr": "{}",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": call.id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": 0,
                # Ours: the same tag in two messages would make one of them forget the other.
                "delivery_tag": str(uuid4()),
            },
        }
    )
