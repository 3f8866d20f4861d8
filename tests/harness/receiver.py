"""A receiver of webhooks: a real HTTP server that keeps what comes, verifies it, and answers as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from standardwebhooks import Webhook

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

Answer = tuple[int, dict[str, str]]  # status, headers
RESET: Answer = (0, {})  # the connection is cut, without an answer


class Received:
    """One request."""

    def __init__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self.path, self.headers, self.body = path, {name.lower(): value for name, value in headers.items()}, body
        self.at = time.time()

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]

    @property
    def event(self) -> dict[str, Any]:
        return self.document["data"]  # type: ignore[no-any-return]

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """Verify with the library of Standard Webhooks; raises where it is not signed so."""
        return Webhook(secret).verify(self.body, self.headers)


def ok(_: Received) -> Answer:
    return 200, {}


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A sender that has hung up, or was killed, is no news."""


class Receiver:
    """Takes whatever comes; `answer` says what each request is answered with, and may wait."""

    def __init__(self, answer: Callable[[Received], Answer] = ok, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self._came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver._take(self, Received(self.path, dict(self.headers), body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/hook"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        self.keep(received)
        status, headers = self.answer(received)
        if (status, headers) == RESET:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    def keep(self, received: Received) -> None:
        """Keep what has come, before it is answered."""
        with self._came:
            self.received.append(received)
            self._came.notify_all()

    def wait_for(self, count: int, seconds: float = 60.0) -> list[Received]:
        """Wait until so many requests have come; return all of them."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.received) >= count, seconds), (count, len(self.received))
            return list(self.received)

    def types(self) -> list[str]:
        return [each.event["type"] for each in self.received]
