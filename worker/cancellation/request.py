"""The one place that knows what a *cancel order* job may hold, and which record it belongs to.

The client asks it before sending and the intake after receiving. It does not know how a job travels.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite
from typing import Annotated, Any, Literal, NoReturn
from uuid import UUID, uuid5

import msgspec

from worker.errors import CancelError
from worker.inputs.identifiers import MAX_NAME_LENGTH, problem_of_name
from worker.inputs.text import printable
from worker.inputs.traceparent import read_traceparent

# Fixed for ever: another namespace would give every known intent a second record, and a second request.
RECORD_NAMESPACE = UUID("c1f0a1c2-6f0e-5d0b-9c55-3a8f4d0e7a11")

MAX_JOB_BYTES = 64 * 1024  # far above what the field limits below can add up to
MAX_METADATA_BYTES = 4 * 1024  # of compact JSON
MAX_TEXT_LENGTH = 1000  # requested_by and reason

DERIVED = "cancel:"  # before an order id: the key of a job that states none

Priority = Literal["urgent", "normal", "bulk"]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


_RECORD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_record_id(text: str) -> bool:
    """Whether this is written as a record's id is. Anything else is an unknown id, and no error of the database."""
    return _RECORD_ID.fullmatch(text) is not None


def named(record_id: str, record: Any) -> dict[str, str]:
    """Say which cancellation is meant, with its trace where it came with one: in each log line, alert and event."""
    names = {"id": record_id, "connection_id": record.connection_id, "order_id": record.order_id}
    return {**names, "traceparent": record.traceparent} if record.traceparent else names


class InvalidRequest(CancelError, ValueError):  # noqa: N818 - the field's word for it
    """The job cannot be accepted: correct it and send it again.

    `reason` is one of `not_json`, `no_job_field`, `invalid_job`, `too_large`: a metric label as it is.
    """

    def __init__(self, reason: str, message: str) -> None:
        # It may quote the job, so it is bounded and holds nothing that a log line or PostgreSQL cannot.
        super().__init__(printable(message))
        self.reason = reason


class CancelRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """One intent to cancel one order, as the producer stated it; invalid ones cannot be made."""

    connection_id: str
    order_id: str
    idempotency_key: str = ""
    send_by: Instant | None = None
    priority: Priority = "normal"
    requested_by: str | None = None
    reason: str | None = None
    metadata: dict[str, str | int | float | bool | None] | None = None
    reference_id: str | None = None  # the OMS's own numbers of the order, by which people look for it
    order_number: str | None = None
    batch: str | None = None  # what was enqueued together
    traceparent: Any = None  # W3C's, as text; what is none is dropped, and the order is cancelled all the same
    requested_at: Instant | None = None

    def __post_init__(self) -> None:
        if self.traceparent is not None:
            msgspec.structs.force_setattr(self, "traceparent", read_traceparent(self.traceparent))
        _check_name("connection_id", self.connection_id)
        _check_name("order_id", self.order_id)
        if self.order_id in {".", ".."}:
            _refuse("order_id", "may not be '.' or '..': they vanish from a URL path")
        if self.idempotency_key:
            _check_name("idempotency_key", self.idempotency_key)
            if self.idempotency_key.startswith(DERIVED) and self.idempotency_key != f"{DERIVED}{self.order_id}":
                _refuse("idempotency_key", f"begins with {DERIVED!r} and is the key of another order: use another one")
        _check_text("requested_by", self.requested_by)
        _check_text("reason", self.reason)
        for field in ("reference_id", "order_number", "batch"):
            _check_text(field, getattr(self, field), MAX_NAME_LENGTH)
        _check_instant("send_by", self.send_by)
        _check_instant("requested_at", self.requested_at)
        if self.metadata:
            _check_metadata(self.metadata)

    @property
    def intent_key(self) -> str:
        """The producer's key, or the one derived from the order: one intent to cancel per order."""
        return self.idempotency_key or f"{DERIVED}{self.order_id}"

    @cached_property
    def record_id(self) -> str:
        """UUIDv5 of (connection_id, intent_key): the id in the ledger, in logs, in Flower and at Trackstar."""
        # Neither part can hold a control character, so the line feed keeps any two pairs apart.
        return str(uuid5(RECORD_NAMESPACE, f"{self.connection_id}\n{self.intent_key}"))

    @property
    def named(self) -> dict[str, str]:
        """Which cancellation this is, as logs and events say it."""
        return named(self.record_id, self)

    def to_json(self) -> bytes:
        """Return the compact JSON object that goes on the inbox."""
        return msgspec.json.encode(self)


_decoder = msgspec.json.Decoder(CancelRequest)


def parse_request(job: bytes | str) -> CancelRequest:
    """Read one inbox entry's `job`.

    Raises InvalidRequest with a sentence that names the field and the remedy.
    """
    if len(job) > MAX_JOB_BYTES:
        raise InvalidRequest("too_large", f"The job is {len(job)} bytes long; {MAX_JOB_BYTES} is the most.")
    try:
        return _decoder.decode(job)
    except msgspec.ValidationError as error:
        raise InvalidRequest("invalid_job", f"The job is not acceptable: {error}.") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest("not_json", f"The job is not one JSON object in UTF-8: {error}.") from error


def make_request(fields: dict[str, Any]) -> CancelRequest:
    """Build a job from Python values (instants as `datetime` or ISO-8601 text).

    Raises InvalidRequest as `parse_request` does.
    """
    try:
        request = msgspec.convert(fields, CancelRequest)
        size = len(request.to_json())
    except (msgspec.ValidationError, UnicodeError, RecursionError, TypeError) as error:
        raise InvalidRequest("invalid_job", f"The job is not acceptable: {error}.") from error
    if size > MAX_JOB_BYTES:
        raise InvalidRequest("too_large", f"The job is longer than {MAX_JOB_BYTES} bytes of JSON.")
    return request


def _refuse(field: str, problem: str) -> NoReturn:
    raise ValueError(f"`{field}` {problem}")


def _check_name(field: str, value: str) -> None:
    if problem := problem_of_name(value):
        _refuse(field, problem)


def _check_text(field: str, value: str | None, most: int = MAX_TEXT_LENGTH) -> None:
    if value is None:
        return
    if len(value) > most:
        _refuse(field, f"is {len(value)} characters long; {most} is the most")
    if "\x00" in value:  # PostgreSQL's text cannot hold it
        _refuse(field, "has a NUL character")
    _check_unicode(field, value)


def _check_unicode(field: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(field, "has half of a surrogate pair, which is no Unicode text")


def _check_instant(field: str, value: datetime | None) -> None:
    if value is None:
        return
    if value.utcoffset() is None:
        _refuse(field, "has no offset from UTC")
    try:
        value.astimezone(UTC)
    except OverflowError:
        _refuse(field, "lies outside the years 1 to 9999 in UTC")


def _check_metadata(metadata: dict[str, Any]) -> None:
    for key, value in metadata.items():
        _check_text("metadata", key)
        if isinstance(value, str):
            if "\x00" in value:
                _refuse("metadata", "has a NUL character")
            _check_unicode("metadata", value)
        if isinstance(value, float) and not isfinite(value):
            _refuse("metadata", "has a number that JSON cannot write")
    size = len(msgspec.json.encode(metadata))
    if size > MAX_METADATA_BYTES:
        _refuse("metadata", f"is {size} bytes of JSON; {MAX_METADATA_BYTES} is the most")
