"""The client on the wire: what it sends, what it makes of all that can come back, and that it never raises for it."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness.raw_server import (
    API_KEY,
    LIMIT,
    MAX_SECONDS,
    TIMEOUT,
    TOKEN,
    Play,
    RawServer,
    ask,
    cancel,
    client_of,
    whole,
)

from worker.cancellation.answer import NoReply, Reply
from worker.dev.embedded import free_port
from worker.dev.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def fault(*plays: Play, **limits: Any) -> tuple[str, bool]:
    (answer,), _ = ask(*plays, **limits)
    assert isinstance(answer, NoReply), answer
    return answer.reason, answer.sent


# -- what is sent


def test_a_cancel_is_a_put_without_a_body_and_with_exactly_these_headers() -> None:
    _, server = ask(whole())
    line, *headers = server.heads[0].decode().removesuffix("\r\n\r\n").split("\r\n")

    assert "PUT /wms/orders/o-1/cancel HTTP/1.1" == line
    assert {
        "Host": f"127.0.0.1:{server.port}",
        "x-trackstar-api-key": API_KEY,
        "x-trackstar-access-token": TOKEN,
        "Idempotency-Key": "key-1",
        "User-Agent": "trackstar-cancel-worker",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "keep-alive",
        "Content-Length": "0",
    } == dict(header.split(": ", 1) for header in headers)


@pytest.mark.parametrize(
    ("segment", "order_id"),
    [
        ("a%2Fb%20c%25%3F%23%2B%3D", "a/b c%?#+="),
        ("%2E%2E%2Fadmin", "../admin"),
        ("%252F", "%2F"),
        ("%E2%98%83", "\N{SNOWMAN}"),
        ("a%2Cb%3Bc%26d%40e%3A", "a,b;c&d@e:"),
        ("%5C%22%27%3C%3E%7B%7D%7C%5E%60", "\\\"'<>{}|^`"),
    ],
)
def test_an_order_id_is_one_segment_of_the_path(segment: str, order_id: str) -> None:
    with RawServer(whole(), whole(), whole()) as server, client_of(server.url) as client:
        cancel(client, order_id)
        client.read_order(order_id, access_token=TOKEN)
        client.read_orders([order_id, "z"], access_token=TOKEN)
    lines = [head.partition(b" HTTP/1.1\r\n")[0].decode() for head in server.heads]
    dotted = segment.replace("%2E", ".")  # a dot is no reserved character

    assert [
        f"PUT /wms/orders/{dotted}/cancel",
        f"GET /wms/orders/{dotted}",
        f"GET /wms/orders?ids%5Bin%5D={dotted},z",
    ] == lines


def test_a_read_has_no_key_and_no_body() -> None:
    with RawServer(whole()) as server, client_of(server.url) as client:
        client.read_order("o-1", access_token=TOKEN)

    assert b"GET /wms/orders/o-1 HTTP/1.1\r\n" in server.heads[0]
    assert b"Idempotency-Key" not in server.heads[0]
    assert b"Content-" not in server.heads[0]
    assert f"x-trackstar-access-token: {TOKEN}".encode() in server.heads[0]


def test_the_base_address_may_have_a_path_and_a_slash_at_its_end() -> None:
    with RawServer(whole()) as server, client_of(f"{server.url}/proxy/") as client:
        cancel(client)

    assert server.heads[0].startswith(b"PUT /proxy/wms/orders/o-1/cancel ")


def test_a_connection_is_used_again() -> None:
    answers, server = ask(*[whole()] * 5, times=5)

    assert [200] * 5 == [answer.status for answer in answers if isinstance(answer, Reply)]
    assert 1 == server.accepted


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    answers, server = ask(whole(b"{}", b"Connection: close"), whole(), times=2)

    assert [200, 200] == [answer.status for answer in answers if isinstance(answer, Reply)]
    assert 2 == server.accepted


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary Redirect", b"308 Permanent Redirect"])
def test_a_redirect_is_not_followed_for_the_headers_carry_secrets(status: bytes) -> None:
    with RawServer(whole()) as elsewhere:
        location = f"Location: {elsewhere.url}/wms".encode()
        (answer,), _ = ask(whole(b"{}", location, status=status))

    assert isinstance(answer, Reply)
    assert int(status[:3]) == answer.status
    assert 0 == elsewhere.accepted


def test_a_cookie_is_not_sent_back() -> None:
    _, server = ask(whole(b"{}", b"Set-Cookie: a=b; Path=/"), whole(), times=2)

    assert b"ookie" not in server.heads[1]


def test_no_proxy_of_the_environment_gets_the_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with RawServer(whole()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        (tmp_path / ".netrc").write_text("default login a password b")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        (answer,), server = ask(whole())

    assert isinstance(answer, Reply)
    assert 0 == proxy.accepted
    assert b"Authorization" not in server.heads[0]


# -- what comes back


def test_an_answer_is_returned_as_it_came() -> None:
    body = b'{"data": {"id": "o-1", "status": "cancelled", "x": null}, "id": "o-1", "unused_fields": []}'
    (answer,), _ = ask(whole(body, b"X-Request-Id: req-1", b"Idempotent-Replayed: true", b"Retry-After: 3"))

    assert isinstance(answer, Reply)
    assert (200, "o-1", "req-1", True, 3.0, "[]") == (
        answer.status,
        answer.id,
        answer.request_id,
        answer.replayed,
        answer.retry_after,
        answer.unused_fields,
    )
    assert ['{"id": "o-1", "status": "cancelled", "x": null}'] == [order.document for order in answer.orders]


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(5.0, "5"), (0.5, "0.5"), (0.0, "0"), *((None, text) for text in ("-1", "soon", "inf", "nan", "", "1e999"))],
)
def test_the_servers_wish_to_wait_is_a_number_or_nothing(seconds: float | None, header: str) -> None:
    (answer,), _ = ask(whole(b"{}", b"Retry-After: " + header.encode(), status=b"429 Too Many Requests"))

    assert isinstance(answer, Reply)
    assert seconds == answer.retry_after


def test_the_servers_wish_to_wait_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    (answer,), _ = ask(whole(b"{}", f"Retry-After: {date}".encode(), status=b"503 Service Unavailable"))

    assert isinstance(answer, Reply)
    assert 55 < (answer.retry_after or 0) <= 60


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    (answer,), _ = ask(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"id": "o-1"}')

    assert isinstance(answer, Reply)
    assert "o-1" == answer.id


# -- time and size


def drip(head: bytes, forever: bytes) -> Callable[[socket.socket], None]:
    """Send the head at once and then a byte now and then, until the client hangs up."""

    def play(sock: socket.socket) -> None:
        sock.sendall(head)
        # Bounded, so that a client without a bound fails the test and does not hang it.
        for _ in range(200):
            sock.sendall(forever)
            time.sleep(0.1)

    return play


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n"


@pytest.mark.parametrize(
    "play",
    [
        drip(b"", b"H"),
        drip(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n"),
        drip(LONG + b"\r\n", b"a"),
        drip(LONG + b"Connection: close\r\n\r\n", b"a"),
        drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda sock: sock.recv(1),
    ],
    ids=["status", "header", "headers", "body", "body, closing", "no length", "chunks", "100 Continue", "silence"],
)
def test_a_drip_and_silence_end_with_the_time_limit(play: Play) -> None:
    with RawServer(play) as server, client_of(server.url, request_timeout=TIMEOUT) as client:
        started = time.monotonic()
        answer = cancel(client)
        took = time.monotonic() - started

    assert isinstance(answer, NoReply)
    assert ("read_timeout", True) == (answer.reason, answer.sent)
    assert TIMEOUT <= took < MAX_SECONDS


def test_a_slow_answer_within_the_limit_is_an_answer() -> None:
    def play(sock: socket.socket) -> None:
        for byte in whole(b'{"id": "o-1"}'):
            sock.sendall(bytes([byte]))
            time.sleep(0.002)

    (answer,), _ = ask(play)

    assert isinstance(answer, Reply)
    assert "o-1" == answer.id


def flood(head: bytes, chunk: bytes) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        sock.sendall(head)
        with suppress(OSError):
            for _ in range(10_000):
                sock.sendall(chunk)

    return play


@pytest.mark.parametrize(
    "play",
    [
        whole(b"x" * (LIMIT + 1)),
        flood(b"HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\n\r\n", b"x" * 65536),
        flood(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 65536),
        flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
    ids=["length", "redirect", "no length", "chunks"],
)
def test_a_body_over_the_limit_is_not_read_to_its_end(play: Play) -> None:
    assert ("body_too_large", True) == fault(play)


def test_a_body_of_just_the_limit_is_read() -> None:
    (answer,), _ = ask(whole(b'{"a":"' + b"x" * (LIMIT - 8) + b'"}'))

    assert isinstance(answer, Reply)
    assert "object" == answer.body


# -- faults, and whether the request may have reached Trackstar


def test_a_refused_connection_is_not_sent() -> None:
    with client_of(f"http://127.0.0.1:{free_port()}") as client:
        answer = cancel(client)

    assert isinstance(answer, NoReply)
    assert ("connect_failed", False) == (answer.reason, answer.sent)


def test_a_server_that_takes_nobody_in_is_not_sent_to() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())  # the queue is full from here on
        with client_of(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            started = time.monotonic()
            answer = cancel(client)

        assert isinstance(answer, NoReply)
        assert ("connect_timeout", False) == (answer.reason, answer.sent)
        assert time.monotonic() - started < MAX_SECONDS


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def after(
    sent: bytes, end: Callable[[socket.socket], object] = socket.socket.close
) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        sock.sendall(sent)
        end(sock)

    return play


@pytest.mark.parametrize(
    ("reason", "play"),
    [
        ("connection_lost", reset),
        ("connection_lost", after(b"")),
        ("cut_body", after(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id"')),
        ("cut_body", after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{")),
        ("connection_lost", after(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")),
    ],
    ids=["reset", "closed", "cut body", "cut chunk", "another protocol"],
)
def test_what_is_lost_after_sending_may_have_landed(reason: str, play: Play) -> None:
    assert (reason, True) == fault(play)


@pytest.mark.parametrize(
    "play",
    [
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 99999 What\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 two Hundred\r\n\r\n",
        b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        whole(b"{}", *(b"X-%d: a" % number for number in range(500))),
        whole(b"{}", b"X-Long: " + b"a" * 100_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\nConnection: close\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n{}",
        whole(b"no gzip", b"Content-Encoding: gzip"),
        whole(b"{}", b"X-Request-Id: \xff\xfe\x01"),
        whole(b"{}", b"Location: http://[", status=b"302 Found"),
        whole(b"\xff\xfe\x00"),
        whole(b"[" * 5000),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: close\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
    ],
)
def test_whatever_comes_back_it_never_raises(play: bytes) -> None:
    with RawServer(after(play)) as server, client_of(server.url) as client:
        answer = cancel(client)

    assert isinstance(answer, Reply) or answer.sent


def test_a_plain_port_gets_no_secret_from_a_client_that_speaks_tls() -> None:
    with RawServer(after(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        with client_of(server.url.replace("http:", "https:")) as client:
            started = time.monotonic()
            answer = cancel(client)
        took = time.monotonic() - started

    assert isinstance(answer, NoReply)
    assert not answer.sent
    assert answer.reason in {"tls_failed", "connect_failed", "connect_timeout"}
    assert took < MAX_SECONDS
    assert [] == server.heads


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "server.pem").write_bytes(private + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


def test_a_server_that_nobody_vouches_for_gets_no_secret(self_signed: ssl.SSLContext) -> None:
    with (
        RawServer(whole(), tls=self_signed) as server,
        client_of(server.url.replace("http:", "https:"), connect_timeout=5.0) as client,
    ):
        answer = cancel(client)

    assert isinstance(answer, NoReply)
    assert ("tls_failed", False) == (answer.reason, answer.sent)
    assert [] == server.heads


def test_no_secret_stands_in_a_log_or_in_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    location = b"Location: http://127.0.0.1:1/"
    plays = [whole(), whole(b"{}", location, status=b"302 Found"), after(b"HTTP/1.1 200"), reset]
    answers, _ = ask(*plays, times=4)
    with client_of(f"http://127.0.0.1:{free_port()}") as client:
        answers.append(cancel(client))
    said = [record.getMessage() for record in caplog.records] + [repr(vars(record)) for record in caplog.records]

    assert any("PUT /wms/orders/o-1/cancel" in line for line in said)  # it listens at all
    assert [] == [text for text in (*said, *map(repr, answers)) if API_KEY in text or TOKEN in text]


def test_a_token_that_no_header_can_carry_is_not_sent_and_not_told() -> None:
    with RawServer() as server, client_of(server.url) as client:
        answer = client.cancel("o-1", access_token=f"{TOKEN}\nx: y", idempotency_key="key-1")

    assert isinstance(answer, NoReply)
    assert not answer.sent
    assert TOKEN not in repr(answer)
    assert [] == server.heads


# -- against the sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(API_KEY, writes_per_second=None, reads_per_second=None, unknown_orders="open") as sandbox:
        sandbox.world.connect("shop-1", TOKEN)
        yield sandbox


def test_a_cancel_and_its_repetition_and_its_read_back(sandbox: Sandbox) -> None:
    order_id = "a/b c%?#+="
    with client_of(sandbox.url) as client:
        answers = [cancel(client, order_id), cancel(client, order_id)]
        answers.append(client.read_order(order_id, access_token=TOKEN))
        answers.append(client.read_orders([order_id, "o-2"], access_token=TOKEN))
    replies = [answer for answer in answers if isinstance(answer, Reply)]

    assert [200] * 4 == [reply.status for reply in replies]
    assert [False, True, False, False] == [reply.replayed for reply in replies]
    assert [["cancelled"]] * 3 + [["cancelled", "open"]] == [
        [order.status for order in reply.orders] for reply in replies
    ]
    assert [order_id, "o-2"] == [order.id for order in replies[3].orders]
    assert [request.id for request in sandbox.world.order("shop-1", order_id).truth.requests] == [
        reply.request_id for reply in replies
    ]


def test_threads_share_one_client_and_each_gets_its_own_answer(sandbox: Sandbox) -> None:
    ids = [f"o-{number}" for number in range(100)]
    with client_of(sandbox.url) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda order_id: cancel(client, order_id, f"key-{order_id}"), ids))

    assert ids == [answer.id for answer in answers if isinstance(answer, Reply)]
    assert {1} == {sandbox.world.order("shop-1", order_id).truth.effective_cancels for order_id in ids}


def test_one_that_hangs_delays_no_other(sandbox: Sandbox) -> None:
    sandbox.world.add_order("shop-1", "slow", script=["pause"])
    with client_of(sandbox.url) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cancel, client, "slow")
        sandbox.world.wait_for_pause("shop-1", "slow")
        quick = cancel(client, "quick", "key-2")
        assert not slow.done()
        sandbox.world.release("shop-1", "slow")

        assert ["quick", "slow"] == [answer.id for answer in (quick, slow.result(10)) if isinstance(answer, Reply)]
