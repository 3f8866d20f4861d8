"""Answers in odd forms and with more around them: never given to another order, understood, or told as unreadable."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import threading
import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
from harness.certificates import Tls
from harness.raw_server import API_KEY, GO_ON, LIMIT, TOKEN, RawServer, ask, cancel, client_of, whole

from worker.cancellation.answer import NoReply, Reply
from worker.cli.doctor.connections import _answered
from worker.dev.embedded import free_port
from worker.trackstar import connection
from worker.trackstar.connection import MAX_INTERIM_ANSWERS, _speaks_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from worker.cancellation.answer import Answer
    from worker.trackstar.client import TrackstarClient

NO = whole(b'{"error": "no such order", "origin": "trackstar"}', status=b"404 Not Found")
YES_A, YES_B = (whole(b'{"id": "%s"}' % name) for name in (b"A", b"B"))


def packed(body: bytes) -> bytes:
    return gzip.compress(body, 6, mtime=0)  # the same bytes at any time: they are a test's name


def interim(status: int, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d Interim" % status, *headers, b"", b""])


def a_then_b(*plays: Any, between: float = 0.0) -> tuple[Answer, Answer, RawServer]:
    """Ask for A, to be answered as the first play says, and then for B, which is answered with its own yes."""
    with RawServer(*plays) as server, client_of(server.url) as client:
        first = cancel(client, "A", "key-a")
        time.sleep(between)  # what a server sends late arrives while nobody asks
        return first, cancel(client, "B", "key-b"), server


# -- 1xx


@pytest.mark.parametrize("count", [1, 3, MAX_INTERIM_ANSWERS])
@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers_are_read_over_and_their_connection_is_not_used_again(status: int, count: int) -> None:
    first, second, server = a_then_b(interim(status, b"Link: </a>", b"X: y") * count + NO, YES_B)

    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert (404, "B", 2) == (first.status, second.id, server.accepted)


@pytest.mark.parametrize("status", [100, 103])
def test_an_answer_long_after_an_interim_one_is_the_answer_to_the_same_order(status: int) -> None:
    def play(sock: socket.socket) -> object:
        sock.sendall(interim(status))
        time.sleep(0.3)
        sock.sendall(NO)
        return GO_ON

    first, second, _ = a_then_b(play, YES_B)

    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert (404, "B") == (first.status, second.id)


@pytest.mark.parametrize(
    "said",
    [
        interim(103) * (MAX_INTERIM_ANSWERS + 1) + YES_A,
        interim(103, *[b"X: y"] * (MAX_INTERIM_ANSWERS + 1)) + YES_A,
        interim(103),
        b"HTTP/1.1 103 Early",
        interim(103) + b"HTTP/2 200\r\n\r\n",
    ],
    ids=["too many", "too long", "nothing behind it", "cut", "another protocol behind it"],
)
def test_interim_answers_without_end_leave_the_order_in_doubt(said: bytes) -> None:
    def play(sock: socket.socket) -> None:
        sock.sendall(said)

    first, second, _ = a_then_b(play, YES_B)

    assert isinstance(first, NoReply)
    assert isinstance(second, Reply)
    assert (True, "B") == (first.sent, second.id)


# -- what nobody asked for


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(YES_A + NO, id="a second answer"),
        pytest.param(YES_A + b"x", id="a byte"),
        pytest.param(YES_A + b"\r\n", id="a blank line"),
        pytest.param(YES_A + interim(103), id="an interim answer behind it"),
        pytest.param(whole(b"{}" + NO).replace(b"Length: ", b"Length: 2\r\nX: ", 1), id="a length too short"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n" + NO, id="204, and an answer behind it"),
        pytest.param(whole(b"{}", status=b"204 No Content"), id="204 with a body"),
        pytest.param(whole(b"{}", status=b"205 Reset Content"), id="205 with a body"),
        pytest.param(whole(b"{}", status=b"304 Not Modified"), id="304 with a body"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + NO, id="101"),
        pytest.param(chunked(b"{}") + NO, id="chunks, and an answer behind them"),
        pytest.param(chunked(b"{}", end=b"0\r\nX: y\r\n\r\nmore"), id="more behind a trailer"),
        pytest.param(chunked(b"{}", end=b"0\r\n" + NO), id="an answer for a trailer"),
        pytest.param(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}", id="HTTP/1.0"),
        pytest.param(whole(b"{}", b"Content-Length: 2"), id="its length twice"),
        pytest.param(whole(b"{}").replace(b": 2", b": +2"), id="its length with a sign"),
        pytest.param(chunked(b"{}").replace(b"\r\n\r\n", b"\r\nContent-Length: 12\r\n\r\n", 1), id="two framings"),
    ],
)
def test_a_connection_is_not_used_again_after_anything_unusual(answer: bytes) -> None:
    first, second, server = a_then_b(answer, YES_B)

    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert ("B", 2) == (second.id, server.accepted)


@pytest.mark.parametrize(
    "late", [NO, YES_A, interim(103), b"\r\n", b"x"], ids=["no", "yes", "103", "blank line", "byte"]
)
def test_what_comes_after_an_answer_is_given_to_no_other_order(late: bytes) -> None:
    def play(sock: socket.socket) -> object:
        sock.sendall(YES_A)
        time.sleep(0.1)
        sock.sendall(late)
        return GO_ON

    _, second, server = a_then_b(play, YES_B, between=0.3)

    assert isinstance(second, Reply)
    assert ("B", 2) == (second.id, server.accepted)


@pytest.mark.parametrize("between", [0, 1, 20])
def test_a_second_answer_with_the_id_of_an_earlier_one_is_known_even_when_the_next_orders_have_been_sent(
    between: int,
) -> None:
    plays = [whole(b'{"id": "A"}', b"X-Request-Id: r-%d" % number) for number in range(1 + between)]
    again = NO.replace(b"\r\n", b"\r\nX-Request-Id: r-0\r\n", 1)
    answers, server = ask(*plays, again, times=2 + between)

    assert 1 == server.accepted
    assert [True] * (1 + between) == [isinstance(answer, Reply) for answer in answers[:-1]]
    assert NoReply("connection_lost", sent=True, detail="ConnectionError") == answers[-1]


def test_a_stored_answer_may_have_the_id_of_the_first_on_another_connection() -> None:
    same = whole(b'{"id": "A"}', b"X-Request-Id: r-1", b"Connection: close")
    first, second, _ = a_then_b(same, same)

    assert isinstance(first, Reply)
    assert isinstance(second, Reply)


@pytest.mark.parametrize("answer", [YES_A, chunked(b'{"id": ', b'"A"}'), chunked(b"{}", end=b"0\r\nX: y\r\n\r\n")])
def test_a_connection_is_used_again_after_an_ordinary_answer(answer: bytes) -> None:
    _, second, server = a_then_b(answer, YES_B)

    assert isinstance(second, Reply)
    assert ("B", 1) == (second.id, server.accepted)


@pytest.mark.parametrize("answer", [whole(b"x" * (LIMIT + 1)), whole(packed(b"x" * (LIMIT + 1)))])
def test_a_body_that_is_too_large_is_given_to_no_other_order(answer: bytes) -> None:
    first, second, _ = a_then_b(answer, YES_B)

    assert isinstance(second, Reply)
    assert NoReply("body_too_large", sent=True, status=200) == first
    assert "B" == second.id


def test_a_server_that_speaks_before_it_is_asked_or_hangs_up_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(7)
        assert not _speaks_first(ours)
        theirs.send(NO)
        assert _speaks_first(ours)
        assert 7 == ours.gettimeout()
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        assert _speaks_first(ours)


# -- idle connections


def only_connection(client: TrackstarClient) -> Any:
    return client._adapter._pool.pool.queue[-1]


def test_a_connection_that_was_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_IDLE_SECONDS", 0.0)
    _, second, server = a_then_b(YES_A, YES_B)

    assert isinstance(second, Reply)
    assert ("B", 2) == (second.id, server.accepted)


def test_an_idle_connection_is_probed_so_that_a_dead_one_is_found_in_seconds() -> None:
    with RawServer(YES_A) as server, client_of(server.url) as client:
        cancel(client)
        sock = only_connection(client).sock

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        idle = getattr(socket, "TCP_KEEPIDLE", None) or socket.TCP_KEEPALIVE
        assert 15 == sock.getsockopt(socket.IPPROTO_TCP, idle)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert 20_000 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


# -- bodies


ORDER = {"data": {"id": "o-1", "status": "cancelled", "name": "J\u00f6rg"}, "id": "o-1"}
BODY = json.dumps(ORDER, ensure_ascii=False).encode()


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", packed(BODY)),
        ("x-gzip", packed(BODY)),
        ("GZIP", packed(BODY[:9]) + packed(BODY[9:]) + b"\0" * 8),
        ("", packed(BODY)),
        ("identity", BODY),
        ("gzip", BODY),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("deflate", BODY),
        ("deflate, gzip", packed(zlib.compress(BODY))),
        ("gzip, gzip", packed(packed(BODY))),
        ("br", BODY),
        ("", b"\xef\xbb\xbf" + BODY),
        ("gzip", packed(b"\xef\xbb\xbf" + BODY)),
        ("", BODY.decode().encode("utf-16")),
        ("", BODY.decode().encode("utf-16-be")),
        ("", BODY.decode().encode("utf-32")),
    ],
)
def test_a_body_is_understood_in_every_common_coding(coding: str, body: bytes) -> None:
    (answer,), _ = ask(whole(body, b"Content-Encoding: " + coding.encode()))

    assert isinstance(answer, Reply)
    assert ("o-1", "cancelled") == (answer.id, answer.orders[0].status)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", packed(BODY)[:-9]),
        ("gzip", b"\x1f\x8b\x08" + BODY),
        ("deflate", zlib.compress(BODY)[:-9]),
        ("br", b"\x1b" + BODY[::-1]),
        ("zstd", b"\x28\xb5\x2f\xfd" + BODY),
        ("", BODY.decode().encode("latin-1")),
        ("", b"\xef\xbb" + BODY),
        ("", BODY.decode().encode("utf-16")[:-1]),
    ],
)
def test_a_body_in_another_coding_is_told_as_no_json(coding: str, body: bytes) -> None:
    (answer,), _ = ask(whole(body, b"Content-Encoding: " + coding.encode()))

    assert isinstance(answer, Reply)
    assert (200, "not_json") == (answer.status, answer.body)


def bomb(layers: int) -> bytes:
    body = b" " * 50_000_000
    for _ in range(layers):
        body = packed(body)
    return body


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", bomb(1)),
        ("gzip", bomb(2)),
        ("", bomb(1)),
        ("deflate", zlib.compress(b" " * 50_000_000)),
        ("deflate", raw_deflate(b" " * 50_000_000)),
    ],
)
def test_a_body_that_inflates_without_end_is_not_kept(coding: str, body: bytes) -> None:
    (answer,), _ = ask(whole(body, b"Content-Encoding: " + coding.encode()), max_response_bytes=1_000_000)

    assert NoReply("body_too_large", sent=True, status=200) == answer


@pytest.mark.parametrize("status", [200, 404])
def test_the_status_of_an_answer_whose_body_is_cut_is_known(status: int) -> None:
    def play(sock: socket.socket) -> None:
        sock.sendall(b'HTTP/1.1 %d What\r\nContent-Length: 100\r\n\r\n{"id"' % status)

    (answer,), _ = ask(play)

    assert isinstance(answer, NoReply)
    assert ("cut_body", True, status) == (answer.reason, answer.sent, answer.status)


# -- a private authority, and a proxy


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def secure(server: RawServer) -> str:
    return server.url.replace("http:", "https:")


LONG: dict[str, Any] = {"connect_timeout": 5.0}


def test_a_server_of_a_private_authority_is_trusted_with_its_bundle_and_only_with_it(tls: Tls) -> None:
    with RawServer(YES_A, YES_B, tls=tls.context) as server:
        with client_of(secure(server), ca_bundle=str(tls.bundle), **LONG) as client:
            answers = [cancel(client, "A"), cancel(client, "B")]
        with client_of(secure(server), **LONG) as client:
            refused = cancel(client)

    assert ["A", "B"] == [answer.id for answer in answers if isinstance(answer, Reply)]
    assert 2 == server.accepted  # the second is the refused one
    assert isinstance(refused, NoReply)
    assert ("tls_failed", False) == (refused.reason, refused.sent)
    assert "certificate" in (refused.detail or "")


def test_a_trusted_certificate_of_another_server_is_refused(tmp_path: Path) -> None:
    other = Tls(tmp_path, "192.0.2.1")
    with (
        RawServer(tls=other.context) as server,
        client_of(secure(server), ca_bundle=str(other.bundle), **LONG) as client,
    ):
        answer = cancel(client)

    assert isinstance(answer, NoReply)
    assert ("tls_failed", False) == (answer.reason, answer.sent)
    assert "mismatch" in (answer.detail or "")
    assert [] == server.heads


def test_over_tls_too_a_connection_is_not_used_again_after_anything_unusual(tls: Tls) -> None:
    with (
        RawServer(YES_A, interim(103) + YES_A, YES_A + NO, YES_B, tls=tls.context) as server,
        client_of(secure(server), ca_bundle=str(tls.bundle), **LONG) as client,
    ):
        answers = [cancel(client, order_id) for order_id in "AAAB"]

    assert list("AAAB") == [answer.id for answer in answers if isinstance(answer, Reply)]
    assert 3 == server.accepted


def test_no_certificates_of_the_environment_are_trusted(monkeypatch: pytest.MonkeyPatch, tls: Tls) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tls.bundle))
    with RawServer(YES_A, tls=tls.context) as server, client_of(secure(server), **LONG) as client:
        answer = cancel(client)

    assert isinstance(answer, NoReply)
    assert "tls_failed" == answer.reason


class Proxy:
    """A proxy: carries a tunnel where its password is given, else says 407; passes on what is asked in clear."""

    def __init__(self, login: str = "me:s3cret/word") -> None:
        self._login = b"Basic " + base64.b64encode(login.encode())
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.heads.append(head)
            if self._login not in head:
                client.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
                return
            if not head.startswith(b"CONNECT "):
                client.sendall(YES_A)
                return
            host, _, port = head.split(b" ")[1].rpartition(b":")
            with socket.create_connection((host.decode(), int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=pump, args=(server, client), daemon=True)
                back.start()
                pump(client, server)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_the_only_way_out_may_be_a_proxy_which_sees_no_secret(tls: Tls, proxy: Proxy) -> None:
    url = f"http://me:s3cret%2Fword@127.0.0.1:{proxy.port}"
    with (
        RawServer(YES_A, YES_B, tls=tls.context) as server,
        client_of(secure(server), ca_bundle=str(tls.bundle), proxy=url, **LONG) as client,
    ):
        answers = [cancel(client, "A"), cancel(client, "B")]

    assert ["A", "B"] == [answer.id for answer in answers if isinstance(answer, Reply)]
    assert (1, 1) == (server.accepted, len(proxy.heads))
    assert proxy.heads[0].startswith(b"CONNECT 127.0.0.1:%d " % server.port)
    assert b"Proxy-Authorization" not in server.heads[0]
    assert [] == [head for head in proxy.heads if API_KEY.encode() in head or TOKEN.encode() in head]


def test_a_proxy_that_lets_nobody_through_is_named_and_nothing_was_sent(tls: Tls, proxy: Proxy) -> None:
    with (
        RawServer(tls=tls.context) as server,
        client_of(secure(server), proxy=f"http://127.0.0.1:{proxy.port}", **LONG) as refused,
        client_of(secure(server), proxy=f"http://127.0.0.1:{free_port()}", **LONG) as away,
    ):
        answers = [cancel(refused), cancel(away)]

    assert [NoReply("proxy_failed", sent=False, detail="ProxyError")] * 2 == answers
    assert [] == server.heads


def test_a_proxy_is_asked_for_the_whole_address_where_there_is_no_tls(proxy: Proxy) -> None:
    url = f"http://me:s3cret%2Fword@127.0.0.1:{proxy.port}"
    with client_of("http://trackstar.invalid/base", proxy=url, **LONG) as client:
        answer = cancel(client)

    assert isinstance(answer, Reply)
    assert proxy.heads[0].startswith(b"PUT http://trackstar.invalid/base/wms/orders/o-1/cancel HTTP/1.1\r\n")
    assert b"\r\nHost: trackstar.invalid\r\n" in proxy.heads[0]


def test_the_doctor_names_a_certificate_and_a_proxy_with_their_settings(tls: Tls) -> None:
    with (
        RawServer(tls=tls.context) as server,
        client_of(secure(server), **LONG) as untrusting,
        client_of(secure(server), proxy=f"http://127.0.0.1:{free_port()}", **LONG) as lost,
    ):
        (certificate,) = _answered("Connection shop-1", untrusting.read_connection("shop-1"))
        (proxy,) = _answered("Connection shop-1", lost.read_connection("shop-1"))

    assert "tls_failed: self-signed certificate" in certificate.said
    assert "CA_BUNDLE" in certificate.remedy
    assert "TRACKSTAR_PROXY" in proxy.remedy


def silent_after(said: bytes) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        sock.sendall(said)
        sock.recv(1)

    return play


def test_a_proxy_or_a_server_that_stops_in_the_middle_of_a_greeting_costs_the_time_limit() -> None:
    with RawServer(silent_after(b"HTTP/1.1 200 Conn")) as proxy:
        with client_of("https://127.0.0.1:1", proxy=proxy.url, request_timeout=0.5, connect_timeout=5.0) as client:
            started = time.monotonic()
            answer = cancel(client)

        assert isinstance(answer, NoReply)
        assert not answer.sent
        assert time.monotonic() - started < 2.5


def test_among_odd_answers_every_order_gets_its_own() -> None:
    """Every fifth answer is unusual in some way, and no order ever gets what was meant for another."""
    odd = [YES_A + NO, interim(103) + YES_A, chunked(b'{"id": "A"}') + b"x", YES_A + interim(100)]
    orders = [os.urandom(4).hex() for _ in range(200)]
    plays = [
        (odd[number // 5 % len(odd)] if number % 5 == 0 else YES_A).replace(b'"A"', b'"%s"' % order.encode())
        for number, order in enumerate(orders)
    ]
    plays = [resized(play) for play in plays]
    with RawServer(*plays) as server, client_of(server.url) as client:
        answers = [cancel(client, order, order) for order in orders]

    assert orders == [answer.id for answer in answers if isinstance(answer, Reply)]
    assert 41 == server.accepted


def resized(play: bytes) -> bytes:
    """Let lengths that were true of A be true of longer ids."""
    return play.replace(b"Content-Length: 11\r\n", b"Content-Length: 18\r\n").replace(b"\r\nb\r\n", b"\r\n12\r\n")
