"""OpenAPI for webhooks, AsyncAPI for the streams in Redis: one message for each type of event, with an example.

Knows the two standards; what an event holds, the schemas beside them say, and what a type means, `telemetry.events`.
"""

from __future__ import annotations

import json
from typing import Any

from harness import golden
from worker.cancellation.event import SCHEMA, TEST, TYPES, kind_of
from worker.cancellation.signature import ID, SIGNATURE, TIMESTAMP
from worker.streams import DEAD_LETTERS, EVENTS, HINTS, INBOX, inbox_of
from worker.telemetry.events import STREAM_EVENTS

GROWS = (
    "Later releases add types, fields and words, and take none away while `schema` stays. Ignore a type or a field "
    "that you do not know, before you validate; a word that you do not know decides nothing."
)
JSON = "application/json"


# ---- OpenAPI: webhooks


def openapi(examples: dict[str, Any]) -> dict[str, Any]:
    """Return the document of what is sent to endpoints."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Webhooks of the Trackstar cancel worker",
            "version": str(SCHEMA),
            "description": f"By Standard Webhooks 1.0.0, at least once, in order for each cancellation. {GROWS}",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "https://{endpoint}", "variables": {"endpoint": _ENDPOINT}}],
        "security": [{"signature": []}],
        "tags": [{"name": "events", "description": "What became of cancellations, and of what carries them."}],
        "webhooks": {type_: {"post": _webhook(type_, examples[type_])} for type_ in (*TYPES, TEST)},
        "components": {
            "securitySchemes": {
                "signature": {"type": "apiKey", "in": "header", "name": SIGNATURE, "description": _SIGNED}
            },
            "parameters": {name: _header(name, meaning) for name, meaning in _HEADERS.items()},
        },
    }


_ENDPOINT = {"default": "oms.invalid/webhooks", "description": "your endpoint, as it was added"}
_SIGNED = (
    "`v1,` and base64 of the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}` by the endpoint's secret; "
    "several with a space between them while a secret is rotated. Each library of the standard verifies it."
)
_TESTED = "A person tries this endpoint: only verify it."
_HEADERS = {
    ID: "The event's `id`, the same over all tries.",
    TIMESTAMP: "When this try was sent, in whole seconds since 1970.",
}


def _header(name: str, meaning: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": meaning, "schema": {"type": "string"}}


def _webhook(type_: str, event: dict[str, Any]) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["type", "timestamp", "data"],
        "properties": {
            "type": {"const": type_},
            "timestamp": {"type": "string", "format": "date-time", "description": "when it happened: `data.at`"},
            "data": _of_type(type_),
        },
    }
    meaning = STREAM_EVENTS[type_].meaning if type_ in STREAM_EVENTS else _TESTED
    example = {"type": type_, "timestamp": event["at"], "data": event}
    content = {"schema": body, "examples": {type_: {"value": example}}}
    return {
        "operationId": type_.replace(".", "_"),
        "summary": meaning.partition(":")[0].removesuffix("."),
        "description": meaning,
        "tags": ["events"],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS],
        "requestBody": {"required": True, "content": {JSON: content}},
        "responses": {
            "2XX": {"description": "Received, within 15 seconds. Anything else is tried again, for three days."},
            "410": {"description": "Not wanted any more: the endpoint is removed."},
        },
    }


# ---- AsyncAPI: streams


def asyncapi(examples: dict[str, Any], entry: dict[str, str]) -> dict[str, Any]:
    """Return the document of the streams in Redis; `entry` is one that is signed."""
    messages = {type_: _event_message(type_, examples[type_], entry) for type_ in TYPES}
    job = json.dumps(examples["job.minimal"], separators=(",", ":"))
    messages["job"] = _message("job", "Cancel one order.", {"job": _json_text("job.schema.json")}, {"job": job})
    hint = golden.MINIMAL
    messages["hint"] = _message("hint", "Look again at an order.", {"$ref": "hint.schema.json"}, hint)
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Streams of the Trackstar cancel worker",
            "version": str(SCHEMA),
            "description": f"Redis streams; the fields of an entry are text. {GROWS}",
            "license": {"name": "MIT"},
        },
        "defaultContentType": JSON,
        "channels": {name: _channel(address, types) for name, (address, types) in _CHANNELS.items()},
        "operations": {
            name: {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
            for name, (action, channel, summary) in _OPERATIONS.items()
        },
        "components": {"messages": {_key(name): message for name, message in messages.items()}},
    }


_LETTERS = tuple(each for each in TYPES if each.startswith("dead_letter."))
_CHANNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "inbox": (INBOX, ("job",)),
    "producerInbox": (inbox_of("{producer}"), ("job",)),
    "hints": (HINTS, ("hint",)),
    "events": (EVENTS, tuple(each for each in TYPES if each not in _LETTERS)),
    "deadLetters": (DEAD_LETTERS, _LETTERS),
}
# As AsyncAPI has it, from the side of the workers.
_OPERATIONS = {
    "takeJobs": ("receive", "inbox", "Each job is in the ledger once, or a dead letter."),
    "takeJobsOfProducer": ("receive", "producerInbox", "The same, of a producer with a name, within its rights."),
    "takeHints": ("receive", "hints", "What was heard is not believed: the order is read."),
    "tellEvents": ("send", "events", "At least once; the newest 100,000 are kept. The feed has the others."),
    "tellDeadLetters": ("send", "deadLetters", "Of messages that could not be read, as counts."),
}


def _channel(address: str, types: tuple[str, ...]) -> dict[str, Any]:
    named = "as `cancel-worker producers add` was given it; the stream is who it is, and no job names it"
    return {
        "address": address,
        **({"parameters": {"producer": {"description": named}}} if "{producer}" in address else {}),
        "messages": {_key(each): {"$ref": f"#/components/messages/{_key(each)}"} for each in types},
    }


def _key(type_: str) -> str:
    return type_.replace(".", "_")


def _event_message(type_: str, event: dict[str, Any], entry: dict[str, str]) -> dict[str, Any]:
    fields = {
        "type": {"const": type_},
        "event": _json_text(_of_type(type_)),
        "event_id": {"type": "string", "description": "the number of the event in its ledger"},
        **{name: {"type": "string", "description": f"with EVENT_SIGNING_SECRET: {_KEYS[name]}"} for name in _KEYS},
    }
    number = event["id"].split("_")[1]
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
    example = entry if type_ == entry["type"] else {"type": type_, "event": text, "event_id": number}
    message = _message(type_, STREAM_EVENTS[type_].meaning, fields, example)
    message["payload"]["required"] = ["type", "event", "event_id"]
    return message


_KEYS = {
    ID: "the `id` of the event",
    TIMESTAMP: "when it was published, in whole seconds since 1970",
    SIGNATURE: "as of a webhook, over the bytes of the field `event`",
}


def _json_text(schema: str | dict[str, Any]) -> dict[str, Any]:
    content = {"$ref": schema} if isinstance(schema, str) else schema
    return {"type": "string", "contentMediaType": JSON, "contentSchema": content}


def _message(name: str, summary: str, fields: dict[str, Any], example: dict[str, str]) -> dict[str, Any]:
    payload = fields if "$ref" in fields else {"type": "object", "properties": fields, "required": list(fields)}
    return {"name": name, "summary": summary, "payload": payload, "examples": [{"payload": example}]}


def _of_type(type_: str) -> dict[str, Any]:
    """Return the schema of the events of one type."""
    kind = f"event.schema.json#/$defs/{kind_of(type_).__name__}"
    return {"allOf": [{"$ref": kind}, {"type": "object", "properties": {"type": {"const": type_}}}]}
