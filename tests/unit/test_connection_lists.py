"""What is read of lists of connections, pages of orders and forced crawls: loosely, bounded, never raising."""

from __future__ import annotations

import json
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.answer import ListedConnection, Reply
from worker.cancellation.freshness import CrawlStatus, Schedule
from worker.cancellation.listing import (
    MAX_CONNECTIONS,
    MAX_ORDERS,
    read_connection,
    read_connections,
    read_crawl_request,
    read_orders_page,
)
from worker.inputs.instants import read_age, read_day_or_instant, read_instant, read_period

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
READERS = [read_connection, read_connections, read_orders_page, read_crawl_request]
ORDERS = {
    "function_name": "get_orders",
    "last_crawl_start": "2030-01-01T12:00:00Z",
    "last_crawl_end": "2030-01-01T12:05:00+00:00",
    "latest_sync": "2030-01-01T12:05:00Z",
    "sync_frequency": 3600,
    "in_progress": False,
    "sync_status": "enabled",
}
READ = Schedule(NOON, NOON + timedelta(minutes=5), 3600.0, CrawlStatus.ENABLED)


def listed(*connections: Any, **more: Any) -> Reply:
    return read_connections(200, json.dumps({"data": list(connections), **more}).encode())


def schedule(**fields: Any) -> Schedule:
    (connection,) = listed({"id": "c-1", "sync_schedules": [{"function_name": "get_orders", **fields}]}).connections
    assert connection.schedule is not None
    return connection.schedule


# ---- connections


def test_each_connection_is_read_with_its_crawl_of_orders() -> None:
    other = {**ORDERS, "function_name": "get_inventory", "sync_frequency": 60}
    reply = listed(
        {"id": "c-1", "sync_schedules": [other, ORDERS]}, {"id": 2, "sync_schedules": [other]}, {"id": "c-3"}
    )

    assert (
        ListedConnection("c-1", READ),
        ListedConnection("2", None),
        ListedConnection("c-3", None),
    ) == reply.connections
    assert ((), False, None) == (reply.orders, reply.more, reply.next_token)


def test_the_one_connection_of_an_organisation_may_be_an_object() -> None:
    content = json.dumps({"data": {"id": "c-1", "sync_schedules": ORDERS}}).encode()

    assert (ListedConnection("c-1", READ),) == read_connections(200, content).connections


@pytest.mark.parametrize("form", [dict, lambda data: [data]], ids=["an object", "a list of one"])
def test_one_connection_is_read_with_its_id_and_its_crawl_of_orders(form: Any) -> None:
    content = json.dumps(
        {"data": form({"id": "c-1", "integration_name": "shiphero", "sync_schedules": [ORDERS]})}
    ).encode()
    facts = read_connection(200, content).connection

    assert facts is not None
    assert ("c-1", "shiphero", READ) == (facts.id, facts.integration_name, facts.schedule)


@pytest.mark.parametrize("odd", [None, 1, "x", [], [[]], {}, {"id": None}, {"id": ""}, {"id": {}}, {"id": True}])
def test_what_is_no_connection_is_passed_over(odd: Any) -> None:
    assert ["c-1"] == [connection.id for connection in listed(odd, {"id": "c-1"}).connections]


@pytest.mark.parametrize("odd", [None, 1, "get_orders", [], {}, [None], [[]], [1], [{}], [{"function_name": None}]])
def test_a_connection_without_a_readable_schedule_is_one_of_which_nothing_is_known(odd: Any) -> None:
    assert (ListedConnection("c-1", None),) == listed({"id": "c-1", "sync_schedules": odd}).connections


@pytest.mark.parametrize("odd", [None, [], {}, "soon", True, False, -1, 0])
def test_a_field_of_another_type_says_nothing(odd: Any) -> None:
    assert Schedule() == schedule(last_crawl_start=odd, last_crawl_end=odd, sync_frequency=odd, sync_status=odd)


@pytest.mark.parametrize(
    ("status", "in_progress", "said"),
    [
        (CrawlStatus.ENABLED, False, "enabled"),
        (CrawlStatus.ENABLED, None, "enabled"),
        (CrawlStatus.DISABLED, False, "disabled"),
        (CrawlStatus.ERROR, False, "error"),
        (CrawlStatus.IN_PROGRESS, False, "sync_in_progress"),
        (CrawlStatus.IN_PROGRESS, None, "first_sync_in_progress"),
        (CrawlStatus.IN_PROGRESS, True, "enabled"),
        (CrawlStatus.IN_PROGRESS, True, None),
        (CrawlStatus.UNKNOWN, False, "paused"),
        (CrawlStatus.UNKNOWN, "true", None),
        (CrawlStatus.UNKNOWN, 1, ["enabled"]),
    ],
)
def test_a_status_is_one_of_five_words(status: CrawlStatus, in_progress: Any, said: Any) -> None:
    assert status is schedule(in_progress=in_progress, sync_status=said).status


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (NOON, "2030-01-01T12:00:00Z"),
        (NOON, "2030-01-01T12:00:00"),
        (NOON, "2030-01-01 12:00"),
        (NOON, " 2030-01-01t12:00:00.000000000z "),
        (NOON, "2030-01-01T14:30:00+02:30"),
        (NOON, "2030-01-01T04:00:00-0800"),
        (NOON, "2030-01-01 12:00:00 Z"),
        (NOON + timedelta(microseconds=123456), "2030-01-01T12:00:00.123456789Z"),
        (NOON, int(NOON.timestamp())),
        (NOON, NOON.timestamp()),
        (NOON, int(NOON.timestamp() * 1000)),
        (None, int(NOON.timestamp() * 1_000_000)),
        *((None, odd) for odd in (None, True, "", "now", "2030-01-01", "20300101T120000Z", "1893499200", "9" * 5000)),
        *((None, odd) for odd in (0, -1, 1.5, 1e300, 10**400, float("nan"), float("inf"), [], {}, b"")),
        *((None, odd) for odd in ("2030-02-30T12:00:00Z", "2030-01-01T25:00:00Z", "1999-12-31T23:59:59Z")),
        *(
            (None, odd)
            for odd in ("0001-01-01T00:00:00+12:00", "9999-12-31T23:59:59-12:00", "2030-01-01T12:00:00+99:00")
        ),
        (None, "\u0662030-01-01T12:00:00Z"),
    ],
)
def test_an_instant_is_a_text_with_an_offset_or_a_number_since_1970(expected: datetime | None, value: Any) -> None:
    assert expected == read_instant(value)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        *((3600.0, said) for said in (3600, 3600.0, "3600", " 3600.0 ")),
        *((60.0, said) for said in (1, 0.001, "59")),
        *((604_800.0, said) for said in (604_801, 10**400, 1e300, float("inf"), "999999999999")),
        *(
            (None, odd)
            for odd in (0, -1, float("nan"), True, "", "hourly", "1e3", "-5", "inf", "9" * 5000, "0", None, [])
        ),
    ],
)
def test_a_period_is_a_number_within_its_limits(expected: float | None, value: Any) -> None:
    assert expected == read_period(value, least=60.0, most=604_800.0)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        *zip((90.0, 900.0, 7200.0, 259_200.0, 604_800.0), ("90s", "15m", " 2H ", "3 d", "1w"), strict=True),
        (0.0, "0s"),
        (100 * 366 * 86_400.0, "999999999w"),
        *((None, odd) for odd in ("", "2", "h", "-2h", "1.5h", "2 hours", "9999999999s", "\u0662h", "2h\n3h")),
    ],
)
def test_an_age_is_a_whole_number_and_a_unit(expected: float | None, text: str) -> None:
    assert expected == read_age(text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (datetime(2030, 1, 1, tzinfo=UTC), "2030-01-01"),
        (NOON, "2030-01-01T12:00"),
        (NOON, " 2030-01-01 12:00:00 UTC"),
        (NOON, "2030-01-01T13:00:00+01:00"),
        *((None, odd) for odd in ("", "today", "2030-01", "2030-02-30", "1893499200", "2999-01-01")),
    ],
)
def test_a_time_that_is_typed_is_a_day_or_an_instant(expected: datetime | None, text: str) -> None:
    assert expected == read_day_or_instant(text)


@pytest.mark.parametrize(
    ("more", "count"), [(False, 0), (False, 1), (False, MAX_CONNECTIONS), (True, 10_001), (True, 20_000)]
)
def test_of_one_page_ten_thousand_connections_are_looked_at(more: bool, count: int) -> None:
    reply = listed(*({"id": number} for number in range(count)))

    assert more is reply.more
    assert [str(number) for number in range(min(count, MAX_CONNECTIONS))] == [each.id for each in reply.connections]


# ---- pages


@pytest.mark.parametrize(
    ("token", "more", "said"),
    [
        ("abc", False, "abc"),
        ("7", False, 7),
        ("0", False, 0),
        ("x" * 4096, False, "x" * 4096),
        *((None, False, none) for none in (None, "", False, [], {})),
        *((None, True, odd) for odd in (True, 1.5, ["abc"], {"a": 1}, "x" * 4097)),
    ],
)
def test_a_page_has_a_next_one_where_its_token_is_a_text_or_a_number(token: str | None, more: bool, said: Any) -> None:
    for read in (read_connections, read_orders_page):
        reply = read(200, json.dumps({"data": [], "next_token": said}).encode())
        assert (token, more) == (reply.next_token, reply.more)


def test_a_page_holds_a_thousand_orders() -> None:
    orders = [{"id": str(number), "status": "open"} for number in range(MAX_ORDERS + 1)]
    page = read_orders_page(200, json.dumps({"data": orders[:-1], "next_token": "n"}).encode())
    longer = read_orders_page(200, json.dumps({"data": orders}).encode())

    assert [str(number) for number in range(MAX_ORDERS)] == [order.id for order in page.orders]
    assert ("n", False, True) == (page.next_token, page.more, longer.more)
    assert MAX_ORDERS == len(longer.orders)


# ---- forced crawls


@pytest.mark.parametrize(("syncing", "said"), [(True, True), (False, False), (None, None), (None, "true"), (None, 1)])
def test_a_forced_crawl_names_the_connection_and_whether_it_runs(syncing: bool | None, said: Any) -> None:
    reply = read_crawl_request(200, json.dumps({"id": "c-1", "syncing": said, "functions_to_sync": []}).encode())

    assert ("c-1", syncing) == (reply.id, reply.syncing)


# ---- anything


@pytest.mark.parametrize("read", READERS)
@settings(deadline=None)
@given(content=st.binary(max_size=100))
def test_any_bytes_are_read_without_an_error(read: Any, content: bytes) -> None:
    assert 200 == read(200, content).status


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*ORDERS, "id", "data", "sync_schedules", "next_token", "syncing"]), inner)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("read", READERS)
@settings(deadline=None)
@given(data=values, token=values, syncing=values)
def test_any_document_is_read_without_an_error(read: Any, data: Any, token: Any, syncing: Any) -> None:
    content = json.dumps({"id": data, "data": data, "next_token": token, "syncing": syncing}).encode()

    assert 200 == read(200, content).status


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("depth", [300, 900, 990, 1100, 100_000])
@pytest.mark.parametrize(
    "around", [b'{"data":%s}', b'{"data":[%s]}', b'{"data":{"id":"a","sync_schedules":[%s]}}', b'{"next_token":%s}']
)
def test_what_is_nested_beyond_reason_is_read_without_an_error(read: Any, depth: int, around: bytes) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        inner = opening * depth + b"1" + closing * depth
        assert 200 == read(200, around % inner).status


MILLIONS = b"{}," * 1_390_000 + b"{}"


@pytest.mark.parametrize("read", [read_connections, read_orders_page, read_crawl_request])
@pytest.mark.parametrize(
    "around",
    [
        b'{"data":[%s]}',
        b'{"data":{"id":"a","sync_schedules":[%s]}}',
        b'{"data":[{"id":[%s]}]}',
        b'{"data":[{"id":"a","sync_schedules":[{"function_name":"get_orders","last_crawl_start":[%s]}]}]}',
        b'{"next_token":[%s]}',
        b'{"syncing":[%s]}',
    ],
)
def test_millions_of_items_are_skipped_and_not_made_into_objects(read: Any, around: bytes) -> None:
    content = around % MILLIONS
    read(200, content)  # what is made once is made now
    started = time.thread_time()
    read(200, content)
    took = time.thread_time() - started
    tracemalloc.start()
    read(200, content)
    _, held = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0.5 > took
    assert 10 * len(content) > held
