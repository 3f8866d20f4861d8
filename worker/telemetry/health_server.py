"""Answers `/livez`, `/readyz` with 200 or 503 and the reasons, and `/metrics`, in a thread of its own.

Knows HTTP as far as a probe speaks it; what is well, `health` knows.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from worker.telemetry.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from worker.telemetry.health import Vitals

log = structlog.get_logger()

REQUEST_SECONDS = 5.0  # from the connection to the end of a request's head
MAX_CONNECTIONS = 16  # at once; beyond that the one that has been silent for longest is cut
MAX_HEAD_BYTES = 8_192
STOP_SECONDS = 5.0

Check = Callable[[], list[str]]  # returns problems in sentences


class SupervisedThread(Protocol):
    """What is asked of a thread of the worker."""

    name: str

    @property
    def alive(self) -> bool: ...

    @property
    def running(self) -> bool: ...  # it was not told to end


def dead_threads(threads: Iterable[SupervisedThread]) -> list[str]:
    """Say which threads have ended without having been told to."""
    return [f"The thread {each.name} has died: this is a bug." for each in threads if each.running and not each.alive]


class HealthServer:
    """Listens on one port, on IPv6 and IPv4 unless an address is given. Raises OSError where it cannot."""

    def __init__(
        self,
        port: int,
        threads: Iterable[SupervisedThread],
        vitals: Vitals,
        address: str = "",
        metrics: Callable[[], bytes] = bytes,
    ) -> None:
        self._metrics = metrics
        watched = list(threads)
        self._checks: Mapping[str, Check] = {
            "/livez": lambda: dead_threads(watched),
            "/readyz": lambda: dead_threads(watched) + vitals.problems(),
        }
        # What is told are parts, seconds and counts, and names only where a setting says so: every address may ask.
        self._socket = _listen(address, port)
        self._open: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()
        log.info("health.listening", port=self.port)

    def stop(self) -> None:
        if self._thread.ident is None:
            self._socket.close()
            return
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._socket, limit=MAX_HEAD_BYTES)
        async with server:
            await self._ended.wait()
            for writer in list(self._open):
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._reply(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._open.pop(writer, None)

    def _reply(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = "/" + rest.partition(" ")[0].partition("?")[0].strip("/")
        check = self._checks.get(path)
        if method not in {"GET", "HEAD"}:
            return _http(HTTPStatus.METHOD_NOT_ALLOWED, ["Ask with GET or HEAD."], more="Allow: GET, HEAD\r\n")
        if path == "/metrics":
            return _sent(HTTPStatus.OK, CONTENT_TYPE, self._metrics(), body=method == "GET")
        if check is None:
            return _http(HTTPStatus.NOT_FOUND, ["Ask for /livez, /readyz or /metrics."], body=method == "GET")
        problems = check()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        return _http(status, problems, body=method == "GET")


def _http(status: HTTPStatus, problems: list[str], *, body: bool = True, more: str = "") -> bytes:
    content = msgspec.json.encode({"ok": status == HTTPStatus.OK, "problems": problems})
    return _sent(status, "application/json", content, body=body, more=more)


def _sent(status: HTTPStatus, kind: str, content: bytes, *, body: bool, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + (content if body else b"")


def _listen(address: str, port: int) -> socket.socket:
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address.strip("[]"), port), family=family)
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except ValueError:  # this system has no IPv6, or cannot serve both by one socket
        return socket.create_server(("", port))
    except OSError:  # the port is taken, or IPv6 was turned off
        return socket.create_server(("", port))
