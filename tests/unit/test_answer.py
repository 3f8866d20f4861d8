"""What is read out of an answer: loosely, never raising, and the order kept as it came."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.answer import Order, Reply, read_reply
from worker.inputs.text import MAX_MESSAGE_LENGTH, printable

anything_goes = settings(deadline=None)

# Trackstar's own sample of a 200, from the project's founding document.
SAMPLE = """\
{
  "data": {
    "id": "order_id",
    "warehouse_customer_id": "warehouse_customer_id",
    "warehouse_id": "warehouse_id",
    "created_date": "2022-01-01T00:00:00Z",
    "updated_date": "2022-01-02T05:05:05Z",
    "reference_id": "order_reference_id",
    "order_number": "order_number",
    "status": "open",
    "raw_status": "raw_status",
    "channel": "channel_id",
    "channel_object": {},
    "type": "d2c",
    "trading_partner": "Target",
    "shipping_method": "shipping_method_id",
    "is_third_party_freight": false,
    "third_party_freight_account_number": "123456",
    "first_party_freight_account_number": "123456",
    "invoice_currency_code": "USD",
    "total_price": 13.49,
    "total_tax": 1.5,
    "total_discount": 2.5,
    "total_shipping": 3.5,
    "ship_to_address": {
      "full_name": "John Doe",
      "company": "Company",
      "address1": "123 Main St",
      "address2": "Apt 2",
      "address3": "Floor 3",
      "city": "New York",
      "state": "NY",
      "postal_code": "10001",
      "country": "United States"
    },
    "line_items": [
      {
        "product_id": "product_id",
        "sku": "sku",
        "quantity": 1,
        "unit_price": 10.99,
        "is_picked": false,
        "discount_amount": 1.5
      }
    ],
    "tags": [
      "tag_0"
    ],
    "required_ship_date": "2021-01-01T12:00:00Z",
    "saturday_delivery": false,
    "signature_required": false,
    "international_duty_paid_by": "sender",
    "shipments": [],
    "external_system_url": "https://example.com/order/123",
    "trackstar_tags": [
      "tag1",
      "tag2",
      {
        "tag3": "value3"
      }
    ]
  },
  "id": "id",
  "unused_fields": [
    ""
  ]
}"""


def read(document: Any) -> Reply:
    return read_reply(200, json.dumps(document).encode())


def only_order(content: bytes) -> Order:
    (order,) = read_reply(200, content).orders
    return order


def test_the_founding_sample_is_read_as_one_open_order() -> None:
    reply = read_reply(200, SAMPLE.encode(), request_id="req-1", replayed=True, retry_after=2.0)

    assert reply == Reply(
        status=200,
        body="object",
        id="id",
        orders=(
            Order(
                id="order_id",
                status="open",
                shipped=False,
                document=reply.orders[0].document,
                created_at=datetime(2022, 1, 1, tzinfo=UTC),
                reference_id="order_reference_id",
                order_number="order_number",
            ),
        ),
        unused_fields='[\n    ""\n  ]',
        request_id="req-1",
        replayed=True,
        retry_after=2.0,
    )


@pytest.mark.parametrize("odd", [None, "", "soon", 0, -1, True, [], {}, "0001-01-01T00:00:00Z", 10**40, "2022-13-01"])
def test_an_odd_date_of_creation_says_nothing_and_spoils_nothing(odd: Any) -> None:
    (order,) = read({"data": {"id": "a", "status": "open", "created_date": odd}}).orders

    assert ("a", "open", None) == (order.id, order.status, order.created_at)


def test_the_founding_sample_is_kept_byte_for_byte() -> None:
    start, end = SAMPLE.index("{", 1), SAMPLE.index(',\n  "id": "id"')

    assert SAMPLE[start:end] == only_order(SAMPLE.encode()).document


@pytest.mark.parametrize(
    "document",
    [
        pytest.param('{"id":"a","brand_new":{"x":[1,{"y":null}]}}', id="unknown fields"),
        pytest.param('{"id":"a","status":null,"shipments":null,"tags":null}', id="nulls"),
        pytest.param('{"id":"a","total_price":1.50,"total_tax":0.0,"weight":1E+2}', id="numbers as written"),
        pytest.param('{"id":"a","total_price":1e400}', id="number out of range"),
        pytest.param('{"id":"a","shipments":[{"weight":-1e400}]}', id="number out of range in a shipment"),
        pytest.param('{"id":"a","total_price":' + "9" * 5000 + "}", id="number of 5000 digits"),
        pytest.param('{"id":"a","name":"J\\u00f6rg \\/ \\ud83d\\ude00 \\u0000"}', id="escapes"),
        pytest.param('{"id":"a","name":"Jörg 📦"}', id="other scripts"),
        pytest.param('{"id":"a","b":1,"b":2}', id="a field twice"),
        pytest.param('{ "id" :\t"a" ,\r\n "b" : [ ] }', id="blanks"),
        pytest.param("{}", id="no field"),
    ],
)
@pytest.mark.parametrize("wrapping", ['{"data":%s}', '{"data":[%s],"page":1e400}', ' {"data" : %s , "id":"a"}\n'])
def test_an_order_is_kept_as_it_came(wrapping: str, document: str) -> None:
    order = only_order((wrapping % document).encode())

    assert document == order.document
    assert order.id == ("a" if "id" in document else None)


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(r"\ud83d", id="first half"),
        pytest.param(r"\uDE00", id="second half"),
        pytest.param(r"\ud83d\ud83d", id="first half twice"),
        pytest.param(r"\ud83d\n", id="first half, then another escape"),
    ],
)
def test_an_emoji_cut_in_two_does_not_spoil_the_answer(half: str) -> None:
    content = r'{"data":{"id":"a","status":"cancelled","name":"\\ud83d HALF"}}'.replace("HALF", half)

    order = only_order(content.encode())

    assert ("a", "cancelled") == (order.id, order.status)
    assert r"\\ud83d " in order.document  # an escaped backslash, then letters: untouched
    assert order.document.isascii()
    assert json.loads(order.document)["name"].encode()


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        pytest.param("empty", b"", id="nothing"),
        pytest.param("empty", b" \r\n", id="blank"),
        pytest.param("object", b"{}", id="object"),
        pytest.param("object", b'\n {"error": 1e400}', id="number out of range"),
        pytest.param("other_json", b"[]", id="list"),
        pytest.param("other_json", b"null", id="null"),
        pytest.param("other_json", b'"no"', id="string"),
        pytest.param("other_json", b"404", id="number"),
        pytest.param("not_json", b"<html>502 Bad Gateway</html>", id="a gateway's page"),
        pytest.param("not_json", b"404 page not found\n", id="a gateway's line that starts with a number"),
        pytest.param("not_json", b"[error] upstream", id="a gateway's line that starts with a bracket"),
        pytest.param("not_json", b'"no" route', id="a gateway's line that starts with a quote"),
        pytest.param("not_json", b'{"data": {"id": "a"}', id="cut"),
        pytest.param("not_json", b'{"data": {"id": "a"}} {}', id="something behind it"),
        pytest.param("not_json", b'{"data": {"id": "a", "b": tru}}', id="an error deep inside"),
        pytest.param("not_json", b'{"data": {"id": "a", "b": NaN}}', id="NaN"),
        pytest.param("not_json", b'{"data": {"b": "\xff"}}', id="invalid UTF-8 deep inside"),
        pytest.param("not_json", b"\x00", id="NUL"),
        pytest.param("not_json", b"[" * 1_000_000 + b"]" * 1_000_000, id="nested beyond reason"),
        pytest.param("not_json", b'{"data":' * 1_000_000 + b"1" + b"}" * 1_000_000, id="objects nested beyond reason"),
    ],
)
def test_a_body_is_told_by_its_kind(expected: str, content: bytes) -> None:
    assert expected == read_reply(200, content).body


@pytest.mark.parametrize(("before", "behind"), [("", ""), ('{"data": {"shipments": [{"status": ', "}]}}")])
def test_a_body_nested_just_as_deep_as_can_be_read_is_told_too(before: str, behind: str) -> None:
    def told(depth: int) -> str:
        return read_reply(200, (before + '{"data":' * depth + "1" + "}" * depth + behind).encode()).body

    read, refused = 1, 1_000_000
    while refused - read > 1:
        depth = (read + refused) // 2
        read, refused = (depth, refused) if told(depth) == "object" else (read, depth)

    assert {"object", "not_json"} >= {told(depth) for depth in range(read - 20, read + 20)}


@pytest.mark.parametrize("data", [None, "order", 1, 1.5, True, []], ids=repr)
def test_data_that_is_no_order_holds_none(data: Any) -> None:
    reply = read({"data": data, "unused_fields": None})

    assert ("object", (), None) == (reply.body, reply.orders, reply.unused_fields)


def test_a_missing_field_and_a_null_are_the_same() -> None:
    nulls = dict.fromkeys(["data", "id", "unused_fields", "error", "origin"])

    assert read({}) == read(nulls)


def test_a_list_of_a_hundred_orders_is_read_in_its_order() -> None:
    reply = read({"data": [{"id": f"o-{n}", "status": "open"} for n in range(100)]})

    assert reply.listed
    assert [f"o-{n}" for n in range(100)] == [order.id for order in reply.orders]
    assert {"id": "o-99", "status": "open"} == json.loads(reply.orders[99].document)


def test_what_is_no_order_in_a_list_is_passed_over() -> None:
    reply = read({"data": [None, 1, "a", [{"id": "x"}], {"id": "b"}]})

    assert ["b"] == [order.id for order in reply.orders]


def test_one_order_is_not_listed() -> None:
    assert not read({"data": {"id": "a"}}).listed


@pytest.mark.parametrize(
    ("shipped", "order"),
    [
        (True, {"status": "fulfilled"}),
        (True, {"status": "partially_fulfilled"}),
        (True, {"status": "open", "shipments": [{"status": "open"}, {"status": "shipped"}]}),
        (True, {"shipments": [None, "x", {"status": "shipped"}]}),
        (False, {"status": "open"}),
        (False, {"status": "packed", "shipments": [{"status": "open"}, {"status": "cancelled"}, {"status": None}]}),
        (False, {"status": "Fulfilled"}),
        (False, {"status": ["fulfilled"]}),
        (False, {"shipments": {"status": "shipped"}}),
        (False, {"shipments": "shipped"}),
        (False, {"shipments": ["shipped", ["shipped"], {"status": {"shipped": True}}, {}]}),
        (False, {}),
    ],
    ids=str,
)
def test_goods_have_left_when_the_order_or_one_shipment_says_so(shipped: bool, order: dict[str, Any]) -> None:
    assert shipped is only_order(json.dumps({"data": order}).encode()).shipped


def test_a_shipment_counts_whatever_stands_beside_it() -> None:
    assert only_order(b'{"data":{"shipments":[{"weight":1e400,"status":"shipped"}]}}').shipped


@pytest.mark.parametrize(
    ("expected", "origin"),
    [
        ("trackstar", "trackstar"),
        ("integration", "integration"),
        ("absent", None),
        ("other", "Trackstar"),
        ("other", ""),
        ("other", "gateway"),
        ("other", 0),
        ("other", False),
        ("other", ["trackstar"]),
        ("other", {"trackstar": 1}),
    ],
    ids=repr,
)
def test_an_origin_counts_only_as_it_is_spelled(expected: str, origin: Any) -> None:
    assert expected == read({"origin": origin}).origin


def test_an_origin_out_of_range_is_another_origin() -> None:
    assert "other" == read_reply(500, b'{"origin":1e400}').origin


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("a", "a"),
        ("", ""),
        ("7", 7),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        (None, None),
        (None, True),
        (None, 1.5),
        (None, ["a"]),
        (None, {"a": 1}),
    ],
    ids=repr,
)
def test_an_id_is_a_string_or_a_whole_number(expected: str | None, value: Any) -> None:
    reply = read({"id": value, "data": {"id": value}})

    assert (expected, expected) == (reply.id, reply.orders[0].id)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("#1001", "#1001"),
        ("1001", 1001),
        ("Größe 1", " Größe 1 "),
        ("a  b", "a\x00\x1bb"),
        ("x" * 255, "x" * 100_000),
        *((None, odd) for odd in (None, "", "  ", True, 1.5, ["1001"], {"a": 1})),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_number_that_people_use_is_bounded_and_printable_and_none_where_it_is_odd(
    expected: str | None, value: Any
) -> None:
    (order,) = read({"data": {"id": "o-1", "reference_id": value, "order_number": value}}).orders

    assert (expected, expected) == (order.reference_id, order.order_number)


def test_an_order_without_numbers_has_none() -> None:
    (order,) = read({"data": {"id": "o-1"}}).orders

    assert (None, None) == (order.reference_id, order.order_number)


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("Order not found", '"Order not found"'),
        (None, "null"),
        ('{"a":1.50}', '{"a":1.50}'),
        ("[1e400]", "[1e400]"),
        (None, "false"),
        ("a  b [0m", r'"a\u0000\nb\u001b[0m"'),
        ("x" * MAX_MESSAGE_LENGTH, '"' + "x" * 100_000 + '"'),
    ],
    ids=["text", "null", "object", "list", "false", "control characters", "long"],
)
def test_an_error_is_kept_as_a_bounded_printable_sentence(expected: str | None, error: str) -> None:
    assert expected == read_reply(400, f'{{"error":{error}}}'.encode()).message


def test_a_status_word_is_bounded_and_printable_like_any_foreign_text() -> None:
    assert "a b" == only_order(b'{"data":{"status":"a\\u0000b"}}').status
    assert only_order(b'{"data":{"status":"' + b"x" * 10_000 + b'"}}').status == "x" * MAX_MESSAGE_LENGTH
    assert only_order(b'{"data":{"status":""}}').status is None
    assert only_order(b'{"data":{"status":7}}').status is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=10)
    | st.sampled_from(["trackstar", "integration", "cancelled", "shipped", "fulfilled"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "status", "shipments"]) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)
documents = st.dictionaries(st.sampled_from(["data", "id", "unused_fields", "error", "origin"]), json_values)


def promises(reply: Reply) -> None:
    assert reply.body in {"object", "other_json", "not_json", "empty"}
    assert reply.origin in {"trackstar", "integration", "other", "absent"}
    for text in (reply.message, *(order.status for order in reply.orders)):
        assert text is None or (len(text) <= MAX_MESSAGE_LENGTH and text.isprintable())
    for order in reply.orders:
        assert order.document.encode().startswith(b"{")


@anything_goes
@given(status=st.integers(100, 599), document=documents | json_values)
def test_arbitrary_json_never_raises(status: int, document: Any) -> None:
    reply = read_reply(status, json.dumps(document).encode())

    promises(reply)
    # NaN and Infinity, which Python writes, are no JSON.
    assert reply.body in {"object" if isinstance(document, dict) else "other_json", "not_json"}


@anything_goes
@given(st.binary(max_size=100) | st.binary(max_size=30).map(lambda junk: b'{"data":{"id":' + junk + b"}}"))
def test_arbitrary_bytes_never_raise(content: bytes) -> None:
    promises(read_reply(200, content))


@anything_goes
@given(cut=st.integers(1, len(SAMPLE) - 2))
def test_a_sample_cut_anywhere_is_never_taken_for_an_answer(cut: int) -> None:
    assert "not_json" == read_reply(200, SAMPLE[:cut].encode()).body


@anything_goes
@given(st.text(st.characters()))
def test_a_printable_text_is_bounded_and_safe_to_store(text: str) -> None:
    shown = printable(text)

    assert min(len(text), MAX_MESSAGE_LENGTH) == len(shown)
    assert shown.isprintable()
    assert shown == shown.encode().decode()
