"""Writes `docs/contract`, what other systems rely on, from the code: `make contract`. A test compares.

Knows JSON Schema, and in words what each field means; what a job and an event hold, `worker.cancellation` knows. The
documents over the schemas are `contract_documents`'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from harness import golden
from harness.contract_documents import GROWS, asyncapi, openapi
from worker.cancellation.event import CancellationEvent, ConnectionEvent, ServiceEvent
from worker.cancellation.request import MAX_TEXT_LENGTH, CancelRequest
from worker.inputs.hints import Hint
from worker.inputs.identifiers import MAX_NAME_LENGTH

FOLDER = Path(__file__).parents[2] / "docs" / "contract"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS = (CancellationEvent, ConnectionEvent, ServiceEvent)

MEANINGS = {
    "as_of": "the instant of which the verdict is true",
    "at": "when it happened, in the ledger's time",
    "attempts": "requests that were sent in this generation",
    "batch": "what was enqueued together",
    "by": "the person who settled it",
    "cancellation_id": "of the cancellation: in the ledger, in Flower, and Trackstar's Idempotency-Key",
    "connection_id": "one customer's warehouse, as the workers' `connections` know it",
    "connection_name": "the name that people gave the connection",
    "connections": "how many connections",
    "count": "how many messages of this kind came",
    "dead_letter_id": "the number of the last one that is kept",
    "endpoint_id": "of the endpoint, as `endpoints list` shows it",
    "evidence": "what the verdict rests on",
    "expected_at": "when it is expected to be sent",
    "failures": "consecutive failures",
    "generation": "1, and one more with each replay",
    "id": "of the event, the same however often it is told: drop what you have seen",
    "idempotency_key": "one key is one intent; by default `cancel:` and the order id, which no other order may have",
    "kept": "how many of them are kept",
    "known_by": "by when it is known, where it is not yet",
    "left_out": "fields that are null only because the event would be longer than 4096 bytes",
    "metadata": "the job's own; 4096 bytes of JSON at most, and no personal data: it shows in tools",
    "needs_person": "why no later read settles it: a person must",
    "note": "why the person settled it so",
    "now": "it is tried at once",
    "order_id": "Trackstar's id of the order",
    "order_number": "the OMS's own number of the order",
    "percent": "how much of the limit of consecutive failures is reached; at 100 the endpoint is paused",
    "priority": "urgent goes before normal, and that before bulk, of the same connection",
    "problem": "what was wrong, in one word",
    "reason": "why, in one word; of a job, in words of its producer",
    "recalls": "what was told of the refund, and is not so",
    "reference_id": "the OMS's own id of the order",
    "requested_at": "when the OMS asked; the order of turn rests on it",
    "requested_by": "who asked, in the producer's words",
    "safe_to_refund": "yes: proven cancelled; no: proven that it was not; not yet: see `known_by` and `needs_person`",
    "schema": "rises when a field is taken away or comes to mean something else",
    "send_by": "after it the cancel is worthless, and is not sent",
    "source": "the stream or list from which it came",
    "status": "of our job, never of the order",
    "stream": "the stream that was repaired",
    "traceparent": "W3C Trace Context, of the job; what is none is dropped",
    "type": "what happened",
    "verdict": "what is known of the order",
}


# ---- JSON Schemas


def job_schema() -> dict[str, Any]:
    """Return the schema of a job; the intake also refuses what no schema can say, with a sentence."""
    schema = _bare(CancelRequest)
    for name, limits in _LIMITS.items():
        _text_of(schema["properties"][name]).update(limits)
    schema["properties"]["traceparent"] = {"type": ["string", "null"], **schema["properties"]["traceparent"]}
    schema["description"] = "One intent to cancel one order: the field `job` of an entry."
    return {"$schema": DIALECT, **schema}


_NAME = {"minLength": 1, "maxLength": MAX_NAME_LENGTH, "pattern": r"^\S(.*\S)?$"}
_TEXT = {"maxLength": MAX_TEXT_LENGTH, "pattern": r"^[^\u0000]*$"}
_SHORT = {**_TEXT, "maxLength": MAX_NAME_LENGTH}
_LIMITS: dict[str, dict[str, Any]] = {
    "connection_id": _NAME,
    "order_id": {**_NAME, "not": {"enum": [".", ".."]}},
    "idempotency_key": {**_NAME, "minLength": 0, "pattern": r"^(\S(.*\S)?)?$"},
    "requested_by": _TEXT,
    "reason": _TEXT,
    "reference_id": _SHORT,
    "order_number": _SHORT,
    "batch": _SHORT,
}


def event_schema() -> dict[str, Any]:
    """Return the schema of whatever event comes; one of `$defs` is of its type."""
    return {
        "$schema": DIALECT,
        "title": "Event",
        "description": GROWS,
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in KINDS],
        "$defs": {kind.__name__: _bare(kind) for kind in KINDS},
    }


def hint_schema() -> dict[str, Any]:
    """Return the schema of a hint."""
    schema = _bare(Hint)
    schema["properties"]["connection_id"].update(_NAME)
    _text_of(schema["properties"]["order_id"]).update(_NAME)
    return {"$schema": DIALECT, **schema}


def _bare(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the schema of one struct, each field with its meaning."""
    schema: dict[str, Any] = msgspec.json.schema(struct)["$defs"][struct.__name__]
    for name, field in schema["properties"].items():
        field["description"] = MEANINGS[name]
    return schema


def _text_of(field: dict[str, Any]) -> dict[str, Any]:
    """Return that part of a field's schema which is about text."""
    return next(each for each in (field, *field.get("anyOf", ())) if each.get("type") == "string")


# ---- files


def files() -> dict[str, str]:
    """Return each file's text, by its name in `docs/contract`."""
    examples = golden.files()
    documents = {
        "job.schema": job_schema(),
        "event.schema": event_schema(),
        "hint.schema": hint_schema(),
        "openapi": openapi(examples),
        "asyncapi": asyncapi(examples, examples["stream-entry"]["fields"]),
        **{f"examples/{name}": content for name, content in examples.items()},
    }
    return {f"{name}.json": _text(each) for name, each in documents.items()}


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    written = files()
    for release in sys.argv[1:]:
        written[f"releases/{release}.json"] = _text(golden.of_this_release())
    for name, text in written.items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(text)
