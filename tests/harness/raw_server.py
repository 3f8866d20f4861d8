"""A server that answers with bytes as a test gives them, and a client that asks it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from worker.trackstar.client import TrackstarClient

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from worker.cancellation.answer import Answer

API_KEY = "api-key-0815-very-secret"
TOKEN = "token-4711-very-secret"
LIMIT = 10_000
TIMEOUT = 0.5  # of tests whose subject is the limit
AMPLE = 10.0  # of all others
MAX_SECONDS = TIMEOUT + 8.0  # a loaded machine may notice late; a drip without bound takes far longer

Play = bytes | Callable[[socket.socket], object]
GO_ON = object()  # what a play returns when the connection stays open


def whole(body: bytes = b"{}", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


class RawServer:
    """Answers the n-th request with the n-th play: bytes as they are, or a function that does as it likes."""

    def __init__(self, *plays: Play, tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []  # of those requests that have one
        self.accepted = 0
        self._plays = list(plays)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            if self._tls is not None:
                with self._tls.wrap_socket(sock, server_side=True) as wrapped:
                    self._talk(wrapped)
            else:
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        while head := self._read_head(sock):
            self.heads.append(head)
            play = self._plays.pop(0)
            if not isinstance(play, bytes):
                if play(sock) is not GO_ON:
                    return
                continue
            sock.sendall(play)
            if b"Connection: close" in play:
                return

    def _read_head(self, sock: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            chunk = sock.recv(65536)
            if not chunk:
                return b""
            head += chunk
        head, _, body = head.partition(b"\r\n\r\n")
        length = int((re.findall(rb"\r\nContent-Length: ([0-9]+)", head) or [0])[0])
        while len(body) < length and (chunk := sock.recv(65536)):
            body += chunk
        if body:
            self.bodies.append(body)
        return head + b"\r\n\r\n"


@contextmanager
def client_of(url: str, **limits: Any) -> Iterator[TrackstarClient]:
    given = {"connect_timeout": TIMEOUT, "request_timeout": AMPLE, "max_response_bytes": LIMIT, "threads": 8}
    client = TrackstarClient(url, API_KEY, **given | limits)
    yield client
    client._adapter.close()


def ask(*plays: Play, times: int = 1, **limits: Any) -> tuple[list[Answer], RawServer]:
    with RawServer(*plays) as server, client_of(server.url, **limits) as client:
        return [cancel(client) for _ in range(times)], server


def cancel(client: TrackstarClient, order_id: str = "o-1", key: str = "key-1") -> Answer:
    return client.cancel(order_id, access_token=TOKEN, idempotency_key=key)
