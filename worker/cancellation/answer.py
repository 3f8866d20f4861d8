"""What came back from one HTTP request: a reply or no reply, read loosely. Does not judge it.

Every field of Trackstar's documents may be missing, null or of another type; nothing here raises for that.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import msgspec

from worker.inputs.body import text_of, without_halves
from worker.inputs.headers import LimitProblem, RateLimit, RetryAfter
from worker.inputs.text import printable

Origin = Literal["trackstar", "integration", "other", "absent"]
Body = Literal["object", "other_json", "not_json", "empty"]
NoReplyReason = Literal[
    "connect_failed",
    "connect_timeout",
    "tls_failed",
    "proxy_failed",
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
    more: bool = False  # it was longer than any list that is asked for, so what is missing here may stand behind it
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
    status: int | None = None  # of an answer whose head arrived, and whose body did not


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


# What stands behind these is skipped and never made into objects: millions of them fit into one answer.
MAX_ITEMS = 100  # orders that are asked for at once; and shipments of one order
_FirstItems = msgspec.defstruct(
    "_FirstItems", [(f"item_{number}", msgspec.Raw, _NOTHING) for number in range(MAX_ITEMS + 1)], array_like=True
)

_raw = msgspec.json.Decoder(msgspec.Raw)
_first_items = msgspec.json.Decoder(_FirstItems)
_envelope = msgspec.json.Decoder(_Envelope)
_order = msgspec.json.Decoder(_OrderFields)
_shipment = msgspec.json.Decoder(_ShipmentFields)

_SHIPPED_STATUSES = {"fulfilled", "partially_fulfilled"}


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
    try:
        # Decoding all of it first refuses bad text inside the parts that are kept unparsed.
        text = text_of(content)
        if not text or text.isspace():
            return Reply(status=status, body="empty", **kept)  # type: ignore[arg-type]
        return _read_document(status, text, kept)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What is nested too deep differs: of a whole that can be skipped, a part may be too deep to be read.
        return Reply(status=status, body="not_json", **kept)  # type: ignore[arg-type]


def _read_document(status: int, text: str, kept: dict[str, Any]) -> Reply:
    envelope = _read_envelope(text)
    if envelope is None:
        return Reply(status=status, body="other_json", **kept)
    listed = _opens_with(envelope.data, b"[")
    items = _items(envelope.data) if listed else [envelope.data]
    return Reply(
        status=status,
        body="object",
        origin=_origin(envelope.origin),
        id=_identifier(envelope.id),
        orders=tuple(_read_order(item) for item in items[:MAX_ITEMS] if _opens_with(item, b"{")),
        listed=listed,
        more=len(items) > MAX_ITEMS,
        unused_fields=_text(envelope.unused_fields),
        message=_message(envelope.error),
        **kept,
    )


def _read_envelope(text: str) -> _Envelope | None:
    try:
        document = _raw.decode(text)
    except msgspec.DecodeError:
        document = _raw.decode(without_halves(text))
    return _envelope.decode(document) if _opens_with(document, b"{") else None


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the first items of a list, one more than are looked at where there are more."""
    return [item for item in msgspec.structs.astuple(_first_items.decode(raw)) if item is not _NOTHING]


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
        for item in _items(shipments)[:MAX_ITEMS]
        if _opens_with(item, b"{")
    )


def read_connection(status: int, content: bytes, **kept: Any) -> Reply:
    """Read an answer to `GET /connections/{id}`: its `data` is an object in one guide, a list of one in another."""
    reply = read_reply(status, content, **kept)
    if reply.body != "object":
        return reply
    try:
        data = msgspec.json.decode(text_of(content)).get("data")
    except (msgspec.DecodeError, RecursionError):
        return reply  # a number out of range, or nested beyond reason
    if isinstance(data, list) and len(data) == 1:
        (data,) = data
    return msgspec.structs.replace(reply, connection=_facts(data)) if isinstance(data, dict) else reply


def _facts(data: dict[str, Any]) -> ConnectionFacts:
    name, actions, errors = (data.get(key) for key in ("integration_name", "available_actions", "errors"))
    return ConnectionFacts(
        integration_name=name if isinstance(name, str) else None,
        can_cancel="cancel_order" in actions if isinstance(actions, list) else None,
        errors=tuple(printable(str(error)) for error in errors[:MAX_ITEMS]) if isinstance(errors, list) else (),
    )


def _identifier(raw: msgspec.Raw) -> str | None:
    value = _value(raw)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _origin(raw: msgspec.Raw) -> Origin:
    value = _value(raw)
    if value in {"trackstar", "integration"}:
        return cast("Origin", value)
    return "absent" if _text(raw) is None else "other"


_NO_ERROR = {"false", '""', "{}", "[]", "0"}  # how some say that there is none


def _message(error: msgspec.Raw) -> str | None:
    text = _text(error)
    if text is None or text in _NO_ERROR:
        return None
    value = _value(error)
    return printable(value if isinstance(value, str) else text)


def _opens_with(raw: msgspec.Raw, bracket: bytes) -> bool:
    return memoryview(raw)[:1] == bracket


def _value(raw: msgspec.Raw) -> Any:
    """Return a text, a number or a truth value; a list or an object, however large, is not looked into."""
    if bytes(memoryview(raw)[:1]) in {b"", b"[", b"{"}:
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None  # a number out of range


def _text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text in {"", "null"} else text
