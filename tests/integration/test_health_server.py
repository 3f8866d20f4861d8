"""The health port as orchestrators, proxies and accidents ask it: real sockets, real threads."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from worker.telemetry import health_server
from worker.telemetry.health import Vitals
from worker.telemetry.health_server import MAX_CONNECTIONS, HealthServer

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTS = ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])]


@pytest.fixture
def vitals() -> Vitals:
    return Vitals()


@pytest.fixture
def server(vitals: Vitals) -> Iterator[HealthServer]:
    made = HealthServer(0, [], vitals)
    made.start()
    yield made
    made.stop()


def ask(
    server: HealthServer, path: str, method: str = "GET", host: str = "127.0.0.1"
) -> tuple[int, bytes, dict[str, str]]:
    with closing(HTTPConnection(host, server.port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez/", "/readyz?x=1", "/readyz/?verbose", "//livez"])
def test_a_probe_is_answered_on_every_family_in_every_spelling(server: HealthServer, path: str, host: str) -> None:
    status, body, _ = ask(server, path, host=host)

    assert (200, {"ok": True, "problems": []}) == (status, json.loads(body))


@pytest.mark.parametrize(("expected", "running"), [(503, True), (200, False)], ids=["died", "was told to end"])
def test_a_thread_that_was_told_to_end_has_not_died(vitals: Vitals, expected: int, *, running: bool) -> None:
    thread = SimpleNamespace(name="intake", alive=False, running=running)
    server = HealthServer(0, [thread], vitals)
    server.start()
    found = [ask(server, path)[0] for path in ("/livez", "/readyz")]
    server.stop()

    assert [expected] * 2 == found


def test_a_head_has_the_status_and_no_body(server: HealthServer, vitals: Vitals) -> None:
    vitals.found("inbox", ["It is not read."])
    status, body, headers = ask(server, "/readyz", "HEAD")

    assert (503, b"") == (status, body)
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("expected", "method", "path"),
    [
        (404, "GET", "/"),
        (404, "GET", "/livezz"),
        (404, "HEAD", "/metricz"),
        (405, "POST", "/livez"),
        (405, "DELETE", "/"),
    ],
)
def test_anything_else_is_refused_by_its_kind(server: HealthServer, expected: int, method: str, path: str) -> None:
    assert expected == ask(server, path, method)[0]


def test_no_header_names_a_program_or_its_version(server: HealthServer) -> None:
    *_, headers = ask(server, "/livez")

    assert {"content-type", "content-length", "connection"} == set(headers)


def test_a_thousand_silent_clients_neither_keep_a_probe_from_its_answer_nor_stay(server: HealthServer) -> None:
    with ExitStack() as stack:
        address = ("127.0.0.1", server.port)
        silent = [stack.enter_context(closing(socket.create_connection(address))) for _ in range(1000)]
        began = time.monotonic()
        assert 200 == ask(server, "/livez")[0]
        assert time.monotonic() - began < 5
        open_still = [each for each in silent if not is_cut(each, within=0.0)]
        assert len(open_still) <= MAX_CONNECTIONS


def test_a_silent_client_is_cut_after_seconds(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_server, "REQUEST_SECONDS", 0.2)
    with closing(socket.create_connection(("127.0.0.1", server.port))) as silent:
        silent.send(b"GET /livez HTTP/1.1\r\nX-Slow: ")

        assert is_cut(silent, within=5)


def test_a_head_without_an_end_is_cut_off(server: HealthServer) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port))) as endless:
        endless.sendall(b"GET /livez HTTP/1.1\r\nX-Long: " + b"x" * 200_000)

        assert is_cut(endless, within=5)


def test_bytes_that_are_no_request_harm_nobody(server: HealthServer) -> None:
    for head in (b"\x00\xff", b"", b"GET", b"GET http://[ HTTP/1.1", b"\x16\x03\x01"):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=5)) as connection:
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(1000)[:13] in {b"", b"HTTP/1.1 404 ", b"HTTP/1.1 405 ", b"HTTP/1.1 400 "}

    assert 200 == ask(server, "/livez")[0]


@pytest.mark.parametrize("address", HOSTS)
def test_it_listens_on_the_address_that_it_is_given_and_on_no_other(address: str, vitals: Vitals) -> None:
    server = HealthServer(0, [], vitals, address)
    server.start()
    try:
        assert 200 == ask(server, "/livez", host=address)[0]
        with pytest.raises(OSError, match=r"refused|reach"):
            ask(server, "/livez", host=next((each for each in HOSTS if each != address), "127.0.0.2"))
    finally:
        server.stop()


def is_cut(client: socket.socket, within: float) -> bool:
    client.settimeout(within or 0.001)
    try:
        return client.recv(1000) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
