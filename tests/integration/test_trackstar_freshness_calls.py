"""The calls that ask how fresh Trackstar's copy is, on the wire: what is sent, and what is made of odd answers."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from harness.raw_server import API_KEY, LIMIT, MAX_SECONDS, TIMEOUT, TOKEN, Play, RawServer, client_of, whole

from worker.cancellation.answer import ListedConnection, NoReply, Reply
from worker.cancellation.freshness import CrawlStatus, Schedule

if TYPE_CHECKING:
    import socket

    from worker.cancellation.answer import Answer
    from worker.trackstar.client import TrackstarClient

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def connections(client: TrackstarClient) -> Answer:
    return client.read_connections()


def changed(client: TrackstarClient) -> Answer:
    return client.read_changed_orders(NOON, access_token=TOKEN)


def forced(client: TrackstarClient) -> Answer:
    return client.force_crawl(access_token=TOKEN)


CALLS = [connections, changed, forced]


def exchanged(call: Any, *plays: Play, **limits: Any) -> tuple[Answer, RawServer]:
    with RawServer(*plays) as server, client_of(server.url, **limits) as client:
        return call(client), server


def reply(call: Any, body: Any, *headers: bytes, **limits: Any) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer, _ = exchanged(call, whole(content, *headers), **limits)
    assert isinstance(answer, Reply), answer
    return answer


def request_line(call: Any) -> str:
    _, server = exchanged(call, whole())
    return server.heads[0].partition(b" HTTP/1.1\r\n")[0].decode()


# -- what is sent


def test_the_list_of_connections_is_asked_for_with_the_api_key_alone() -> None:
    _, server = exchanged(connections, whole())

    assert server.heads[0].startswith(b"GET /connections HTTP/1.1\r\n")
    assert f"x-trackstar-api-key: {API_KEY}\r\n".encode() in server.heads[0]
    assert b"access-token" not in server.heads[0]
    assert b"Content-" not in server.heads[0]


@pytest.mark.parametrize(
    ("query", "token"),
    [("", None), ("", ""), ("?page_token=abc", "abc"), ("?page_token=a%26b%3D%2B%2F%20%23%25", "a&b=+/ #%")],
)
def test_the_next_page_is_asked_for_with_its_token_and_nothing_in_it_is_more_than_that(query: str, token: str) -> None:
    assert f"GET /connections{query}" == request_line(lambda client: client.read_connections(token))


@pytest.mark.parametrize(
    ("instant", "since"),
    [
        ("2030-01-01T12%3A00%3A00Z", NOON),
        ("2030-01-01T12%3A00%3A00Z", NOON.astimezone(timezone(timedelta(hours=-8)))),
        ("2030-01-01T12%3A00%3A00Z", NOON + timedelta(microseconds=999_999)),
    ],
)
def test_changed_orders_are_asked_for_from_a_whole_second_of_utc_on(instant: str, since: datetime) -> None:
    line = request_line(lambda client: client.read_changed_orders(since, access_token=TOKEN))

    assert f"GET /wms/orders?updated_date%5Bgte%5D={instant}&limit=1000" == line


@pytest.mark.parametrize(("limit", "wanted"), [(1, 0), (7, 7), (1000, 1000), (1000, 5000)])
def test_changed_orders_come_in_pages(limit: int, wanted: int) -> None:
    line = request_line(
        lambda client: client.read_changed_orders(NOON, access_token=TOKEN, page_token="a/b", limit=wanted)
    )

    assert line.endswith(f"&limit={limit}&page_token=a%2Fb")


def test_changed_orders_are_asked_for_with_the_connections_token() -> None:
    _, server = exchanged(changed, whole())

    assert f"x-trackstar-access-token: {TOKEN}\r\n".encode() in server.heads[0]


def test_a_crawl_is_forced_with_a_body_of_json_and_both_secrets() -> None:
    _, server = exchanged(forced, whole())
    line, *headers = server.heads[0].decode().removesuffix("\r\n\r\n").split("\r\n")
    sent = dict(header.split(": ", 1) for header in headers)

    assert "POST /connections/sync HTTP/1.1" == line
    assert {"functions_to_sync": ["get_orders"]} == json.loads(server.bodies[0])
    assert ("application/json", str(len(server.bodies[0]))) == (sent["Content-Type"], sent["Content-Length"])
    assert (API_KEY, TOKEN) == (sent["x-trackstar-api-key"], sent["x-trackstar-access-token"])
    assert not {"Transfer-Encoding", "Idempotency-Key"} & sent.keys()


def test_a_connection_is_used_again_behind_a_request_with_a_body() -> None:
    with RawServer(whole(), whole(), whole()) as server, client_of(server.url) as client:
        for call in (forced, connections, forced):
            call(client)

    assert (1, 2) == (server.accepted, len(server.bodies))


# -- what comes back


CRAWL = {
    "function_name": "get_orders",
    "last_crawl_start": "2030-01-01T12:00:00Z",
    "last_crawl_end": "2030-01-01T12:05:00Z",
    "sync_frequency": "3600",
    "sync_status": "enabled",
}
SCHEDULE = Schedule(NOON, NOON + timedelta(minutes=5), 3600.0, CrawlStatus.ENABLED)
ONE = {"id": "c-1", "sync_schedules": [CRAWL]}


def test_the_list_is_read_with_the_clock_of_trackstar_and_the_next_page() -> None:
    read = reply(
        connections, {"data": [ONE, {"id": "c-2"}], "next_token": "n"}, b"Date: Tue, 01 Jan 2030 12:06:00 GMT"
    )

    assert (ListedConnection("c-1", SCHEDULE), ListedConnection("c-2", None)) == read.connections
    assert (NOON + timedelta(minutes=6), "n", False) == (read.date, read.next_token, read.more)


@pytest.mark.parametrize("date", [b"X: y", b"Date: now", b"Date: 2030-01-01T12:06:00Z", b"Date: \xff"])
def test_without_a_date_there_is_no_clock(date: bytes) -> None:
    assert reply(connections, {"data": []}, date).date is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("headers", [(), (b"X-Request-Id: r-1", b"Retry-After: 7")])
def test_what_every_answer_has_is_kept(call: Any, headers: tuple[bytes, ...]) -> None:
    read = reply(call, {"error": "no", "origin": "trackstar"}, *headers)

    assert ("no", "trackstar") == (read.message, read.origin)
    assert (("r-1", 7.0) if headers else (None, None)) == (read.request_id, read.retry_after)


@pytest.mark.parametrize(
    ("found", "data"),
    [
        (["c-1"], ONE),
        (["c-1"], [ONE]),
        (["c-1"], [None, 1, "c-0", [ONE], {}, {"id": None}, {"id": {"id": "c-0"}}, ONE]),
        ([], None),
        ([], "c-1"),
        ([], 1e300),
        ([], {"c-1": ONE}),
    ],
)
def test_connections_may_be_a_list_or_an_object_or_nothing(found: list[str], data: Any) -> None:
    assert found == [connection.id for connection in reply(connections, {"data": data}).connections]


@pytest.mark.parametrize(
    "schedules",
    [
        None,
        "x",
        1,
        {},
        [],
        [None],
        [{}],
        [{**CRAWL, "function_name": "get_products"}],
        [{**CRAWL, "function_name": 7}],
    ],
)
def test_a_connection_without_a_crawl_of_orders_is_listed_without_one(schedules: Any) -> None:
    read = reply(connections, {"data": [{"id": "c-1", "sync_schedules": schedules}]})

    assert (ListedConnection("c-1", None),) == read.connections


def test_nulls_and_wrong_types_in_a_schedule_say_nothing() -> None:
    odd = {"function_name": "get_orders", "last_crawl_start": None, "last_crawl_end": {}, "sync_frequency": [1]}
    read = reply(connections, {"data": [{"id": "c-1", "sync_schedules": [odd]}]})

    assert (ListedConnection("c-1", Schedule()),) == read.connections


def test_a_number_out_of_range_spoils_no_other_field() -> None:
    body = json.dumps({"data": [ONE]}).replace('"3600"', "1e999").encode()
    (connection,) = reply(connections, body).connections

    assert connection.schedule is not None
    assert (NOON, None) == (connection.schedule.start, connection.schedule.frequency)


def test_ten_thousand_connections_are_a_page_and_one_more_is_told() -> None:
    read = reply(connections, {"data": [ONE] * 10_001}, max_response_bytes=4_194_304)

    assert (10_000, True) == (len(read.connections), read.more)


@pytest.mark.parametrize("call", [connections, changed])
@pytest.mark.parametrize(("token", "said"), [("7", 7), (None, ""), (None, None), (None, False), ("x", "x")])
def test_a_token_is_a_text_or_a_number(call: Any, token: str | None, said: Any) -> None:
    read = reply(call, {"data": [], "next_token": said})

    assert (token, False) == (read.next_token, read.more)


def test_a_thousand_changed_orders_are_read_with_their_documents() -> None:
    orders = [{"id": str(number), "status": "cancelled"} for number in range(1000)]
    read = reply(changed, {"data": orders, "next_token": None}, max_response_bytes=4_194_304)

    assert [order["id"] for order in orders] == [order.id for order in read.orders]
    assert orders[999] == json.loads(read.orders[999].document)


def test_a_forced_crawl_names_the_connection_and_says_that_it_runs() -> None:
    read = reply(forced, {"id": "c-1", "syncing": True, "functions_to_sync": ["get_orders"]})

    assert ("c-1", True) == (read.id, read.syncing)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"7", b"null", b'{"data"', b"\xff\xfe", b"{}"])
@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"405 Method Not Allowed", b"422 No", b"502 Bad"])
def test_an_answer_without_a_document_is_an_answer(call: Any, body: bytes, status: bytes) -> None:
    answer, _ = exchanged(call, whole(body, status=status))

    assert isinstance(answer, Reply)
    assert int(status[:3]) == answer.status
    assert ((), (), None, None, None) == (
        answer.connections, answer.orders, answer.id, answer.next_token, answer.syncing
    )  # fmt: skip


# -- limits


@pytest.mark.parametrize("call", [connections, changed])
def test_a_page_may_hold_four_times_of_what_another_answer_may(call: Any) -> None:
    most = b'{"data":"%s"}' % (b"x" * (4 * LIMIT - 11))

    assert "object" == reply(call, most).body
    answer, _ = exchanged(call, whole(most + b" "))
    assert NoReply("body_too_large", sent=True, status=200) == answer


def test_a_forced_crawls_answer_is_bounded_as_every_other() -> None:
    answer, _ = exchanged(forced, whole(b" " * (LIMIT + 1)))

    assert NoReply("body_too_large", sent=True, status=200) == answer


def silent(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
    sock.recv(1)  # until the client hangs up


@pytest.mark.parametrize("call", CALLS)
def test_every_call_ends_in_time(call: Any) -> None:
    started = time.monotonic()
    answer, _ = exchanged(call, silent, request_timeout=TIMEOUT)

    assert isinstance(answer, NoReply)
    assert ("read_timeout", True) == (answer.reason, answer.sent)
    assert MAX_SECONDS > time.monotonic() - started


@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_is_not_followed_for_the_headers_carry_secrets(call: Any) -> None:
    with RawServer() as elsewhere:
        location = f"Location: {elsewhere.url}/connections".encode()
        answer, _ = exchanged(call, whole(b"{}", location, status=b"307 Temporary Redirect"))

    assert isinstance(answer, Reply)
    assert (307, 0) == (answer.status, elsewhere.accepted)
