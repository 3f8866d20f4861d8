"""One try over the network, against servers that do as they like: hang, drip, flood, redirect, show another face."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from harness.certificates import Tls
from harness.raw_server import RawServer, whole
from harness.receiver import Receiver

from worker.inputs.receivers import read_receiver
from worker.webhooks import sender
from worker.webhooks.sender import Network, trust, try_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker.cancellation.delivery import Tried

REQUEST = b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
LIMIT = 0.6  # seconds, of tests whose subject is the limit
AMPLE = 20.0
BUSY = 8.0  # what a busy machine may take more; what is not cut off takes far longer


def try_(url: str, seconds: float = AMPLE, **more: Any) -> Tried:
    network = Network(**{"allow_private": True, "tls": trust(), "seconds": seconds, **more})
    return try_once(read_receiver(url, allow_private=True), REQUEST, network)


def tried(*plays: Any, seconds: float = AMPLE) -> Tried:
    with RawServer(*plays) as server:
        return try_(server.url, seconds)


def hangs(sock: socket.socket) -> None:
    sock.recv(1)  # until the other side has had enough


def drips(sock: socket.socket) -> None:
    with suppress(OSError):
        for _ in range(1000):
            sock.sendall(b"H")
            time.sleep(0.05)


def floods(head: bytes, sent: list[int] | None = None) -> Callable[[socket.socket], None]:
    def play(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.sendall(head)
            for _ in range(64 * 16):
                sock.sendall(b"x" * 65_536)
                if sent is not None:
                    sent.append(65_536)

    return play


@pytest.mark.parametrize("status", [b"200 OK", b"201 Created", b"202 Accepted", b"204 No Content", b"299 Odd"])
def test_2xx_is_delivered_whatever_the_body(status: bytes) -> None:
    found = tried(whole(b"\xff\x00 no json", status=status))

    assert ("delivered", True, int(status[:3])) == (found.reason, found.delivered, found.status)


@pytest.mark.parametrize("status", [b"400 Bad", b"404 Not Found", b"410 Gone", b"500 Oops", b"503 Busy", b"599 Odd"])
def test_what_is_no_2xx_is_not_delivered(status: bytes) -> None:
    found = tried(whole(status=status))

    assert (f"http_{status[:3].decode()}", False) == (found.reason, found.delivered)


@pytest.mark.parametrize("play", [hangs, drips])
def test_an_answer_that_hangs_or_drips_is_cut_off(play: Callable[[socket.socket], None]) -> None:
    began = time.monotonic()
    found = tried(play, seconds=LIMIT)

    assert ("timeout", None) == (found.reason, found.status)
    assert time.monotonic() - began < LIMIT + BUSY


def test_a_name_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [][: release.wait(60)])
    began = time.monotonic()
    found = try_("https://slow.example/", LIMIT)
    took = time.monotonic() - began
    release.set()

    assert "timeout" == found.reason
    assert took < LIMIT + BUSY


def test_a_body_that_drips_after_a_yes_is_delivered_and_does_not_hold_the_try() -> None:
    def yes_and_drip(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        drips(sock)

    assert tried(yes_and_drip).delivered
    assert tried(yes_and_drip).seconds < 1 + BUSY


def test_after_an_answer_without_a_body_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BODY_SECONDS", AMPLE)

    def no_content_and_no_end(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        hangs(sock)

    assert AMPLE / 2 > tried(no_content_and_no_end).seconds


def test_of_64_megabytes_no_more_than_a_little_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BODY_SECONDS", 30.0)  # so that its size bounds it, and not this machine's pace
    sent: list[int] = []
    found = tried(floods(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n", sent))

    assert found.delivered
    assert sum(sent) < 16 * 2**20  # what the buffers of both sides hold
    assert len(found.said) <= 300


def test_a_head_without_an_end_is_no_answer() -> None:
    assert "answer_too_large" == tried(floods(b"HTTP/1.1 200 OK\r\nx: ")).reason


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary", b"308 Permanent"])
def test_no_redirect_is_followed(status: bytes) -> None:
    with Receiver() as elsewhere:
        found = tried(whole(b"", b"Location: " + elsewhere.url.encode(), status=status))

    assert (f"http_{status[:3].decode()}", False) == (found.reason, found.delivered)
    assert [] == elsewhere.received


@pytest.mark.parametrize(
    "play", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200"]
)
def test_what_is_no_http_is_not_delivered(play: bytes) -> None:
    assert tried(lambda sock: sock.sendall(play)).reason in {"no_http", "connection_lost"}


def test_interim_answers_are_read_over() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"

    assert 200 == tried(interim * 2 + whole()).status
    assert "no_http" == tried(interim * 50).reason


@pytest.mark.parametrize(("said", "seconds"), [(b"7", 7.0), (b"99999999", 3600.0), (b"soon", None), (b"-1", None)])
def test_retry_after_is_read_and_bounded(said: bytes, seconds: float | None) -> None:
    assert seconds == tried(whole(b"", b"Retry-After: " + said, status=b"503 Busy")).retry_after


def test_nobody_there_is_a_word_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert "connect_failed" == try_(f"http://127.0.0.1:{port}/").reason


# ---- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_asked_unless_it_is_allowed(host: str) -> None:
    with RawServer(whole()) as server:
        found = try_(f"https://{host}:{server.port}/", allow_private=False)

    assert found.reason in {"address_not_allowed", "name_not_found"}
    assert 0 == server.accepted


class Names:
    """Answers each look-up with the next address, and notes whom somebody connects to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.connected: list[str] = []
        answers = iter(addresses)

        def resolve(*_: object, **__: object) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 443))]

        async def connect(host: str, *_: object, **__: object) -> None:
            self.connected.append(host)
            raise ConnectionRefusedError

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(asyncio, "open_connection", connect)


def test_a_name_that_is_private_at_the_second_look_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "93.184.216.34", "10.0.0.7")
    first = try_("https://rebinds.example/", allow_private=False)
    second = try_("https://rebinds.example/", allow_private=False)

    # One look-up for a try, and the address that was checked is the one that is connected to: not the name.
    assert ["93.184.216.34"] == names.connected
    assert ["connect_failed", "address_not_allowed"] == [first.reason, second.reason]


def test_without_tls_no_public_address_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "93.184.216.34")

    assert "address_not_allowed" == try_("http://oms.example/").reason
    assert [] == names.connected


# ---- TLS


def test_a_certificate_is_verified_and_one_that_changes_to_another_authority_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    known, other = Tls(tmp_path), Tls(tmp_path / "other")
    tls = trust(str(known.bundle))
    with Receiver(tls=known.context) as receiver:
        assert try_(receiver.url, tls=tls).delivered
    with Receiver(tls=other.context) as receiver:
        changed = try_(receiver.url, tls=tls)

    assert ("tls_failed", []) == (changed.reason, receiver.received)


def test_a_certificate_of_another_name_is_not_trusted(tmp_path: Path) -> None:
    known = Tls(tmp_path)
    with Receiver(tls=known.context) as receiver:
        found = try_(f"https://localhost:{receiver.port}/", tls=trust(str(known.bundle)))

    assert ("tls_failed", []) == (found.reason, receiver.received)


# ---- a proxy


class Proxy:
    """Opens tunnels, and notes what it was asked."""

    def __init__(self, refuses: bool = False) -> None:
        self.asked: list[bytes] = []
        self._refuses = refuses

    def __call__(self, sock: socket.socket) -> None:
        if self._refuses:
            sock.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        target = self.asked[-1].split(b" ")[1].decode()
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(far, sock))
            back.start()
            pump(sock, far)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_through_a_proxy_the_address_is_asked_for_that_was_checked(tmp_path: Path) -> None:
    known, proxy = Tls(tmp_path), Proxy()
    with Receiver(tls=known.context) as receiver, RawServer(proxy) as server:
        proxy.asked = server.heads
        url = f"http://us%40er:pass@127.0.0.1:{server.port}"
        found = try_(receiver.url, tls=trust(str(known.bundle)), proxy=url)

    assert found.delivered
    assert server.heads[0].startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % receiver.port)
    assert b"Proxy-Authorization: Basic dXNAZXI6cGFzcw==\r\n" in server.heads[0]


def test_a_proxy_that_refuses_is_no_answer() -> None:
    with RawServer(Proxy(refuses=True)) as server:
        found = try_("https://127.0.0.1/", proxy=f"http://127.0.0.1:{server.port}")

    assert "connect_failed" == found.reason


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000], ids=["hangs up", "no end of a head"]
)
def test_a_proxy_that_gives_no_answer_is_told_as_no_connection(said: bytes) -> None:
    with RawServer(said) as server:
        found = try_("https://127.0.0.1/", proxy=f"http://127.0.0.1:{server.port}")

    assert "connect_failed" == found.reason


def test_what_is_waited_for_behind_an_answer_is_none_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BODY_SECONDS", BUSY)

    def chunks_and_no_end(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        sock.recv(1)  # until the other side has had enough

    found = tried(chunks_and_no_end)

    assert ("delivered", True) == (found.reason, found.seconds < BUSY)


def test_the_limits_are_those_of_standard_webhooks() -> None:
    assert (15.0, 65_536) == (sender.TRY_SECONDS, sender.MAX_BYTES)
