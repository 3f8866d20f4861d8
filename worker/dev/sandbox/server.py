"""The sandbox as an HTTP server in a thread of its own.

It knows headers and waiting; where a path leads is for `routes` to say, what is right for `contract`, and how bytes
are lost for `wire`.
"""

import asyncio
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from email.utils import formatdate
from functools import partial
from types import TracebackType
from typing import Self, Unpack, cast

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError

from worker.dev.sandbox import wire
from worker.dev.sandbox.contract import Caller, Contract
from worker.dev.sandbox.exchange import Exchange
from worker.dev.sandbox.options import WorldOptions
from worker.dev.sandbox.replies import Headers, Reply
from worker.dev.sandbox.routes import Asked, route
from worker.dev.sandbox.world import World

IDLE_SECONDS = 7 * 24 * 3600
BACKLOG = 1024
START_SECONDS = 10
STOP_SECONDS = 10


class Front(HTTPServerConnectionDelegate):
    """Turns requests into exchanges, and exchanges into bytes; only those that must wait become tasks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.contract = Contract(world)
        self._tasks: set[asyncio.Task[None]] = set()
        # The requests that wait, by their target.
        self._waiting: defaultdict[str, set[tuple[IOStream, Exchange]]] = defaultdict(set)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:  # noqa: ARG002
        return Message(self, cast("HTTP1Connection", request_conn))

    def take(self, connection: HTTP1Connection, message: "Message") -> None:
        self._notice_gone(message.target)
        exchange = route(self.contract, message.asked)
        if isinstance(exchange, Reply):
            reply = exchange.having(self._date())
            wire.send(connection, reply, self.world.next_request_id(), lambda *_end: None)
            return
        step = exchange.step
        if not (step.slow or step.pause or step.answer in wire.BROKEN | wire.NOISY):
            reply = self.contract.answer(exchange).having(self._date())
            wire.send(connection, reply, exchange.request.id, partial(self.contract.finish, exchange))
            return
        self._waiting[message.target].add((connection.stream, exchange))
        task = asyncio.get_running_loop().create_task(self._play(connection, message.target, exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _date(self) -> Headers:
        now = self.world.now() + self.world.clock_skew
        return (("Date", formatdate(now, usegmt=True)),) if self.world.date_header else ()

    def _notice_gone(self, target: str) -> None:
        # Who hangs up and asks again at once makes no overlap, but the event loop may hear of the new request first.
        for stream, exchange in self._waiting.get(target, ()):
            if wire.hung_up(stream):
                self.contract.gone(exchange)

    async def _play(self, connection: HTTP1Connection, target: str, exchange: Exchange) -> None:
        gone, ended = partial(self.contract.gone, exchange), partial(self.contract.finish, exchange)
        stream = connection.stream
        connection.set_close_callback(gone)
        self._notice_gone(target)
        try:
            reply = (await self._reply(exchange)).having(self._date())
            if exchange.step.answer in wire.BROKEN:
                await wire.send_broken(connection, exchange.step, reply, exchange.request.id, ended=ended, gone=gone)
            else:
                await wire.send_with_more(connection, exchange.step, reply, exchange.request.id, ended)
        except StreamClosedError:
            gone()
        finally:
            ended("closed")
            self._waiting[target].discard((stream, exchange))
            if not self._waiting[target]:
                del self._waiting[target]

    async def _reply(self, exchange: Exchange) -> Reply:
        await asyncio.sleep(exchange.step.slow)
        if exchange.step.pause == "before":
            await self._stand_still(exchange)
        self.contract.act(exchange)
        if exchange.step.pause == "after":
            await self._stand_still(exchange)
        return self.contract.answer(exchange)

    async def _stand_still(self, exchange: Exchange) -> None:
        loop, released = asyncio.get_running_loop(), asyncio.Event()
        if self.contract.hold(exchange, lambda: loop.call_soon_threadsafe(released.set)):
            await released.wait()


class Message(HTTPMessageDelegate):
    """One request while it is being read."""

    def __init__(self, front: Front, connection: HTTP1Connection) -> None:
        self._front = front
        self._connection = connection
        self.method = self.target = ""
        self.headers = HTTPHeaders()
        self.body = bytearray()

    @property
    def asked(self) -> Asked:
        caller = Caller(self.headers.get("x-trackstar-api-key"), self.headers.get("x-trackstar-access-token"))
        return Asked(self.method, self.target, caller, self.headers.get("Idempotency-Key"), bytes(self.body))

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        line = cast("RequestStartLine", start_line)
        self.method, self.target, self.headers = line.method, line.path, headers

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    def finish(self) -> None:
        self._front.take(self._connection, self)


class Sandbox:
    """A local Trackstar for as long as the `with` block lasts; `world` arranges it and tells the truth."""

    def __init__(
        self, api_key: str = "sandbox", port: int = 0, host: str = "127.0.0.1", **options: Unpack[WorldOptions]
    ) -> None:
        self.world = World(api_key, **options)
        self.host = host
        self.port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __enter__(self) -> Self:
        # Bound here and not in the thread: a taken port is the caller's error, and there is no start to wait for.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        listener.settimeout(0)
        self.port = listener.getsockname()[1]
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, started)), name="trackstar-sandbox", daemon=True
        )
        self._thread.start()
        started.result(START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._loop = None
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        front = Front(self.world)
        server = HTTPServer(front, idle_connection_timeout=IDLE_SECONDS)
        server.add_socket(listener)
        started.set_result(None)
        await self._stop.wait()
        server.stop()
        await front.close()
        await server.close_all_connections()


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    api_key: str = "sandbox",
    ready: Callable[[Sandbox], None] | None = None,
    **options: Unpack[WorldOptions],
) -> None:
    """Run in the foreground until SIGINT or SIGTERM, from the main thread; `ready` is called once it listens."""
    stopped = threading.Event()
    before = {each: signal.signal(each, lambda *_: stopped.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Sandbox(api_key, port, host, **options) as sandbox:
            if ready is not None:
                ready(sandbox)
            stopped.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
