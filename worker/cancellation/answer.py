"""What came back from one HTTP request: a reply or no reply, read loosely. Does not judge it.

Every field of Trackstar's documents may be missing, null or of another type; nothing here raises for that.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from worker.inputs.headers import LimitProblem, RateLimit, RetryAfter
from worker.inputs.text import printable

Origin = Literal["trackstar", "integration", "other", "absent"]
Body = Literal["object", "other_json", "not_json", "empty"]
NoReplyReason = Literal[
    "connect_failed",
    "connect_timeout",
    "tls_failed",
    "read_timeout",
    "connection_lost",
    "cut_body",
    "body_too_large",
]


class Order(msgspec.Struct, frozen=True):
    """One order as Trackstar showed it."""

    id: str | None
    status: str | None
    shipped: bool  # goods have left, whole or in part
    document: str  # the JSON text as it came, unknown fields and nulls included


class ConnectionFacts(msgspec.Struct, frozen=True):
    """What `GET /connections/{id}` tells of a connection; None and empty where it does not."""

    integration_name: str | None
    can_cancel: bool | None  # `cancel_order` among its available actions
    errors: tuple[str, ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer that arrived whole."""

    status: int
    origin: Origin = "absent"
    body: Body = "empty"
    id: str | None = None  # the document's own top-level `id`
    orders: tuple[Order, ...] = ()  # `data`: one for a cancel or a single read, up to 100 for a list
    listed: bool = False  # `data` was a list
    unused_fields: str | None = None  # JSON text as it came
    message: str | None = None  # `error` of an error document, bounded
    request_id: str | None = None
    replayed: bool = False
    retry_after: RetryAfter | None = None
    rate_limit: RateLimit | LimitProblem | None = None  # that the server allows this token
    connection: ConnectionFacts | None = None  # where a connection was asked for


class NoReply(msgspec.Struct, frozen=True):
    """No whole answer arrived. `sent` says whether the request may have reached Trackstar."""

    reason: NoReplyReason
    sent: bool
    detail: str | None = None


Answer = Reply | NoReply


# Everything is kept unparsed at first: one number out of range may not spoil the rest of the document.
_NOTHING = msgspec.Raw()


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = _NOTHING
    id: msgspec.Raw = _NOTHING
    unused_fields: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    origin: msgspec.Raw = _NOTHING


class _OrderFields(msgspec.Struct):
    id: msgspec.Raw = _NOTHING
    status: msgspec.Raw = _NOTHING
    shipments: msgspec.Raw = _NOTHING


class _ShipmentFields(msgspec.Struct):
    status: msgspec.Raw = _NOTHING


_raw = msgspec.json.Decoder(msgspec.Raw)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_envelope = msgspec.json.Decoder(_Envelope)
_order = msgspec.json.Decoder(_OrderFields)
_shipment = msgspec.json.Decoder(_ShipmentFields)

_SHIPPED_STATUSES = {"fulfilled", "partially_fulfilled"}

# An emoji that a warehouse system cut in two. JSON's grammar allows it, Unicode text and msgspec do not. Every
# escape is matched, so that an escaped backslash before the word `ud83d` stays what it is.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)")


def read_reply(
    status: int,
    content: bytes,
    *,
    request_id: str | None = None,
    replayed: bool = False,
    retry_after: RetryAfter | None = None,
    rate_limit: RateLimit | LimitProblem | None = None,
) -> Reply:
    """Read an answer's body as far as it can be read."""
    kept = {"request_id": request_id, "replayed": replayed, "retry_after": retry_after, "rate_limit": rate_limit}
    if not content.strip():
        return Reply(status=status, body="empty", **kept)  # type: ignore[arg-type]
    try:
        # Decoding all of it first refuses bad UTF-8 inside the parts that are kept unparsed.
        return _read_document(status, content.decode(), kept)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What is nested too deep differs: of a whole that can be skipped, a part may be too deep to be read.
        return Reply(status=status, body="not_json", **kept)  # type: ignore[arg-type]


def _read_document(status: int, text: str, kept: dict[str, Any]) -> Reply:
    envelope = _read_envelope(text)
    if envelope is None:
        return Reply(status=status, body="other_json", **kept)
    return Reply(
        status=status,
        body="object",
        origin=_origin(envelope.origin),
        id=_identifier(envelope.id),
        orders=_orders(envelope.data),
        listed=_opens_with(envelope.data, b"["),
        unused_fields=_text(envelope.unused_fields),
        message=_message(envelope.error),
        **kept,
    )


def _read_envelope(text: str) -> _Envelope | None:
    try:
        document = _raw.decode(text)
    except msgspec.DecodeError:
        document = _raw.decode(_ESCAPE.sub(lambda match: r"\ufffd" if match["half"] else match[0], text))
    return _envelope.decode(document) if _opens_with(document, b"{") else None


def _orders(data: msgspec.Raw) -> tuple[Order, ...]:
    items = _raw_list.decode(data) if _opens_with(data, b"[") else [data]
    return tuple(_read_order(item) for item in items if _opens_with(item, b"{"))


def _read_order(raw: msgspec.Raw) -> Order:
    fields = _order.decode(raw)
    status = _value(fields.status)
    status = status if isinstance(status, str) else None
    return Order(
        id=_identifier(fields.id),
        status=printable(status) if status else None,
        shipped=status in _SHIPPED_STATUSES or _any_shipped(fields.shipments),
        document=_text(raw) or "",
    )


def _any_shipped(shipments: msgspec.Raw) -> bool:
    return _opens_with(shipments, b"[") and any(
        _value(_shipment.decode(item).status) == "shipped"
        for item in _raw_list.decode(shipments)
        if _opens_with(item, b"{")
    )


def read_connection(status: int, content: bytes, **kept: Any) -> Reply:
    """Read an answer to `GET /connections/{id}`: its `data` is an object in one guide, a list of one in another."""
    reply = read_reply(status, content, **kept)
    if reply.body != "object":
        return reply
    data = _value(_envelope.decode(content).data)
    if isinstance(data, list) and len(data) == 1:
        (data,) = data
    return msgspec.structs.replace(reply, connection=_facts(data)) if isinstance(data, dict) else reply


def _facts(data: dict[str, Any]) -> ConnectionFacts:
    name, actions, errors = (data.get(key) for key in ("integration_name", "available_actions", "errors"))
    return ConnectionFacts(
        integration_name=name if isinstance(name, str) else None,
        can_cancel="cancel_order" in actions if isinstance(actions, list) else None,
        errors=tuple(printable(str(error)) for error in errors) if isinstance(errors, list) else (),
    )


def _identifier(raw: msgspec.Raw) -> str | None:
    value = _value(raw)
    if isinstance(value, bool):
        return None
    return str(value) if isinstance(value, str | int) else None


def _origin(raw: msgspec.Raw) -> Origin:
    value = _value(raw)
    if value == "trackstar":
        return "trackstar"
    if value == "integration":
        return "integration"
    return "absent" if _text(raw) is None else "other"


def _message(error: msgspec.Raw) -> str | None:
    text = _text(error)
    if text is None:
        return None
    value = _value(error)
    return printable(value if isinstance(value, str) else text)


def _opens_with(raw: msgspec.Raw, bracket: bytes) -> bool:
    return bytes(raw).lstrip()[:1] == bracket


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw) if bytes(raw) else None
    except (msgspec.DecodeError, RecursionError):
        return None  # a number out of range, or nested beyond reason


def _text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text in {"", "null"} else text
