"""What came back from one HTTP request: a reply or no reply, read loosely. Does not judge it.

Every field of Trackstar's documents may be missing, null or of another type; nothing here raises for that.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypedDict, Unpack, cast

import msgspec

from worker.cancellation.freshness import Schedule
from worker.inputs.body import text_of
from worker.inputs.headers import LimitProblem, RateLimit, RetryAfter
from worker.inputs.identifiers import MAX_NAME_LENGTH
from worker.inputs.instants import read_instant
from worker.inputs.raw_json import (
    NOTHING,
    document_of,
    first_items,
    identifier,
    is_list,
    is_object,
    json_text,
    value_of,
)
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
    created_at: datetime | None = None
    reference_id: str | None = None  # the OMS's own numbers, bounded
    order_number: str | None = None


class ConnectionFacts(msgspec.Struct, frozen=True):
    """What `GET /connections/{id}` tells of a connection; None and empty where it does not."""

    integration_name: str | None
    can_cancel: bool | None  # `cancel_order` among its available actions
    errors: tuple[str, ...]
    id: str | None = None
    schedule: Schedule | None = None  # in Trackstar's time; None where no crawl of orders is named


class ListedConnection(msgspec.Struct, frozen=True):
    """What is looked at of one connection in the list of all."""

    id: str
    schedule: Schedule | None  # in Trackstar's time; None where no crawl of orders is named


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP answer that arrived whole."""

    status: int
    origin: Origin = "absent"
    body: Body = "empty"
    id: str | None = None  # the document's own top-level `id`
    orders: tuple[Order, ...] = ()  # `data`: one for a cancel or a single read, up to 100 for a list
    listed: bool = False  # `data` was a list
    more: bool = False  # it was longer than what is asked for, or its next page cannot be: more may stand behind it
    unused_fields: str | None = None  # JSON text as it came
    message: str | None = None  # `error` of an error document, bounded
    request_id: str | None = None
    replayed: bool = False
    retry_after: RetryAfter | None = None
    rate_limit: RateLimit | LimitProblem | None = None  # that the server allows this token
    date: datetime | None = None  # Trackstar's clock when it answered, to the second
    connection: ConnectionFacts | None = None  # where a connection was asked for
    connections: tuple[ListedConnection, ...] = ()  # where the list of all was asked for
    next_token: str | None = None  # of the next page, where pages were asked for
    syncing: bool | None = None  # where a crawl was asked for: whether it runs
    link: str | None = None  # where a magic link was asked for: https, and safe to show


class NoReply(msgspec.Struct, frozen=True):
    """No whole answer arrived. `sent` says whether the request may have reached Trackstar."""

    reason: NoReplyReason
    sent: bool
    detail: str | None = None
    status: int | None = None  # of an answer whose head arrived, and whose body did not


Answer = Reply | NoReply


class Kept(TypedDict, total=False):
    """What a reply keeps of an answer's head."""

    request_id: str | None
    replayed: bool
    retry_after: RetryAfter | None
    rate_limit: RateLimit | LimitProblem | None
    date: datetime | None


MAX_ITEMS = 100  # orders that are asked for at once; and shipments of one order


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = NOTHING
    id: msgspec.Raw = NOTHING
    unused_fields: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING
    origin: msgspec.Raw = NOTHING


class _OrderFields(msgspec.Struct):
    id: msgspec.Raw = NOTHING
    status: msgspec.Raw = NOTHING
    shipments: msgspec.Raw = NOTHING
    created_date: msgspec.Raw = NOTHING
    reference_id: msgspec.Raw = NOTHING
    order_number: msgspec.Raw = NOTHING


class _ShipmentFields(msgspec.Struct):
    status: msgspec.Raw = NOTHING


_envelope = msgspec.json.Decoder(_Envelope)
_order = msgspec.json.Decoder(_OrderFields)
_shipment = msgspec.json.Decoder(_ShipmentFields)

_SHIPPED_STATUSES = {"fulfilled", "partially_fulfilled"}


def read_reply(status: int, content: bytes, *, most: int = MAX_ITEMS, **kept: Unpack[Kept]) -> Reply:
    """Read an answer's body as far as it can be read, and up to `most` orders of a list."""
    try:
        # Decoding all of it first refuses bad text inside the parts that are kept unparsed.
        text = text_of(content)
        if not text or text.isspace():
            return Reply(status=status, body="empty", **kept)
        return _read_document(status, document_of(text), most, kept)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What is nested too deep differs: of a whole that can be skipped, a part may be too deep to be read.
        return Reply(status=status, body="not_json", **kept)


def _read_document(status: int, document: msgspec.Raw, most: int, kept: Kept) -> Reply:
    if not is_object(document):
        return Reply(status=status, body="other_json", **kept)
    envelope = _envelope.decode(document)
    listed = is_list(envelope.data)
    items = first_items(envelope.data, most) if listed else [envelope.data]
    return Reply(
        status=status,
        body="object",
        origin=_origin(envelope.origin),
        id=identifier(envelope.id),
        orders=tuple(_read_order(item) for item in items[:most] if is_object(item)),
        listed=listed,
        more=listed and len(items) > most,
        unused_fields=json_text(envelope.unused_fields),
        message=_message(envelope.error),
        **kept,
    )


def _read_order(raw: msgspec.Raw) -> Order:
    fields = _order.decode(raw)
    status = value_of(fields.status)
    status = status if isinstance(status, str) else None
    return Order(
        id=identifier(fields.id),
        status=printable(status) if status else None,
        shipped=status in _SHIPPED_STATUSES or _any_shipped(fields.shipments),
        document=json_text(raw) or "",
        created_at=read_instant(value_of(fields.created_date)),
        reference_id=_number(fields.reference_id),
        order_number=_number(fields.order_number),
    )


def _number(raw: msgspec.Raw) -> str | None:
    """Read a number that people use, a text or an integer, bounded; a blank one is none."""
    return printable(identifier(raw) or "")[:MAX_NAME_LENGTH].strip() or None


def _any_shipped(shipments: msgspec.Raw) -> bool:
    return is_list(shipments) and any(
        value_of(_shipment.decode(item).status) == "shipped"
        for item in first_items(shipments, MAX_ITEMS)[:MAX_ITEMS]
        if is_object(item)
    )


def _origin(raw: msgspec.Raw) -> Origin:
    value = value_of(raw)
    if value in {"trackstar", "integration"}:
        return cast("Origin", value)
    return "absent" if json_text(raw) is None else "other"


_NO_ERROR = {"false", '""', "{}", "[]", "0"}  # how some say that there is none


def _message(error: msgspec.Raw) -> str | None:
    text = json_text(error)
    if text is None or text in _NO_ERROR:
        return None
    value = value_of(error)
    return printable(value if isinstance(value, str) else text)
