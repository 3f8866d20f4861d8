"""A JSON document from outside in parts that stay text until they are asked for. Pure; knows no document's fields.

One number out of range may not spoil the rest, and millions of items in one list may not become objects.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from worker.inputs.body import text_of, without_halves

NOTHING = msgspec.Raw()  # what stands for a field that is missing

_raw = msgspec.json.Decoder(msgspec.Raw)


def document_of(content: bytes | str) -> msgspec.Raw:
    """Return the document, all of it checked; raises DecodeError, UnicodeError or RecursionError for what is none."""
    text = content if isinstance(content, str) else text_of(content)
    try:
        return _raw.decode(text)
    except msgspec.DecodeError:
        return _raw.decode(without_halves(text))


@cache
def _first(count: int) -> msgspec.json.Decoder[Any]:
    fields = [(f"item_{number}", msgspec.Raw, NOTHING) for number in range(count)]
    return msgspec.json.Decoder(msgspec.defstruct("_First", fields, array_like=True))


def first_items(raw: msgspec.Raw, most: int) -> list[msgspec.Raw]:
    """Return the first items of a list, one more than `most` where there are more; what stands behind is skipped."""
    return [item for item in msgspec.structs.astuple(_first(most + 1).decode(raw)) if item is not NOTHING]


def is_list(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def is_object(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{"


def value_of(raw: msgspec.Raw) -> Any:
    """Return a text, a number or a truth value; a list or an object, however large, is not looked into."""
    if bytes(memoryview(raw)[:1]) in {b"", b"[", b"{"}:
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None  # a number out of range


def json_text(raw: msgspec.Raw) -> str | None:
    """Return the JSON text as it came; None for nothing and for null."""
    text = bytes(raw).decode()
    return None if text in {"", "null"} else text


def identifier(raw: msgspec.Raw) -> str | None:
    value = value_of(raw)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
