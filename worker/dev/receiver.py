"""A little receiver of webhooks, as an OMS has one: it verifies each by its signature, and acts on an event once.

Knows Standard Webhooks and HTTP; does not know orders, nor who sends.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any, Self

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BYTES = 20_000  # an event has 4,096 at most
SECONDS = 10.0  # for one request


class LittleReceiver:
    """Serves on a free port of this machine for as long as the `with` block lasts."""

    def __init__(self, secret: str) -> None:
        self.verified: SimpleQueue[dict[str, Any]] = SimpleQueue()  # each event once
        self._webhook = Webhook(secret)
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = SECONDS

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                body = self.rfile.read(int(length)) if length.isdecimal() and int(length) <= MAX_BYTES else b""
                self.send_response(receiver._answer(body, dict(self.headers)))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhooks"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, body: bytes, headers: dict[str, str]) -> int:
        try:
            event = self._webhook.verify(body, headers)["data"]
        except (WebhookVerificationError, ValueError):
            return 400
        with self._lock:  # it comes at least once
            if event["id"] not in self._seen:
                self._seen.add(event["id"])
                self.verified.put(event)
        return 204
