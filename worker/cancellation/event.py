"""What an OMS is told, each event complete in itself: its fields, its id, and how it is written. A contract.

Pure: knows neither rows nor how an event travels. No field holds a token, a document of an order or anything personal
of a customer; `metadata`, `requested_by`, `by` and `note` are the OMS's own words.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.order_proof import RefundNews
from worker.cancellation.status import Evidence, SafeToRefund, Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA = 1  # rises when a field is taken away or comes to mean something else; a new field leaves it as it is
MAX_BYTES = 4096
# Of these the longest are left out until an event is no longer than that. The ledger has them still.
LONG = ("metadata", "note", "requested_by", "connection_name", "order_number", "reference_id", "by")

OF_A_CANCELLATION = (
    *("cancellation.already_ended", "cancellation.changed", "cancellation.contradicted", "cancellation.ended"),
    *("cancellation.known_by_moved", "cancellation.needs_person", "cancellation.replayed"),
    *("cancellation.verdict_raised", "cancellation.wont_make_it"),
    *(f"refund.{word}" for word in RefundNews),
)
OF_A_CONNECTION = (
    "connection.held",
    "connection.removed",
    "connection.resumed",
    "trackstar.held",
    "trackstar.resumed",
)
OF_ENDPOINTS = ("endpoint.failing", "endpoint.paused", "endpoint.removed")
OF_THE_SERVICE = (*OF_ENDPOINTS, "dead_letter.kept", "dead_letter.requeued", "stream.repaired")
TYPES = (*OF_A_CANCELLATION, *OF_A_CONNECTION, *OF_THE_SERVICE)
TEST = "endpoint.test"  # sent by `endpoints test` to one endpoint; in no feed and on no stream


def _one_of(words: Iterable[str]) -> msgspec.Meta:
    """Name the words that are known today: a reader keeps to one that it does not know, and does nothing about it."""
    return msgspec.Meta(extra_json_schema={"enum": [str(word) for word in words]})


# As `format` alone: a text that is no instant is refused when it is read, whatever its offset.
_Instant = Annotated[datetime, msgspec.Meta(extra_json_schema={"format": "date-time"})]
_StatusWord = Annotated[str, _one_of(Status)]
_VerdictWord = Annotated[str, _one_of(Verdict)]
_EvidenceWord = Annotated[str, _one_of(Evidence)]


class CancellationEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of one cancellation, as it stood at that instant; one of `refund.` is of its order."""

    id: str  # the same however often it is told: drop what you have seen
    type: Annotated[str, _one_of(OF_A_CANCELLATION)]
    schema: int = SCHEMA
    at: _Instant  # when it was written, in the ledger's time
    connection_id: str
    connection_name: str | None = None
    order_id: str
    reference_id: str | None = None  # the OMS's own numbers of the order
    order_number: str | None = None
    cancellation_id: str
    generation: int | None = None
    status: _StatusWord | None = None
    verdict: _VerdictWord | None = None
    evidence: _EvidenceWord | None = None
    as_of: _Instant | None = None  # the instant of which the verdict is true
    known_by: _Instant | None = None  # by when it is known, where it is not yet
    needs_person: str | None = None  # or why a person must look
    safe_to_refund: Annotated[str, _one_of(SafeToRefund)] = SafeToRefund.NOT_YET.value
    reason: str | None = None  # of the outcome
    attempts: int | None = None
    recalls: Annotated[str, _one_of((RefundNews.RELEASED, RefundNews.REFUSED))] | None = None  # what is not so
    priority: Annotated[str, _one_of(PRIORITY_RANK)] | None = None
    send_by: _Instant | None = None
    expected_at: _Instant | None = None  # when it is expected to be sent
    now: bool | None = None  # it is tried at once
    by: str | None = None  # the person who settled it
    note: str | None = None  # and why
    metadata: dict[str, str | int | float | bool | None] | None = None
    requested_by: str | None = None
    traceparent: str | None = None
    left_out: list[str] = []  # fields that are null only because the event would be too long


class ConnectionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of one connection, or of all (`trackstar.`)."""

    id: str
    type: Annotated[str, _one_of(OF_A_CONNECTION)]
    schema: int = SCHEMA
    at: _Instant
    connection_id: str | None = None
    connection_name: str | None = None
    reason: str | None = None
    connections: int | None = None  # how many
    left_out: list[str] = []


class ServiceEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the service itself: messages that could not be read, a stream that was repaired, an endpoint."""

    id: str
    type: Annotated[str, _one_of((*OF_THE_SERVICE, TEST))]
    schema: int = SCHEMA
    at: _Instant
    reason: str | None = None
    source: str | None = None
    count: int | None = None
    kept: int | None = None
    dead_letter_id: int | None = None
    stream: str | None = None
    problem: str | None = None
    endpoint_id: str | None = None
    percent: int | None = None  # of the limit of consecutive failures
    failures: int | None = None  # consecutive
    left_out: list[str] = []


Event = CancellationEvent | ConnectionEvent | ServiceEvent


def kind_of(type_: str) -> type[Event]:
    """Return what an event of a type is; of one that nobody knows yet, by its first word."""
    first = type_.partition(".")[0]
    if first in {"cancellation", "refund"}:
        return CancellationEvent
    return ConnectionEvent if first in {"connection", "trackstar"} else ServiceEvent


def make_event(number: int, type_: str, at: datetime, facts: dict[str, Any]) -> Event:
    """Make the event of the outbox's row `number`, of what is known of it."""
    made: Event = msgspec.convert({**facts, "id": event_id(number, at), "type": type_, "at": at}, kind_of(type_))
    return made


def example_for(endpoint_id: str, at: datetime) -> ServiceEvent:
    """Make the event by which a person tries an endpoint."""
    return ServiceEvent(id=event_id(0, at), type=TEST, at=at, endpoint_id=endpoint_id)


def write_event(event: Event) -> bytes:
    """Write an event as JSON, of MAX_BYTES at most."""
    text = msgspec.json.encode(event)
    while len(text) > MAX_BYTES and (name := _longest(event)):
        event = msgspec.structs.replace(event, **{name: None}, left_out=[*event.left_out, name])
        text = msgspec.json.encode(event)
    return text


def _longest(event: Event) -> str | None:
    sizes = {name: len(msgspec.json.encode(value)) for name in LONG if (value := getattr(event, name, None))}
    return max(sizes, key=lambda name: sizes[name], default=None)


def read_event(text: str | bytes) -> Event:
    """Read what `write_event` wrote, also in a later release. Raises msgspec.DecodeError."""
    read: Event = msgspec.json.decode(text, type=kind_of(msgspec.json.decode(text, type=_Typed).type))
    return read


class _Typed(msgspec.Struct):
    type: str


_ID = re.compile(r"evt_([0-9]{1,18})_[0-9]{1,20}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def event_id(number: int, at: datetime) -> str:
    """Return the id of an event: a ledger that was restored numbers its rows again, but not at the same instant."""
    return f"evt_{number}_{(at - _EPOCH) // _MICROSECOND}"


def number_of(id_: str) -> int | None:
    """Return the number of the outbox's row of which this is the id; None where it is no such id."""
    found = _ID.fullmatch(id_)
    return int(found[1]) if found else None
