"""What Trackstar says of connections, and its pages of orders, read loosely. Judges none of it; has no clock.

Of a list only what is asked for becomes an object. Instants stay in Trackstar's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import msgspec

from worker.cancellation.answer import MAX_ITEMS, ConnectionFacts, Kept, ListedConnection, Reply, read_reply
from worker.cancellation.freshness import MAX_PERIOD_SECONDS, MIN_PERIOD_SECONDS, CrawlStatus, Schedule
from worker.inputs.body import text_of
from worker.inputs.instants import read_instant, read_period
from worker.inputs.links import read_link
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

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDERS_CRAWL = "get_orders"
MAX_CONNECTIONS = 10_000  # of one page
MAX_ORDERS = 1_000  # of one page
_MAX_TOKEN_LENGTH = 4096  # of a page's token: it goes into an address
_MAX_DEPTH = 4  # at which a link is looked for: nobody documents where it stands
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)

_STATUSES = {
    "enabled": CrawlStatus.ENABLED,
    "disabled": CrawlStatus.DISABLED,
    "sync_in_progress": CrawlStatus.IN_PROGRESS,
    "first_sync_in_progress": CrawlStatus.IN_PROGRESS,
    "error": CrawlStatus.ERROR,
}


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = NOTHING
    next_token: msgspec.Raw = NOTHING
    id: msgspec.Raw = NOTHING
    syncing: msgspec.Raw = NOTHING


class _ConnectionFields(msgspec.Struct):
    id: msgspec.Raw = NOTHING
    sync_schedules: msgspec.Raw = NOTHING


class _ScheduleFields(msgspec.Struct):
    function_name: msgspec.Raw = NOTHING
    last_crawl_start: msgspec.Raw = NOTHING
    last_crawl_end: msgspec.Raw = NOTHING
    sync_frequency: msgspec.Raw = NOTHING
    in_progress: msgspec.Raw = NOTHING
    sync_status: msgspec.Raw = NOTHING


_envelope = msgspec.json.Decoder(_Envelope)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_connection = msgspec.json.Decoder(_ConnectionFields)
_schedule = msgspec.json.Decoder(_ScheduleFields)


def read_connection(status: int, content: bytes, **kept: Unpack[Kept]) -> Reply:
    """Read an answer to `GET /connections/{id}`: its `data` is an object in one guide, a list of one in another."""
    reply = read_reply(status, content, **kept)
    if reply.body != "object":
        return reply
    try:
        data = msgspec.json.decode(text_of(content)).get("data")
        raw = _items(_envelope.decode(document_of(content)), 1)
    except _UNREADABLE:
        return reply  # a number out of range, or nested beyond reason
    if isinstance(data, list) and len(data) == 1:
        (data,) = data
    return msgspec.structs.replace(reply, connection=_facts(data, raw[0])) if isinstance(data, dict) else reply


def _facts(data: dict[str, Any], raw: msgspec.Raw) -> ConnectionFacts:
    name, actions, errors = (data.get(key) for key in ("integration_name", "available_actions", "errors"))
    fields = _connection.decode(raw)
    return ConnectionFacts(
        integration_name=name if isinstance(name, str) else None,
        can_cancel="cancel_order" in actions if isinstance(actions, list) else None,
        errors=tuple(printable(str(error)) for error in errors[:MAX_ITEMS]) if isinstance(errors, list) else (),
        id=identifier(fields.id),
        schedule=_orders_schedule(fields.sync_schedules),
    )


def read_connections(status: int, content: bytes, **kept: Unpack[Kept]) -> Reply:
    """Read an answer to `GET /connections`: `connections`, up to 10,000 that have an id, and `next_token`.

    `data` may be a list, or an object where there is one connection.
    """
    reply = read_reply(status, content, most=0, **kept)
    envelope = _envelope_of(reply, content)
    if envelope is None:
        return reply
    reply = _with_page(msgspec.structs.replace(reply, more=False), envelope)
    try:
        items = _items(envelope, MAX_CONNECTIONS)
        found = tuple(_listed(items[:MAX_CONNECTIONS]))
    except _UNREADABLE:
        return msgspec.structs.replace(reply, more=True)  # nested beyond reason: something stands there
    return msgspec.structs.replace(reply, connections=found, more=reply.more or len(items) > MAX_CONNECTIONS)


def read_orders_page(status: int, content: bytes, **kept: Unpack[Kept]) -> Reply:
    """Read an answer to `GET /wms/orders`: up to 1,000 `orders`, and `next_token`."""
    reply = read_reply(status, content, most=MAX_ORDERS, **kept)
    envelope = _envelope_of(reply, content)
    return _with_page(reply, envelope) if envelope else reply


def read_crawl_request(status: int, content: bytes, **kept: Unpack[Kept]) -> Reply:
    """Read an answer to `POST /connections/sync`: the connection's `id`, and whether it is `syncing`."""
    reply = read_reply(status, content, **kept)
    envelope = _envelope_of(reply, content)
    if envelope is None:
        return reply
    syncing = value_of(envelope.syncing)
    return msgspec.structs.replace(reply, orders=(), syncing=syncing if isinstance(syncing, bool) else None)


def read_magic_link(status: int, content: bytes, **kept: Unpack[Kept]) -> Reply:
    """Read an answer to `POST /magic-links`: the first `url` in it that is a link, wherever it stands."""
    reply = read_reply(status, content, **kept)
    if reply.body != "object":
        return reply
    try:
        return msgspec.structs.replace(reply, orders=(), link=_link_in(document_of(content), _MAX_DEPTH))
    except _UNREADABLE:
        return reply


def _link_in(raw: msgspec.Raw, depth: int) -> str | None:
    if depth == 0:
        return None
    if is_list(raw):
        parts = first_items(raw, MAX_ITEMS)[:MAX_ITEMS]
    elif is_object(raw):
        fields = _fields.decode(raw)
        if "url" in fields and (link := read_link(value_of(fields["url"]))):
            return link
        parts = list(fields.values())[:MAX_ITEMS]
    else:
        return None
    return next((link for each in parts if (link := _link_in(each, depth - 1))), None)


def _envelope_of(reply: Reply, content: bytes) -> _Envelope | None:
    try:
        return _envelope.decode(document_of(content)) if reply.body == "object" else None
    except _UNREADABLE:
        return None


def _items(envelope: _Envelope, most: int) -> list[msgspec.Raw]:
    return first_items(envelope.data, most) if is_list(envelope.data) else [envelope.data]


def _with_page(reply: Reply, envelope: _Envelope) -> Reply:
    """Add the next page's token; where it cannot be used, that there is more."""
    if json_text(envelope.next_token) in {None, '""', "false", "{}", "[]"}:
        return reply
    token = identifier(envelope.next_token) or ""
    usable = 0 < len(token) <= _MAX_TOKEN_LENGTH
    return msgspec.structs.replace(reply, next_token=token if usable else None, more=reply.more or not usable)


def _listed(items: list[msgspec.Raw]) -> Iterator[ListedConnection]:
    for item in items:
        if is_object(item):
            fields = _connection.decode(item)
            connection_id = identifier(fields.id)
            if connection_id:
                yield ListedConnection(connection_id, _orders_schedule(fields.sync_schedules))


def _orders_schedule(raw: msgspec.Raw) -> Schedule | None:
    items = first_items(raw, MAX_ITEMS)[:MAX_ITEMS] if is_list(raw) else [raw]
    schedules = (_schedule.decode(item) for item in items if is_object(item))
    fields = next((each for each in schedules if value_of(each.function_name) == ORDERS_CRAWL), None)
    if fields is None:
        return None
    start, end = (read_instant(value_of(each)) for each in (fields.last_crawl_start, fields.last_crawl_end))
    return Schedule(
        start=start,
        end=end,
        frequency=read_period(value_of(fields.sync_frequency), least=MIN_PERIOD_SECONDS, most=MAX_PERIOD_SECONDS),
        status=_status(value_of(fields.in_progress), value_of(fields.sync_status), crawled=end is not None),
    )


def _status(in_progress: Any, said: Any, *, crawled: bool) -> CrawlStatus:
    if in_progress is True:
        return CrawlStatus.IN_PROGRESS
    if said is None and crawled:
        return CrawlStatus.ENABLED  # the word is missing, and crawls come
    return _STATUSES.get(said, CrawlStatus.UNKNOWN) if isinstance(said, str) else CrawlStatus.UNKNOWN
