"""What a worker says of itself: `/livez`, its threads run; `/readyz`, it takes what is due.

Liveness depends on no other part: restarting a worker because Redis, the ledger or Trackstar is away helps nobody.
Readiness is proven by consumption: a worker that is connected and takes nothing while work is due is not ready.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = structlog.get_logger()

REDIS, LEDGER = "Redis", "The ledger"  # as they stand in a sentence

SILENT_SECONDS = 20.0  # a part that has not answered for this long is away; each is asked every few seconds
# Above the time after which the claims of a lost message are given back and made anew.
STALLED_SECONDS = 30.0


class Vitals:
    """When each part answered last, and whether what is published is consumed. Times are monotonic seconds."""

    def __init__(
        self, unconsumed_seconds: Callable[[], float] = lambda: 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unconsumed_seconds = unconsumed_seconds
        self._clock = clock
        self._responded = dict.fromkeys((REDIS, LEDGER), clock())
        self._blocked: dict[str, str] = {}

    def responded(self, part: str) -> None:
        """Note that Redis or the ledger has just done what was asked of it."""
        self._responded[part] = self._clock()

    def blocked(self, part: str, sentence: str) -> None:
        """Note in a sentence what stops a part of this worker; an empty one: nothing any more."""
        self._blocked[part] = sentence

    def problems(self) -> list[str]:
        """Say in sentences why this worker is not ready; empty when it is."""
        now = self._clock()
        silent = [
            f"{part} has not answered for {now - at:.0f} s."
            for part, at in self._responded.items()
            if now - at > SILENT_SECONDS
        ]
        silent += [f"{part}: {sentence}" for part, sentence in self._blocked.items() if sentence]
        if (unconsumed := self._unconsumed_seconds()) > STALLED_SECONDS:
            silent.append(
                f"Work was handed to this worker {unconsumed:.0f} s ago and it has taken none of it: it does not "
                "consume its Celery list."
            )
        return silent


class SupervisedThread(Protocol):
    """What is asked of a thread of the worker."""

    name: str

    @property
    def alive(self) -> bool: ...


class HealthServer:
    """Answers `/livez` and `/readyz` with 200 or 503 and the reasons, in a thread of its own."""

    def __init__(self, port: int, threads: Iterable[SupervisedThread], vitals: Vitals) -> None:
        self._threads = list(threads)
        self._vitals = vitals
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                health.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing: a probe every few seconds is no news."""

        # On every address: an orchestrator asks from outside. What it hears are parts and seconds.
        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()
        log.info("health.listening", port=self.port)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one probe."""
        checks: dict[str, Callable[[], list[str]]] = {
            "/livez": self._dead_threads,
            "/readyz": lambda: self._dead_threads() + self._vitals.problems(),
        }
        check = checks.get(request.path)
        problems = check() if check else ["Ask for /livez or /readyz."]
        status = HTTPStatus.OK if not problems else HTTPStatus.SERVICE_UNAVAILABLE
        body = msgspec.json.encode({"ok": not problems, "problems": problems})
        request.send_response(status if check else HTTPStatus.NOT_FOUND)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _dead_threads(self) -> list[str]:
        return [f"The thread {each.name} has died: this is a bug." for each in self._threads if not each.alive]
