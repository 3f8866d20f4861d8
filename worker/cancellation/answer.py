"""What came back from one HTTP request: a reply or no reply, read loosely. Does not judge it.

Every field of Trackstar's documents may be missing, null or of another type; nothing here raises for that.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

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

MAX_MESSAGE_LENGTH = 500  # of an error text that is kept: enough for a sentence, bounded for the ledger


class Order(msgspec.Struct, frozen=True):
    """One order as Trackstar showed it."""

    id: str | None
    status: str | None
    shipped: bool  # goods have left, whole or in part
    document: str  # the JSON text as it came, unknown fields and nulls included


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
    retry_after: float | None = None  # seconds


class NoReply(msgspec.Struct, frozen=True):
    """No whole answer arrived. `sent` says whether the request may have reached Trackstar."""

    reason: NoReplyReason
    sent: bool
    detail: str | None = None


Answer = Reply | NoReply


class _Envelope(msgspec.Struct):
    data: msgspec.Raw | None = None
    id: Any = None
    unused_fields: msgspec.Raw | None = None
    error: Any = None
    origin: Any = None


class _OrderFields(msgspec.Struct):
    id: Any = None
    status: Any = None
    shipments: Any = None


_envelope = msgspec.json.Decoder(_Envelope)
_order = msgspec.json.Decoder(_OrderFields)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])

_SHIPPED_STATUSES = {"fulfilled", "partially_fulfilled"}


def read_reply(
    status: int,
    content: bytes,
    *,
    request_id: str | None = None,
    replayed: bool = False,
    retry_after: float | None = None,
) -> Reply:
    """Read an answer's body as far as it can be read."""
    kept = {"request_id": request_id, "replayed": replayed, "retry_after": retry_after}
    if not content.strip():
        return Reply(status=status, body="empty", **kept)  # type: ignore[arg-type]
    try:
        # Decoding all of it first refuses bad UTF-8 inside the parts that are kept unparsed.
        envelope = _envelope.decode(content.decode())
    except msgspec.ValidationError:
        return Reply(status=status, body="other_json", **kept)  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Reply(status=status, body="not_json", **kept)  # type: ignore[arg-type]
    listed = envelope.data is not None and bytes(envelope.data).lstrip()[:1] == b"["
    return Reply(
        status=status,
        body="object",
        origin=_origin(envelope.origin),
        id=_identifier(envelope.id),
        orders=_orders(envelope.data, listed=listed),
        listed=listed,
        unused_fields=_text(envelope.unused_fields),
        message=_message(envelope.error),
        **kept,  # type: ignore[arg-type]
    )


def _orders(data: msgspec.Raw | None, *, listed: bool) -> tuple[Order, ...]:
    if data is None:
        return ()
    items = _raw_list.decode(data) if listed else [data]
    return tuple(order for item in items if (order := _read_order(item)))


def _read_order(raw: msgspec.Raw) -> Order | None:
    try:
        fields = _order.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None  # not an object: there is no order in it
    status = fields.status if isinstance(fields.status, str) else None
    return Order(
        id=_identifier(fields.id),
        status=status[:MAX_MESSAGE_LENGTH] if status else None,
        shipped=status in _SHIPPED_STATUSES or _any_shipped(fields.shipments),
        document=_text(raw) or "",
    )


def _any_shipped(shipments: Any) -> bool:
    return isinstance(shipments, list) and any(
        isinstance(shipment, dict) and shipment.get("status") == "shipped" for shipment in shipments
    )


def _identifier(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    return str(value) if isinstance(value, str | int) else None


def _origin(value: Any) -> Origin:
    if value == "trackstar":
        return "trackstar"
    if value == "integration":
        return "integration"
    return "absent" if value is None else "other"


def _message(error: Any) -> str | None:
    if error is None:
        return None
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    return printable(text)


def printable(text: str) -> str:
    """Bound a foreign text and drop what neither a terminal nor PostgreSQL can hold."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE_LENGTH])


def _text(raw: msgspec.Raw | None) -> str | None:
    return bytes(raw).decode() if raw is not None else None
