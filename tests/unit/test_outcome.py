"""What an answer means: every status, signed by anyone, in any body."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.answer import Body, NoReply, NoReplyReason, Order, Origin, Reply, read_reply
from worker.cancellation.outcome import ALARMING_REASONS, Kind, OrderState, Outcome, ReadBack, classify, classify_read

anything_goes = settings(deadline=None)

ORDER_ID = "A-1001"
STATUSES = range(100, 600)
ORIGINS: tuple[Origin, ...] = get_args(Origin)
BODIES: tuple[Body, ...] = get_args(Body)
A_WORD = re.compile(r"[a-z][a-z0-9_]{1,39}")

ANYONE = set(ORIGINS)
NOT_THE_WAREHOUSE = {"trackstar", "other", "absent"}
UNSIGNED = {"other", "absent"}
ANY_BODY = set(BODIES)
JSON = {"object", "other_json"}
NO_JSON = {"not_json", "empty"}

INFORMATION, SUCCESS, REDIRECT = set(range(100, 200)), set(range(200, 300)), set(range(300, 400))
WITHOUT_A_BODY = {204, 205}
CLIENT, SERVER = set(range(400, 500)), set(range(500, 600))


class Row(msgspec.Struct, frozen=True):
    statuses: set[int]
    origins: set[str]
    bodies: set[str]
    kind: str
    reason: str  # a star stands for the status
    read_first: bool = False
    obeys_retry_after: bool = False

    def holds(self, status: int, origin: str, body: str) -> bool:
        return status in self.statuses and origin in self.origins and body in self.bodies


# The table of errors in Trackstar's facts, section 6, written out. No two rows overlap: their order says nothing.
CANCEL_TABLE = [
    Row(SUCCESS, ANYONE, {"object"}, "accepted", "accepted"),
    Row(WITHOUT_A_BODY, ANYONE, {"empty"}, "accepted", "accepted"),
    # What cannot be read is read back.
    Row(SUCCESS, ANYONE, {"not_json"}, "in_doubt", "not_json", read_first=True),
    Row(SUCCESS, ANYONE, {"other_json"}, "in_doubt", "unexpected_body", read_first=True),
    Row(SUCCESS - WITHOUT_A_BODY, ANYONE, {"empty"}, "in_doubt", "unexpected_body", read_first=True),
    Row(REDIRECT, ANYONE, ANY_BODY, "in_doubt", "redirected"),
    Row(INFORMATION, ANYONE, ANY_BODY, "in_doubt", "http_*"),
    # Whoever says it, in whatever body.
    Row({429}, ANYONE, ANY_BODY, "slow_down", "rate_limited", obeys_retry_after=True),
    Row({401}, NOT_THE_WAREHOUSE, ANY_BODY, "no_access", "unauthorized"),
    Row({401}, {"integration"}, ANY_BODY, "no_access", "warehouse_credentials"),
    Row({501}, ANYONE, ANY_BODY, "refused", "not_supported"),
    Row({503}, ANYONE, ANY_BODY, "in_doubt", "http_*", obeys_retry_after=True),
    Row(SERVER - {501, 503}, ANYONE, ANY_BODY, "in_doubt", "http_*"),
    # A gateway's words.
    Row(CLIENT - {401, 429}, ANYONE, NO_JSON, "in_doubt", "http_*"),
    # The warehouse's words.
    Row({403}, {"integration"}, JSON, "no_access", "warehouse_credentials"),
    Row(CLIENT - {401, 403, 429}, {"integration"}, JSON, "refused", "refused_by_warehouse", read_first=True),
    # Trackstar's words.
    Row({400}, {"trackstar"}, JSON, "refused", "key_reused"),
    Row({403}, {"trackstar"}, JSON, "refused", "not_enabled"),
    Row({404}, {"trackstar"}, JSON, "refused", "order_not_found"),
    Row({422}, {"trackstar"}, JSON, "refused", "validation_failed"),
    Row({409}, NOT_THE_WAREHOUSE, JSON, "still_running", "still_running"),
    Row({408}, NOT_THE_WAREHOUSE, JSON, "in_doubt", "http_*"),
    Row(CLIENT - {400, 401, 403, 404, 408, 409, 422, 429}, {"trackstar"}, JSON, "refused", "http_*"),
    # Nobody's words: they may be the warehouse's, so nothing is believed unread.
    Row({404}, UNSIGNED, JSON, "refused", "order_not_found", read_first=True),
    Row(CLIENT - {401, 404, 408, 409, 429}, UNSIGNED, JSON, "refused", "http_*", read_first=True),
]


SAID = "so it says"


def row_for(status: int, origin: str, body: str) -> Row:
    (row,) = [row for row in CANCEL_TABLE if row.holds(status, origin, body)]
    return row


def expected_outcome(status: int, origin: str, body: str) -> Outcome:
    row = row_for(status, origin, body)
    return Outcome(
        kind=Kind(row.kind),
        reason=row.reason.replace("*", str(status)),
        message=None if row.kind == "accepted" else SAID,
        retry_after=7.0 if row.obeys_retry_after else None,
        read_first=row.read_first,
    )


@pytest.mark.parametrize(("origin", "body"), list(product(ORIGINS, BODIES)))
def test_every_status_means_what_the_table_of_errors_says(origin: Origin, body: Body) -> None:
    expected = {status: expected_outcome(status, origin, body) for status in STATUSES}

    assert expected == {
        status: classify(
            # A yes with an error is another matter.
            Reply(
                status=status,
                origin=origin,
                body=body,
                message=None if expected[status].kind is Kind.ACCEPTED else SAID,
                retry_after=7.0,
            ),
            ORDER_ID,
        )
        for status in STATUSES
    }


@pytest.mark.parametrize(
    ("origin", "body", "content"),
    [
        pytest.param("trackstar", "object", b'{"error": "no", "origin": "trackstar"}', id="Trackstar"),
        pytest.param("integration", "object", b'{"error": "no", "origin": "integration"}', id="warehouse"),
        pytest.param("other", "object", b'{"error": "no", "origin": "Trackstar "}', id="another origin"),
        pytest.param("other", "object", b'{"error": "no", "origin": ["trackstar"]}', id="an origin of another type"),
        pytest.param("absent", "object", b'{"error": "no", "origin": null}', id="null origin"),
        pytest.param("absent", "object", b"{}", id="empty object"),
        pytest.param("absent", "other_json", b'[{"origin": "trackstar"}]', id="list"),
        pytest.param("absent", "not_json", b"<html>no</html>", id="page"),
        pytest.param("absent", "not_json", b"404 page not found\n", id="line of text"),
        pytest.param("absent", "not_json", b'{"origin": "trackstar"', id="cut"),
        pytest.param("absent", "empty", b"", id="empty"),
    ],
)
def test_every_status_means_the_same_when_it_comes_as_bytes(origin: str, body: str, content: bytes) -> None:
    expected = {
        status: (row.kind, row.reason.replace("*", str(status)), row.read_first)
        for status in STATUSES
        for row in [row_for(status, origin, body)]
    }
    if b"error" in content and body == "object":
        expected |= dict.fromkeys(SUCCESS, ("refused", "error_in_answer", True))
    outcomes = {status: classify(read_reply(status, content), ORDER_ID) for status in STATUSES}

    assert expected == {status: (o.kind.value, o.reason, o.read_first) for status, o in outcomes.items()}


@pytest.mark.parametrize("status", [-1, 0, 99, 600, 999, 10**6])
def test_a_status_that_http_does_not_know_is_in_doubt(status: int) -> None:
    assert classify(Reply(status=status), ORDER_ID).kind is Kind.IN_DOUBT


@pytest.mark.parametrize("reason", get_args(NoReplyReason))
@pytest.mark.parametrize(("expected", "sent"), [(Kind.IN_DOUBT, True), (Kind.NOT_SENT, False)], ids=str)
def test_without_an_answer_only_what_was_sent_is_in_doubt(expected: Kind, sent: bool, reason: NoReplyReason) -> None:
    outcome = classify(NoReply(reason, sent=sent, detail="it broke"), ORDER_ID)

    assert outcome == Outcome(kind=expected, reason=reason, message="it broke")


def order(order_id: str | None, status: str | None = "open", *, shipped: bool = False) -> Order:
    return Order(id=order_id, status=status, shipped=shipped, document="{}")


@pytest.mark.parametrize(
    ("kind", "top", "inner"),
    [
        pytest.param("accepted", ORDER_ID, ORDER_ID, id="both ours"),
        pytest.param("accepted", ORDER_ID, None, id="only the top one, ours"),
        pytest.param("accepted", None, ORDER_ID, id="only the order's, ours"),
        pytest.param("accepted", None, None, id="none"),
        pytest.param("in_doubt", "B-2", "B-2", id="both another's"),
        pytest.param("in_doubt", "B-2", None, id="only the top one, another's"),
        pytest.param("in_doubt", None, "B-2", id="only the order's, another's"),
        pytest.param("in_doubt", "", None, id="empty"),
        pytest.param("accepted", ORDER_ID.lower(), None, id="in small letters"),
    ],
)
def test_a_yes_for_another_order_is_no_yes(kind: str, top: str | None, inner: str | None) -> None:
    outcome = classify(Reply(status=200, body="object", id=top, orders=(order(inner),)), ORDER_ID)

    assert (kind, "accepted" if kind == "accepted" else "wrong_order_in_answer") == (outcome.kind, outcome.reason)
    assert outcome.read_first is (kind == "in_doubt")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("00123", "123"),
        ("123", "123"),
        ("0", "0"),
        ("caf\u00e9", "cafe\u0301"),
        ("cafe\u0301", "caf\u00e9"),
        ("STRASSE-1", "stra\u00dfe-1"),
        ("1001", " 1001 "),
    ],
)
def test_an_id_in_another_form_names_the_same_order_in_a_yes_and_in_a_read_of_it(asked: str, shown: str) -> None:
    yes = classify(Reply(status=200, body="object", id=shown, orders=(order(shown),)), asked)
    read = classify_read(Reply(status=200, body="object", orders=(order(shown, "cancelled"),)), asked)

    assert (Kind.ACCEPTED, OrderState.CANCELLED) == (yes.kind, read.shows)


@pytest.mark.parametrize(("asked", "shown"), [("00123", "1230"), ("A-1", "A-01"), ("0x1", "1"), ("caf\u00e9", "cafe")])
def test_a_similar_id_is_another_order(asked: str, shown: str) -> None:
    yes = classify(Reply(status=200, body="object", id=shown), asked)
    read = classify_read(Reply(status=200, body="object", orders=(order(shown, "cancelled"),)), asked)

    assert (Kind.IN_DOUBT, OrderState.ABSENT) == (yes.kind, read.shows)


def test_in_a_list_only_the_very_id_tells_whose_line_it_is() -> None:
    reply = Reply(status=200, body="object", listed=True, orders=(order("123", "cancelled"),))

    assert [OrderState.CANCELLED, OrderState.ABSENT] == [classify_read(reply, each).shows for each in ("123", "00123")]


def test_what_is_missing_in_a_list_that_was_too_long_may_stand_behind_it() -> None:
    content = msgspec.json.encode({"data": [{"id": str(n), "status": "cancelled"} for n in range(200)]})
    reply = read_reply(200, content)

    expected = [OrderState.CANCELLED, OrderState.LATER]
    assert expected == [classify_read(reply, each).shows for each in ("99", "100")]


@pytest.mark.parametrize("error", ['"it has shipped"', "1", "true", '{"code": 7}', '["x"]', '"integration"'])
@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_a_yes_that_carries_an_error_and_no_order_is_a_refusal_to_be_read_back(status: int, error: str) -> None:
    for rest in ("", ', "origin": "integration"', ', "data": null', ', "data": []', f', "id": "{ORDER_ID}"'):
        outcome = classify(read_reply(status, f'{{"error": {error}{rest}}}'.encode()), ORDER_ID)

        assert (Kind.REFUSED, "error_in_answer", True) == (outcome.kind, outcome.reason, outcome.read_first)


def test_a_read_that_is_answered_with_an_error_does_not_say_that_there_is_no_order() -> None:
    for rest in ("", ', "data": null', ', "data": []', ', "origin": "integration"'):
        read = classify_read(read_reply(200, f'{{"error": "try again"{rest}}}'.encode()), ORDER_ID)

        assert (OrderState.LATER, "error_in_answer") == (read.shows, read.reason)


@pytest.mark.parametrize("error", ["null", "false", '""', "{}", "[]", "0"])
def test_an_error_that_says_there_is_none_is_none(error: str) -> None:
    assert Kind.ACCEPTED is classify(read_reply(200, f'{{"error": {error}}}'.encode()), ORDER_ID).kind


def test_a_yes_that_shows_its_order_is_one_whatever_it_says_besides() -> None:
    reply = Reply(status=200, body="object", orders=(order(ORDER_ID),), message="a warning")

    assert Kind.ACCEPTED is classify(reply, ORDER_ID).kind


@pytest.mark.parametrize("reason", ["cut_body", "read_timeout", "connection_lost", "body_too_large"])
@pytest.mark.parametrize(
    ("read_first", "status"), [(True, 200), (True, 204), (False, 404), (False, 500), (False, None)]
)
def test_a_yes_whose_body_did_not_arrive_is_read_back(
    read_first: bool, status: int | None, reason: NoReplyReason
) -> None:
    outcome = classify(NoReply(reason, sent=True, status=status), ORDER_ID)

    assert (Kind.IN_DOUBT, reason, read_first) == (outcome.kind, outcome.reason, outcome.read_first)


def test_a_yes_keeps_the_order_and_what_was_not_used_and_that_it_was_replayed() -> None:
    shown = order(ORDER_ID)
    reply = Reply(status=200, body="object", orders=(shown,), unused_fields='["a"]', replayed=True, retry_after=7.0)

    expected = Outcome(kind=Kind.ACCEPTED, reason="accepted", order=shown, unused_fields='["a"]', replayed=True)

    assert msgspec.structs.replace(expected, read_first=True) == classify(reply, ORDER_ID)


def test_the_text_of_an_error_changes_nothing_but_the_message() -> None:
    said = [
        classify(read_reply(422, f'{{"error": "{text}", "origin": "integration"}}'.encode()), ORDER_ID)
        for text in ("already cancelled", "shipped", "rate limited", "")
    ]

    assert {("refused", "refused_by_warehouse")} == {(outcome.kind.value, outcome.reason) for outcome in said}


@anything_goes
@given(
    status=st.integers(100, 599),
    document=st.fixed_dictionaries(
        {},
        optional={
            "origin": st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2),
            "id": st.none() | st.integers() | st.text() | st.booleans(),
            "data": st.none() | st.integers() | st.dictionaries(st.sampled_from(["id", "status"]), st.text()),
            "error": st.none() | st.text() | st.integers(),
        },
    ),
)
def test_a_reason_is_one_bounded_word_whatever_comes(status: int, document: dict[str, Any]) -> None:
    reply = read_reply(status, msgspec.json.encode(document))

    assert A_WORD.fullmatch(classify(reply, ORDER_ID).reason)
    assert A_WORD.fullmatch(classify_read(reply, ORDER_ID).reason)


def test_the_alarming_reasons_are_words_that_occur() -> None:
    assert {row.reason for row in CANCEL_TABLE} | set(get_args(NoReplyReason)) >= ALARMING_REASONS


# Reading back: the same table for `GET`, as far as a read can go.
READ_TABLE = [
    Row({200}, ANYONE, {"object"}, "absent", "order_not_found"),  # an object that shows no order
    Row({200}, ANYONE, ANY_BODY - {"object"}, "later", "http_*"),
    Row(INFORMATION | SUCCESS - {200} | REDIRECT, ANYONE, ANY_BODY, "later", "http_*"),
    Row({429}, ANYONE, ANY_BODY, "later", "rate_limited", obeys_retry_after=True),
    Row({401}, NOT_THE_WAREHOUSE, ANY_BODY, "no_access", "unauthorized"),
    Row({401}, {"integration"}, ANY_BODY, "no_access", "warehouse_credentials"),
    Row({404}, ANYONE, JSON, "absent", "order_not_found"),
    Row(CLIENT - {401, 404, 429}, ANYONE, JSON, "unreadable", "http_*"),
    Row(CLIENT - {401, 429}, ANYONE, NO_JSON, "later", "http_*"),
    Row({501}, ANYONE, ANY_BODY, "unreadable", "not_supported"),
    Row({503}, ANYONE, ANY_BODY, "later", "http_*", obeys_retry_after=True),
    Row(SERVER - {501, 503}, ANYONE, ANY_BODY, "later", "http_*"),
]


def expected_read(status: int, origin: str, body: str) -> ReadBack:
    (row,) = [row for row in READ_TABLE if row.holds(status, origin, body)]
    return ReadBack(
        shows=OrderState(row.kind),
        reason=row.reason.replace("*", str(status)),
        retry_after=7.0 if row.obeys_retry_after else None,
        spends_attempt=status != 429,
    )


@pytest.mark.parametrize(("origin", "body"), list(product(ORIGINS, BODIES)))
def test_every_status_of_a_read_back_shows_what_the_table_says(origin: Origin, body: Body) -> None:
    expected = {status: expected_read(status, origin, body) for status in STATUSES}

    assert expected == {
        status: classify_read(Reply(status=status, origin=origin, body=body, retry_after=7.0), ORDER_ID)
        for status in STATUSES
    }


@pytest.mark.parametrize("reason", get_args(NoReplyReason))
@pytest.mark.parametrize("sent", [True, False])
def test_a_read_without_an_answer_is_read_later(reason: NoReplyReason, sent: bool) -> None:
    assert ReadBack(shows=OrderState.LATER, reason=reason) == classify_read(NoReply(reason, sent=sent), ORDER_ID)


# `fulfilled` and its like are made into `shipped` where the answer is read.
STATUS_MEANS = {
    "cancelled": "cancelled",
    "fulfilled": "shipped",
    "partially_fulfilled": "shipped",
    "open": "open",
    "confirmed": "open",
    "processing": "open",
    "picked": "open",
    "packed": "open",
    "backordered": "open",
    "exception": "open",
    "other": "open",
    "canceled": "open",
    "Cancelled": "open",
    "brand_new": "open",
}


@pytest.mark.parametrize(("status", "expected"), STATUS_MEANS.items())
def test_the_status_of_an_order_read_back_is_proof_or_proves_nothing(status: str, expected: str) -> None:
    content = msgspec.json.encode({"data": {"id": ORDER_ID, "status": status}})
    read = classify_read(read_reply(200, content), ORDER_ID)

    assert (expected, f"read_{expected}") == (read.shows, read.reason)
    assert read.order
    assert ORDER_ID == read.order.id


@pytest.mark.parametrize("status", ["open", "cancelled"])
def test_one_shipped_shipment_is_proof_that_goods_have_left(status: str) -> None:
    content = msgspec.json.encode({"data": {"id": ORDER_ID, "status": status, "shipments": [{"status": "shipped"}]}})

    assert classify_read(read_reply(200, content), ORDER_ID).shows is OrderState.SHIPPED


@pytest.mark.parametrize(
    ("shows", "data"),
    [
        pytest.param("cancelled", {"status": "cancelled"}, id="one without an id: its path named it"),
        pytest.param("absent", {"id": "B-2", "status": "cancelled"}, id="one of another id"),
        pytest.param("absent", [{"status": "cancelled"}], id="listed without an id"),
        pytest.param("absent", [{"id": "B-2", "status": "cancelled"}], id="listed of another id"),
        pytest.param("absent", [], id="empty list"),
        pytest.param(
            "open",
            [{"id": "B-2", "status": "cancelled"}, {"id": ORDER_ID, "status": "open"}],
            id="listed behind another",
        ),
    ],
)
def test_a_read_back_shows_this_order_or_none(shows: str, data: Any) -> None:
    assert shows == classify_read(read_reply(200, msgspec.json.encode({"data": data})), ORDER_ID).shows


def test_each_of_a_hundred_orders_finds_its_own_line() -> None:
    reply = read_reply(
        200,
        msgspec.json.encode(
            {"data": [{"id": f"o-{n}", "status": "open" if n % 2 else "cancelled"} for n in range(100)]}
        ),
    )

    shown = [classify_read(reply, f"o-{n}").shows.value for n in range(100)]

    assert ["cancelled", "open"] * 50 == shown
