"""An event as it is told: its id, its length, and that a later reader keeps to what it does not know. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.event import (
    LONG,
    MAX_BYTES,
    SCHEMA,
    TYPES,
    CancellationEvent,
    Event,
    event_id,
    kind_of,
    make_event,
    number_of,
    read_event,
    write_event,
)
from worker.telemetry.events import STREAM_EVENTS

AT = datetime(2026, 11, 26, 12, 0, 0, 123456, tzinfo=UTC)
ORDER = {"connection_id": "shop-1", "order_id": "1001", "cancellation_id": "c-1"}
LONGEST = {
    **dict.fromkeys(("connection_id", "connection_name", "order_id"), "📦" * 255),
    **dict.fromkeys(("reference_id", "order_number"), "📦" * 255),
    **dict.fromkeys(("requested_by", "note", "by"), "📦" * 1000),
    "cancellation_id": "6f1d0c1e-94a5-5e0a-8a0e-3b1f5f6d2c47",
    "metadata": {f"key {number}": "\U0001f4e6" * 100 for number in range(9)},
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "as_of": AT, "known_by": AT, "send_by": AT, "expected_at": AT,
    "status": "rejected", "verdict": "not_cancelled", "evidence": "fresh_read_back", "needs_person": "x" * 40,
    "reason": "x" * 64,
}  # fmt: skip


def test_what_is_told_is_exactly_what_is_listed() -> None:
    assert set(STREAM_EVENTS) == set(TYPES)
    assert len(TYPES) == len(set(TYPES))


@pytest.mark.parametrize("type_", TYPES)
def test_each_field_that_is_listed_for_a_type_is_one_of_its_event(type_: str) -> None:
    fields = {*STREAM_EVENTS[type_].fields, *STREAM_EVENTS[type_].optional} - {"id"}

    assert fields <= {each.name for each in msgspec.structs.fields(kind_of(type_))}


@pytest.mark.parametrize("type_", TYPES)
def test_the_longest_event_stays_below_its_limit_and_names_what_it_left_out(type_: str) -> None:
    event = make_event(10**15, type_, AT, LONGEST)
    told = write_event(event)
    read = read_event(told)

    assert len(told) <= MAX_BYTES == 4096
    gone = [name for name in LONG if getattr(event, name, None) is not None and getattr(read, name) is None]
    assert sorted(gone) == sorted(read.left_out)
    assert read == msgspec.structs.replace(event, **dict.fromkeys(gone), left_out=read.left_out)


def test_what_is_longest_is_left_out_first_and_no_more_than_must_be() -> None:
    facts = {**ORDER, "requested_by": "x" * 2000, "note": "y" * 3000, "metadata": {"desk": 7}}
    read = read_event(write_event(make_event(7, "cancellation.ended", AT, facts)))

    assert ["note"] == read.left_out
    assert {"desk": 7} == getattr(read, "metadata", None)


def test_a_short_event_leaves_nothing_out() -> None:
    event = make_event(7, "cancellation.ended", AT, {**ORDER, "metadata": {"a": 1, "b": None, "c": 1.5, "d": True}})

    assert event == read_event(write_event(event))
    assert ([], SCHEMA) == (event.left_out, event.schema)


@given(number=st.integers(1, 10**15), micros=st.integers(0, 10**15))
def test_an_id_has_the_number_in_it_and_no_dot_and_another_instant_is_another_id(number: int, micros: int) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    named = event_id(number, at)

    assert number == number_of(named)
    assert "." not in named
    assert named != event_id(number, at + timedelta(microseconds=1))
    assert named == event_id(number, at)


@pytest.mark.parametrize("text", ["", "7", "evt_7", "evt__1", "evt_x_1", "evt_7_1 ", "evt_7_1\n", "evt_-7_1"])
def test_what_is_no_id_has_no_number(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize("kind", get_args(Event))
def test_a_reader_keeps_to_fields_and_words_that_it_does_not_know(kind: type[Any]) -> None:
    type_ = {"CancellationEvent": "refund.delayed", "ConnectionEvent": "connection.moved"}.get(kind.__name__, "odd")
    told = {**ORDER, "id": "evt_1_1", "type": type_, "schema": 1, "at": AT, "status": "new_word", "new": {"a": [1]}}
    read = read_event(msgspec.json.encode(told))

    assert isinstance(read, kind)
    assert (type_, "evt_1_1") == (read.type, read.id)


def test_what_an_older_release_wrote_of_a_cancellation_is_told() -> None:
    old = {"id": "c-1", "connection_id": "shop-1", "order_id": "1001", "generation": 1, "at": "2026-01-01T00:00:00Z"}
    event = make_event(3, "cancellation.replayed", AT, {**old, "cancellation_id": "c-1"})

    assert isinstance(event, CancellationEvent)
    assert ("c-1", AT, event_id(3, AT), "not yet") == (event.cancellation_id, event.at, event.id, event.safe_to_refund)
