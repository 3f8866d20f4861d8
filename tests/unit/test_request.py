"""What a cancel order job may hold, and which record it belongs to."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.request import (
    MAX_JOB_BYTES,
    MAX_METADATA_BYTES,
    CancelRequest,
    InvalidRequest,
    make_request,
    parse_request,
)
from worker.inputs.identifiers import problem_of_name

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

if TYPE_CHECKING:
    from collections.abc import Callable

anything_goes = settings(deadline=None)
MINIMAL = {"connection_id": "shop-1", "order_id": "A-1001"}
REASONS = {"not_json", "invalid_job", "too_large"}

# A name is anything that shows each of its characters (`tests/unit/test_identifiers.py`).
names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=255).filter(
    lambda name: name not in {".", ".."} and not name.startswith("cancel:") and problem_of_name(name) is None
)
instants = st.datetimes(timezones=st.just(UTC))


def job(**fields: Any) -> bytes:
    return json.dumps(MINIMAL | fields).encode()


def refusal(raw: bytes | str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(raw)
    return caught.value


class Offsetless(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta | None:
        return None


class Text(str):
    __slots__ = ()


def test_a_job_needs_only_a_connection_and_an_order() -> None:
    assert CancelRequest(connection_id="shop-1", order_id="A-1001") == parse_request(job())


def test_a_full_job_is_read_field_by_field() -> None:
    expected = CancelRequest(
        connection_id="shop-1",
        order_id="A-1001",
        idempotency_key="ticket 7",
        send_by=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        priority="urgent",
        requested_by="ada",
        reason="changed her mind",
        metadata={"ticket": 7, "ratio": 0.5, "vip": True, "note": None, "team": "A"},
        reference_id="REF-7",
        order_number="#1001",
        batch="monday",
        traceparent=TRACE,
        requested_at=datetime(2030, 1, 1, tzinfo=UTC),
    )

    read = parse_request(
        job(
            idempotency_key="ticket 7",
            send_by="2030-01-02T05:04:05+02:00",
            priority="urgent",
            requested_by="ada",
            reason="changed her mind",
            metadata={"ticket": 7, "ratio": 0.5, "vip": True, "note": None, "team": "A"},
            reference_id="REF-7",
            order_number="#1001",
            batch="monday",
            traceparent=TRACE,
            requested_at="2030-01-01T00:00:00Z",
        )
    )

    assert expected == read


@pytest.mark.parametrize("order_id", ["a/b", "a=b", "a+b", "a#b", "a?b", "a%2Fb", "a b", "...", "Ä-1", "📦", "a,b"])
def test_an_order_id_may_hold_what_a_warehouse_writes(order_id: str) -> None:
    assert order_id == parse_request(job(order_id=order_id)).order_id


@pytest.mark.parametrize(
    ("reason", "raw"),
    [
        pytest.param("not_json", b"", id="nothing"),
        pytest.param("not_json", b"  ", id="blank"),
        pytest.param("not_json", b"cancel A-1001", id="words"),
        pytest.param("not_json", job()[:-1], id="cut"),
        pytest.param("not_json", b"\xff\xfe", id="not text"),
        pytest.param("not_json", b'{"connection_id": "c", "order_id": "\xff"}', id="invalid UTF-8 in a value"),
        pytest.param("not_json", b'{"connection_id": "c", "order_id": "a\x00"}', id="raw NUL"),
        pytest.param("not_json", job(metadata={"a": float("nan")}), id="NaN"),
        pytest.param("not_json", job(order_id="\ud800"), id="half a surrogate pair, escaped"),
        pytest.param("not_json", '{"connection_id": "c", "order_id": "\ud800"}', id="half a surrogate pair in text"),
        pytest.param("invalid_job", b'{"metadata":' * 5_000, id="deep nesting, cut"),
        pytest.param("invalid_job", b"[]", id="list"),
        pytest.param("invalid_job", b"null", id="null"),
        pytest.param("invalid_job", b'"A-1001"', id="string"),
        pytest.param("invalid_job", b"{}", id="no field"),
        pytest.param("invalid_job", b'{"connection_id": "c"}', id="no order"),
        pytest.param("invalid_job", b'{"order_id": "o"}', id="no connection"),
        pytest.param("too_large", job(reason="x" * 1_000_000), id="1 MB"),
        pytest.param("too_large", b"[" * (MAX_JOB_BYTES + 1), id="one byte too many"),
    ],
)
def test_what_is_no_job_is_refused_with_its_reason(reason: str, raw: bytes | str) -> None:
    assert reason == refusal(raw).reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field} {what}")
        for field in ("connection_id", "order_id", "idempotency_key")
        for what, value in {
            "number": 7,
            "null": None,
            "list": ["a"],
            "blank": "  ",
            "no-break blank": "\u00a0",
            "line feed": "a\nb",
            "NUL": "a\x00",
            "delete": "a\x7f",
            "C1 control": "a\x85b",
            "too long": "x" * 256,
        }.items()
    ]
    + [
        pytest.param("connection_id", "", id="connection_id empty"),
        pytest.param("order_id", "", id="order_id empty"),
        pytest.param("order_id", ".", id="order_id dot"),
        pytest.param("order_id", "..", id="order_id dots"),
        pytest.param("priority", "high", id="priority unknown"),
        pytest.param("priority", None, id="priority null"),
        pytest.param("send_by", "2030-01-01T00:00:00", id="send_by naive"),
        pytest.param("send_by", "2030-01-01", id="send_by date"),
        pytest.param("send_by", "tomorrow", id="send_by words"),
        pytest.param("send_by", 1_893_456_000, id="send_by number"),
        pytest.param("send_by", 1_893_456_000.5, id="send_by fraction"),
        pytest.param("send_by", "2030-02-30T00:00:00Z", id="send_by no day"),
        pytest.param("send_by", "0000-01-01T00:00:00Z", id="send_by year 0"),
        pytest.param("send_by", "10000-01-01T00:00:00Z", id="send_by year 10000"),
        pytest.param("send_by", "0001-01-01T00:00:00+05:00", id="send_by before year 1 in UTC"),
        pytest.param("send_by", "9999-12-31T23:59:59-05:00", id="send_by after year 9999 in UTC"),
        pytest.param("requested_at", "0001-01-01T00:00:00+00:01", id="requested_at before year 1 in UTC"),
        pytest.param("requested_at", True, id="requested_at bool"),
        pytest.param("requested_by", 7, id="requested_by number"),
        pytest.param("requested_by", "x" * 1001, id="requested_by too long"),
        pytest.param("requested_by", "a\x00", id="requested_by NUL"),
        *(
            pytest.param(field, value, id=f"{field} {what}")
            for field in ("reference_id", "order_number", "batch")
            for what, value in {"number": 7, "list": ["a"], "NUL": "a\x00", "too long": "x" * 256}.items()
        ),
        pytest.param("reason", "x" * 1001, id="reason too long"),
        pytest.param("reason", "a\x00", id="reason NUL"),
        pytest.param("metadata", [], id="metadata list"),
        pytest.param("metadata", "a", id="metadata string"),
        pytest.param("metadata", {"a": {"b": 1}}, id="metadata nested object"),
        pytest.param("metadata", {"a": [1]}, id="metadata nested list"),
        pytest.param("metadata", {"a": "\x00"}, id="metadata NUL in a value"),
        pytest.param("metadata", {"a\x00": 1}, id="metadata NUL in a key"),
        pytest.param("metadata", {"a": "x" * MAX_METADATA_BYTES}, id="metadata over 4 KB"),
        pytest.param("metadata", {"a": "ä" * (MAX_METADATA_BYTES // 2)}, id="metadata over 4 KB in UTF-8"),
        pytest.param("orderid", "A-1001", id="unknown field"),
        pytest.param("Priority", "urgent", id="field in capitals"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(field: str, value: Any) -> None:
    error = refusal(job(**{field: value}))

    assert "invalid_job" == error.reason
    assert field in str(error)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param({"order_id": "x" * 255}, id="name of 255"),
        pytest.param({"idempotency_key": ""}, id="empty key means the default"),
        pytest.param({"reason": "x" * 1000}, id="text of 1000"),
        pytest.param({"metadata": {}}, id="empty metadata"),
        pytest.param({"metadata": {"a": "x" * (MAX_METADATA_BYTES - len('{"a":""}'))}}, id="metadata of 4 KB"),
        pytest.param({"send_by": "0001-01-01T00:00:00Z"}, id="first instant"),
        pytest.param({"send_by": "9999-12-31T23:59:59.999999Z"}, id="last instant"),
        pytest.param({"send_by": "9999-12-31T23:59:59+14:00"}, id="last local year, still in range"),
    ],
)
def test_a_field_at_its_limit_is_accepted(field: dict[str, Any]) -> None:
    assert make_request(MINIMAL | field) == parse_request(job(**field))


def test_metadata_nested_beyond_reason_is_refused_and_does_not_crash() -> None:
    nested = b'{"connection_id": "c", "order_id": "o", "metadata": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}"

    assert refusal(nested).reason in {"invalid_job", "not_json"}


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(job(**{"x" * 60_000: 1}), id="long unknown field"),
        pytest.param(job(priority="x" * 60_000), id="long value"),
        pytest.param(job(**{"a\x00\x1b[31m\nb": 1}), id="control characters in an unknown field"),
        pytest.param(job(priority="a\x00\nb"), id="control characters in a value"),
    ],
)
def test_the_sentence_of_a_refusal_is_bounded_and_fit_for_a_log_and_a_ledger(raw: bytes) -> None:
    sentence = str(refusal(raw))

    assert len(sentence) <= 500
    assert sentence.isprintable()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"order_id": "\ud800"}, id="half a surrogate pair in the order"),
        pytest.param({"priority": "\ud800"}, id="half a surrogate pair in the priority"),
        pytest.param({"requested_by": "\udc00"}, id="half a surrogate pair in a text"),
        pytest.param({"metadata": {"\ud800": 1}}, id="half a surrogate pair in a metadata key"),
        pytest.param({"metadata": {"a": "\ud800"}}, id="half a surrogate pair in a metadata value"),
        pytest.param({"\ud800": 1}, id="half a surrogate pair in a field name"),
        pytest.param({7: 1}, id="a field name that is a number"),
        pytest.param({"order_id": Text("A-1001")}, id="a string of another class"),
        pytest.param({"order_id": b"A-1001"}, id="bytes"),
        pytest.param({"order_id": None}, id="None"),
        pytest.param({"send_by": datetime(2030, 1, 1)}, id="naive datetime"),  # noqa: DTZ001
        pytest.param({"send_by": datetime(2030, 1, 1, tzinfo=Offsetless())}, id="datetime with an empty zone"),
        pytest.param({"send_by": date(2030, 1, 1)}, id="date"),
        pytest.param({"send_by": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))}, id="before year 1 in UTC"),
        pytest.param({"send_by": datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))}, id="after year 9999"),
        pytest.param({"metadata": {"a": float("nan")}}, id="metadata not a number"),
        pytest.param({"metadata": {"a": float("-inf")}}, id="metadata infinite"),
        pytest.param({"metadata": {"a": 10**5000}}, id="metadata a number of 5000 digits"),
        pytest.param({"metadata": {"a": object()}}, id="metadata an object"),
        pytest.param({"metadata": {1: "a"}}, id="metadata key a number"),
    ],
)
def test_python_values_that_break_a_rule_are_refused_like_a_job(fields: dict[Any, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_request(MINIMAL | fields)

    assert "invalid_job" == caught.value.reason


def test_an_instant_may_be_a_datetime_or_its_text() -> None:
    expected = datetime(2030, 1, 1, tzinfo=UTC)

    assert expected == make_request(MINIMAL | {"send_by": expected}).send_by
    assert expected == make_request(MINIMAL | {"send_by": "2030-01-01T01:00:00+01:00"}).send_by


def test_a_naive_instant_cannot_be_made_even_by_hand() -> None:
    with pytest.raises(ValueError, match="send_by"):
        CancelRequest(connection_id="c", order_id="o", send_by=datetime(2030, 1, 1))  # noqa: DTZ001


def test_a_job_leaves_unsaid_what_nobody_said() -> None:
    assert b'{"connection_id":"shop-1","order_id":"A-1001"}' == make_request(MINIMAL).to_json()


@anything_goes
@given(
    st.fixed_dictionaries(
        {"connection_id": names, "order_id": names},
        optional={
            "idempotency_key": names,
            "priority": st.sampled_from(["urgent", "normal", "bulk"]),
            "send_by": instants,
            "requested_at": instants,
            "metadata": st.dictionaries(
                st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=10),
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
                max_size=5,
            ),
        },
    )
)
def test_what_a_client_makes_the_intake_reads_unchanged(fields: dict[str, Any]) -> None:
    made = make_request(fields)

    assert made == parse_request(made.to_json())
    assert made.record_id == parse_request(made.to_json()).record_id


@anything_goes
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_a_known_reason(raw: bytes) -> None:
    assert refusal(raw).reason in REASONS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def reason_of(read: Callable[[Any], CancelRequest], fields: Any) -> str | None:
    try:
        read(fields)
    except InvalidRequest as error:
        return error.reason
    return None


@anything_goes
@given(st.dictionaries(st.sampled_from(CancelRequest.__struct_fields__) | st.text(max_size=5), json_values))
def test_an_arbitrary_object_is_a_job_or_refused_and_never_anything_else(fields: dict[str, Any]) -> None:
    assert reason_of(parse_request, json.dumps(fields)) in REASONS | {None}
    assert reason_of(make_request, fields) in REASONS | {None}


def test_the_record_id_is_the_same_for_ever() -> None:
    assert "ae2eb129-eda5-5aaf-b4a0-1fb965d9c339" == make_request(MINIMAL).record_id
    assert "831fccb4-be3e-52fb-9d1d-dac15b83ecf0" == make_request(MINIMAL | {"idempotency_key": "ticket 7"}).record_id


def test_the_record_belongs_to_the_intent_and_not_to_the_rest_of_the_job() -> None:
    said_more = MINIMAL | {
        "priority": "urgent",
        "reason": "late",
        "metadata": {"a": 1},
        "send_by": "2030-01-01T00:00:00Z",
    }

    assert make_request(MINIMAL).record_id == make_request(said_more).record_id


def test_a_key_stands_for_one_intent_whatever_order_it_names() -> None:
    keyed = MINIMAL | {"idempotency_key": "ticket 7"}

    assert make_request(keyed).record_id == make_request(keyed | {"order_id": "B-2"}).record_id


def test_the_default_key_said_aloud_is_the_same_intent() -> None:
    assert (
        make_request(MINIMAL).record_id
        == make_request(MINIMAL | {"idempotency_key": make_request(MINIMAL).intent_key}).record_id
    )


@anything_goes
@given(one=st.tuples(names, names), other=st.tuples(names, names))
def test_another_connection_or_another_key_is_another_record(one: tuple[str, str], other: tuple[str, str]) -> None:
    ids = {
        make_request({"connection_id": connection, "order_id": "o", "idempotency_key": key}).record_id
        for connection, key in (one, other)
    }

    assert len({one, other}) == len(ids)


@anything_goes
@given(st.sets(names, min_size=2, max_size=5))
def test_two_orders_never_share_a_default_key(order_ids: set[str]) -> None:
    keys = {make_request({"connection_id": "c", "order_id": order_id}).intent_key for order_id in order_ids}

    assert len(order_ids) == len(keys)


def test_the_longest_order_ids_keep_their_default_keys_apart_to_the_last_character() -> None:
    one, other = (make_request(MINIMAL | {"order_id": "x" * 254 + last}) for last in "ab")

    assert one.intent_key != other.intent_key
    assert one.record_id != other.record_id


def test_a_connection_and_an_order_are_never_read_across_their_border() -> None:
    one = make_request({"connection_id": "shop", "order_id": "1 A"})
    other = make_request({"connection_id": "shop 1", "order_id": "A"})

    assert one.record_id != other.record_id
