"""The sandbox over real sockets, seen with the client library that the worker uses."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import pytest
import requests

from worker.dev.sandbox import Sandbox, Truth

SHOP = "shop-1"
HEADERS = {"x-trackstar-api-key": "k", "x-trackstar-access-token": "t1"}
TIMEOUT = 10.0

Background = Callable[..., "Future[requests.Response]"]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(api_key="k", writes_per_second=None, reads_per_second=None) as sandbox:
        sandbox.world.connect(SHOP, access_token="t1")
        yield sandbox


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture
def background() -> Iterator[Background]:
    """Requests that are under way while the test goes on."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield lambda *args, **kwargs: pool.submit(cancel, *args, **kwargs)


def path_of(sandbox: Sandbox, order_id: str) -> str:
    return f"{sandbox.url}/wms/orders/{quote(order_id, safe='')}"


def cancel(
    sandbox: Sandbox, order_id: str = "order-1", key: str | None = None, timeout: float = TIMEOUT
) -> requests.Response:
    headers = HEADERS if key is None else HEADERS | {"Idempotency-Key": key}
    url = f"{path_of(sandbox, order_id)}/cancel"
    return requests.put(url, headers=headers, timeout=timeout, allow_redirects=False)


def operator(order_id: str) -> bytes:
    head = [f"PUT /wms/orders/{order_id}/cancel HTTP/1.1", *map(": ".join, HEADERS.items())]
    return "\r\n".join([*head, "", ""]).encode()


def truth_of(sandbox: Sandbox, order_id: str = "order-1") -> Truth:
    return sandbox.world.order(SHOP, order_id).truth


def add(sandbox: Sandbox, *script: str, order_id: str = "order-1") -> None:
    sandbox.world.add_order(SHOP, order_id, script=script)


# -- the contract on the wire


@pytest.mark.parametrize(
    "order_id",
    ["order-1", "a/b", "a=b+c", "#1001", "what?", "100%", "a b", "a%2Fb", "%", "ä-端", "a;b,c&d", "cancel", "..x"],
)
def test_an_order_id_is_one_segment_unquoted_once(sandbox: Sandbox, order_id: str) -> None:
    add(sandbox, order_id=order_id)
    answer = cancel(sandbox, order_id)
    assert (answer.status_code, answer.json()["id"], answer.json()["data"]["id"]) == (200, order_id, order_id)
    read = requests.get(path_of(sandbox, order_id), headers=HEADERS, timeout=TIMEOUT)
    assert "cancelled" == read.json()["data"]["status"]


@pytest.mark.parametrize("missing", list(HEADERS))
def test_without_both_headers_there_is_a_401(sandbox: Sandbox, missing: str) -> None:
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    answer = requests.put(f"{path_of(sandbox, 'x')}/cancel", headers=headers, timeout=TIMEOUT)
    assert (401, "trackstar") == (answer.status_code, answer.json()["origin"])


def test_every_answer_has_a_request_id_of_its_own(sandbox: Sandbox, session: requests.Session) -> None:
    add(sandbox, "503", "html", "429:2", "204", "redirect")
    url = f"{path_of(sandbox, 'order-1')}/cancel"
    own = [session.put(url, headers=HEADERS, timeout=TIMEOUT, allow_redirects=False) for _ in range(6)]
    others = [
        session.put(url, timeout=TIMEOUT),
        session.get(f"{sandbox.url}/nowhere", timeout=TIMEOUT),
        session.get(f"{sandbox.url}/_sandbox/", timeout=TIMEOUT),
    ]
    assert [503, 502, 429, 204, 302, 200, 401, 404, 200] == [answer.status_code for answer in own + others]
    assert 9 == len({answer.headers["X-Request-Id"] for answer in own + others})
    assert [request.id for request in truth_of(sandbox).requests] == [answer.headers["X-Request-Id"] for answer in own]


def test_a_success_is_replayed_and_says_so(sandbox: Sandbox) -> None:
    add(sandbox)
    first, again = cancel(sandbox, key="key"), cancel(sandbox, key="key")
    assert "Idempotent-Replayed" not in first.headers
    assert "true" == again.headers["Idempotent-Replayed"]
    assert again.content == first.content


def test_many_orders_are_read_by_their_ids(sandbox: Sandbox) -> None:
    for order_id in ("a", "b+c", "d"):
        add(sandbox, order_id=order_id)
    query = {"ids[in]": "d,b+c,x", "status": "cancelled", "limit": "1"}
    answer = requests.get(f"{sandbox.url}/wms/orders", params=query, headers=HEADERS, timeout=TIMEOUT)
    assert ["d", "b+c"] == [order["id"] for order in answer.json()["data"]]


def test_too_many_writes_get_429_and_when_to_come_again(session: requests.Session) -> None:
    with Sandbox(api_key="k", writes_per_second=5, unknown_orders="open") as sandbox:
        sandbox.world.connect(SHOP, access_token="t1")
        url = f"{path_of(sandbox, 'order')}/cancel"
        answers = [session.put(url, headers=HEADERS, timeout=TIMEOUT) for _ in range(8)]
        traffic = sandbox.world.traffic(SHOP)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert traffic.writes_refused == len(refused) > 0
    assert {"1"} == {answer.headers["retry-after"] for answer in refused}
    assert "4" == answers[0].headers["x-ratelimit-remaining"]
    assert abs(int(answers[0].headers["x-ratelimit-reset"]) - time.time()) < 10


def test_the_endpoints_for_the_api_key_alone(sandbox: Sandbox) -> None:
    key = {"x-trackstar-api-key": "k"}
    made = requests.post(f"{sandbox.url}/sandbox/generate-sandbox/wms", headers=key, timeout=TIMEOUT).json()
    about = requests.get(f"{sandbox.url}/connections/{made['connection_id']}", headers=key, timeout=TIMEOUT)
    assert "cancel_order" in about.json()["data"]["available_actions"]
    assert 401 == requests.get(f"{sandbox.url}/connections/x", timeout=TIMEOUT).status_code


def test_crawls_are_told_of_and_forced(sandbox: Sandbox) -> None:
    sandbox.world.connect(SHOP, trackstar_id="ts-1", crawl_length=60)
    forced = requests.post(
        f"{sandbox.url}/connections/sync", headers=HEADERS, json={"functions_to_sync": ["get_orders"]}, timeout=TIMEOUT
    )
    assert (200, "ts-1", True) == (forced.status_code, forced.json()["id"], forced.json()["syncing"])
    key = {"x-trackstar-api-key": "k"}
    listed = requests.get(f"{sandbox.url}/connections", headers=key, timeout=TIMEOUT).json()
    one = requests.get(f"{sandbox.url}/connections/ts-1", headers=key, timeout=TIMEOUT).json()
    assert ([one["data"]], None) == (listed["data"], listed["next_token"])
    assert [False, True] == [each["in_progress"] for each in one["data"]["sync_schedules"]]
    assert 401 == requests.get(f"{sandbox.url}/connections", timeout=TIMEOUT).status_code


def test_what_changed_is_read_a_page_at_a_time_unless_ids_are_asked_for(sandbox: Sandbox) -> None:
    for order_id in ("a", "b", "c"):
        add(sandbox, order_id=order_id)
    query = {"updated_date[gte]": "2020-01-01T00:00:00+00:00", "limit": "2"}
    found = []
    while query.get("page_token", "first") is not None:
        answer = requests.get(f"{sandbox.url}/wms/orders", params=query, headers=HEADERS, timeout=TIMEOUT).json()
        found.append([order["id"] for order in answer["data"]])
        query["page_token"] = answer["next_token"]
    assert [["a", "b"], ["c"]] == found
    query = {"updated_date[gte]": "2999-01-01T00:00:00Z", "ids[in]": "b"}
    answer = requests.get(f"{sandbox.url}/wms/orders", params=query, headers=HEADERS, timeout=TIMEOUT).json()
    assert ["b"] == [order["id"] for order in answer["data"]]


@pytest.mark.parametrize("skew", [0, 500, -500])
def test_every_answer_has_a_date_by_trackstars_clock(skew: float) -> None:
    with Sandbox(api_key="k", unknown_orders="open", clock_skew=skew) as sandbox:
        sandbox.world.connect(SHOP, access_token="t1")
        add(sandbox, "503", "slow:0")
        answers = [cancel(sandbox) for _ in range(3)] + [requests.get(f"{sandbox.url}/connections", timeout=TIMEOUT)]
        dates = [parsedate_to_datetime(answer.headers["Date"]).timestamp() for answer in answers]
        assert max(abs(date - time.time() - skew) for date in dates) < 10
    with Sandbox(api_key="k", date_header=False) as sandbox:
        assert "Date" not in cancel(sandbox).headers


# -- connections


def test_one_connection_serves_many_requests(sandbox: Sandbox, session: requests.Session) -> None:
    names = [f"order-{number}" for number in range(50)]
    for name in names:
        add(sandbox, "503", order_id=name)
        url = f"{path_of(sandbox, name)}/cancel"
        assert [503, 200] == [session.put(url, headers=HEADERS, timeout=TIMEOUT).status_code for _ in range(2)]
    adapter = session.get_adapter(sandbox.url)
    assert isinstance(adapter, requests.adapters.HTTPAdapter)
    pools = adapter.poolmanager.pools
    assert [1] == [pools[key].num_connections for key in pools.keys()]  # noqa: SIM118 - it is no dict


def test_many_clients_are_served_at_once(sandbox: Sandbox, background: Background) -> None:
    names = [f"order-{number}" for number in range(40)]
    for name in names:
        add(sandbox, "slow:0.05", order_id=name)
    answers = [answer.result() for answer in [background(sandbox, name, key=name) for name in names]]
    assert {200} == {answer.status_code for answer in answers}
    assert {1} == {truth_of(sandbox, name).effective_cancels for name in names}


def test_overlapping_cancels_of_one_order_are_seen(sandbox: Sandbox, background: Background) -> None:
    add(sandbox, "pause", "ok")
    first = background(sandbox)
    sandbox.world.wait_for_pause(SHOP, "order-1")
    assert 200 == cancel(sandbox).status_code
    assert 1 == truth_of(sandbox).in_flight
    sandbox.world.release(SHOP, "order-1")
    assert 400 == first.result().status_code
    assert 2 == truth_of(sandbox).max_in_flight


def test_a_retry_after_a_timeout_is_no_overlap(sandbox: Sandbox) -> None:
    add(sandbox, "hang:60", "503")
    with pytest.raises(requests.ReadTimeout):
        cancel(sandbox, timeout=0.2)
    assert 503 == cancel(sandbox).status_code
    truth = truth_of(sandbox)
    assert (1, 0) == (truth.max_in_flight, truth.in_flight)
    assert ["client_gone", "answered"] == [request.end for request in truth.requests]


@pytest.mark.parametrize("reused", [True, False])
def test_a_client_that_hangs_up_and_asks_again_at_once_is_no_overlap(sandbox: Sandbox, reused: bool) -> None:
    place = ("127.0.0.1", sandbox.port)
    for name in (f"order-{number}" for number in range(50)):
        add(sandbox, "hang:60", "ok", order_id=name)
        with socket.create_connection(place) as first, socket.create_connection(place) as spare:
            first.sendall(operator(name))
            sandbox.world.wait_for_request(SHOP, name)
            first.close()
            with spare if reused else socket.create_connection(place) as second:
                second.sendall(operator(name))
                assert b"HTTP/1.1 200" == second.recv(12)
        assert 1 == truth_of(sandbox, name).max_in_flight


def test_a_client_that_does_not_wait_at_all_is_noticed(sandbox: Sandbox) -> None:
    add(sandbox, "pause")
    with socket.create_connection(("127.0.0.1", sandbox.port)) as line:
        line.sendall(operator("order-1"))
    sandbox.world.wait_for_request(SHOP, "order-1")
    sandbox.world.wait_until(lambda: truth_of(sandbox).requests[0].end == "client_gone")


# -- faults of the network


@pytest.mark.parametrize(
    ("step", "end", "effect"),
    [
        ("reset", "reset", 0),
        ("close", "closed", 0),
        ("hang:0.05", "hung", 0),
        ("applied_then:reset", "reset", 1),
        ("applied_then:close", "closed", 1),
        ("applied_then:hang:0.05", "hung", 1),
        ("succeeded_then:reset", "reset", 1),
    ],
)
def test_an_answer_is_lost_before_or_after_the_cancel(sandbox: Sandbox, step: str, end: str, effect: int) -> None:
    add(sandbox, step)
    with pytest.raises(requests.ConnectionError):
        cancel(sandbox)
    truth = truth_of(sandbox)
    assert (truth.effective_cancels, truth.requests[0].end, truth.requests[0].status) == (effect, end, None)


def test_a_reset_is_a_reset_and_a_close_is_none(sandbox: Sandbox) -> None:
    add(sandbox, "reset", "close")
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        cancel(sandbox)
    with pytest.raises(requests.ConnectionError, match="without response"):
        cancel(sandbox)


def test_a_cut_body_is_shorter_than_it_says(sandbox: Sandbox) -> None:
    add(sandbox, "cut")
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        cancel(sandbox, key="key")
    assert "cut" == truth_of(sandbox).requests[0].end
    assert "true" == cancel(sandbox, key="key").headers["Idempotent-Replayed"]


@pytest.mark.parametrize("step", ["drip:0", "drip_head:0"])
def test_a_dripping_answer_is_whole_in_the_end(sandbox: Sandbox, step: str) -> None:
    add(sandbox, step)
    assert "cancelled" == cancel(sandbox).json()["data"]["status"]
    assert ["answered"] == [request.end for request in truth_of(sandbox).requests]


@pytest.mark.parametrize("step", ["drip:0.05", "drip_head:0.05"])
def test_a_dripping_answer_outlives_a_read_timeout(sandbox: Sandbox, background: Background, step: str) -> None:
    add(sandbox, step)
    answer = background(sandbox, timeout=0.2)
    request = sandbox.world.wait_for_request(SHOP, "order-1")
    with pytest.raises(TimeoutError):
        answer.result(timeout=0.5)
    assert request.ended is None
    sandbox.__exit__(None, None, None)
    with pytest.raises(requests.RequestException):
        answer.result()


def test_a_huge_answer_arrives_whole_or_is_left_unread(sandbox: Sandbox) -> None:
    add(sandbox, "huge:20000000", order_id="read")
    add(sandbox, "huge:20000000", order_id="unread")
    assert 20_000_000 == len(cancel(sandbox, "read").content)
    url = f"{path_of(sandbox, 'unread')}/cancel"
    with requests.put(url, headers=HEADERS, timeout=TIMEOUT, stream=True) as answer:
        assert 1000 == len(next(answer.iter_content(1000)))
    assert 400 == cancel(sandbox, "unread").status_code


def test_a_slow_cancel_is_not_done_before_its_time(sandbox: Sandbox, background: Background) -> None:
    add(sandbox, "slow:0.3")
    answer = background(sandbox)
    sandbox.world.wait_for_request(SHOP, "order-1")
    assert "open" == truth_of(sandbox).status
    assert "cancelled" == answer.result().json()["data"]["status"]


def test_reads_break_too(sandbox: Sandbox) -> None:
    sandbox.world.add_order(SHOP, "order-1", reads=["reset", "html", "cut"])
    url = path_of(sandbox, "order-1")
    with pytest.raises(requests.ConnectionError):
        requests.get(url, headers=HEADERS, timeout=TIMEOUT)
    assert "text/html" == requests.get(url, headers=HEADERS, timeout=TIMEOUT).headers["Content-Type"]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, headers=HEADERS, timeout=TIMEOUT)
    assert "open" == requests.get(url, headers=HEADERS, timeout=TIMEOUT).json()["data"]["status"]


# -- pauses


@pytest.mark.parametrize(("step", "status"), [("pause", "open"), ("pause_applied", "cancelled")])
def test_a_paused_cancel_waits_before_or_after_the_change(
    sandbox: Sandbox, background: Background, step: str, status: str
) -> None:
    add(sandbox, step)
    answer = background(sandbox, key="key")
    sandbox.world.wait_for_pause(SHOP, "order-1")
    assert truth_of(sandbox).status == status
    assert 409 == cancel(sandbox, key="key").status_code
    assert 1 == sandbox.world.release(SHOP, "order-1")
    assert 200 == answer.result().status_code


def test_a_paused_cancel_still_happens_after_its_client_has_died(sandbox: Sandbox) -> None:
    add(sandbox, "pause")
    with pytest.raises(requests.ReadTimeout):
        cancel(sandbox, key="key", timeout=0.2)
    sandbox.world.wait_until(lambda: truth_of(sandbox).in_flight == 0)
    sandbox.world.release(SHOP, "order-1")
    sandbox.world.wait_until(lambda: truth_of(sandbox).effective_cancels == 1)
    assert "true" == cancel(sandbox, key="key").headers["Idempotent-Replayed"]


def test_a_pause_is_released_over_http(sandbox: Sandbox, background: Background) -> None:
    add(sandbox, "pause+503")
    answer = background(sandbox)
    sandbox.world.wait_for_pause(SHOP, "order-1")
    place = {"connection_id": SHOP, "order_id": "order-1"}
    told = requests.post(f"{sandbox.url}/_sandbox/orders/release", json=place, timeout=TIMEOUT)
    assert {"released": 1} == told.json()
    assert 503 == answer.result().status_code


# -- control over HTTP


def test_people_can_arrange_everything_over_http(sandbox: Sandbox) -> None:
    def log_results(path: str, **wish: Any) -> Any:
        return requests.post(f"{sandbox.url}/_sandbox/{path}", json=wish, timeout=TIMEOUT).json()

    made = log_results("connections", id="shop-2", access_token="t2")
    log_results("orders", connection_id="shop-2", order_id="a/b", script=["applied_then:500"])
    headers = HEADERS | {"x-trackstar-access-token": made["access_token"]}
    url = f"{path_of(sandbox, 'a/b')}/cancel"
    assert 500 == requests.put(url, headers=headers, timeout=TIMEOUT).status_code
    query = {"connection_id": "shop-2", "order_id": "a/b"}
    told = requests.get(f"{sandbox.url}/_sandbox/orders", params=query, timeout=TIMEOUT).json()["truth"]
    assert ("cancelled", "open", 1) == (told["status"], told["copy_status"], told["effective_cancels"])
    assert {"synced": 1} == log_results("sync")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"connection_id": 1}', b"\xff"])
def test_control_input_that_is_not_understood_is_a_400(sandbox: Sandbox, body: bytes) -> None:
    answer = requests.post(f"{sandbox.url}/_sandbox/orders", data=body, timeout=TIMEOUT)
    assert (400, "sandbox") == (answer.status_code, answer.json()["origin"])


# -- starting and stopping


def test_it_listens_as_soon_as_it_is_entered_and_not_after() -> None:
    for _ in range(5):
        with Sandbox(api_key="k") as sandbox, socket.create_connection(("127.0.0.1", sandbox.port), timeout=1):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", sandbox.port), timeout=1)


def test_a_port_that_is_taken_is_an_error_on_entry(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="in use"), Sandbox(api_key="k", port=sandbox.port):
        pass


@pytest.mark.parametrize("step", ["hang:600", "pause", "slow:600", "drip:600"])
def test_it_stops_at_once_with_requests_under_way(background: Background, step: str) -> None:
    with Sandbox(api_key="k") as sandbox:
        sandbox.world.connect(SHOP, access_token="t1")
        add(sandbox, step)
        answer = background(sandbox)
        sandbox.world.wait_for_request(SHOP, "order-1")
        began = time.monotonic()
    assert time.monotonic() - began < 5
    with pytest.raises(requests.RequestException):
        answer.result()
    assert sandbox._thread is not None
    assert not sandbox._thread.is_alive()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_served_in_the_foreground_it_ends_with_a_signal_and_prints_nothing(by: signal.Signals) -> None:
    code = (
        "from worker.dev.sandbox import serve\n"
        "serve('127.0.0.1', 0, api_key='k', ready=lambda sandbox: print(sandbox.url, flush=True))"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        made = requests.post(
            f"{url}/sandbox/generate-sandbox/wms", headers={"x-trackstar-api-key": "k"}, timeout=TIMEOUT
        )
        assert 200 == made.status_code
        process.send_signal(by)
        assert ("", "") == process.communicate(timeout=TIMEOUT)
        assert 0 == process.returncode


def test_a_request_without_a_client_library_is_answered_byte_by_byte(sandbox: Sandbox) -> None:
    """One socket, three requests, written by hand: nothing but HTTP/1.1 is relied on."""
    add(sandbox)
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=TIMEOUT) as line:
        reader = line.makefile("rb")
        statuses = []
        for _ in range(3):
            line.sendall(operator("order-1"))
            statuses.append(int(reader.readline().split()[1]))
            head = dict(row.decode().strip().split(": ") for row in iter(reader.readline, b"\r\n"))
            assert json.loads(reader.read(int(head["Content-Length"])))
        reader.close()
    assert [200, 400, 400] == statuses
