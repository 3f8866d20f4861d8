"""The time limit of a request: cuts off what outlives it. Knows sockets and a clock; knows no HTTP."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_WATCH_SECONDS = 0.1  # how late a deadline may be noticed


class Call:
    """One request under way: what its connection notes, and what the watchdog does to it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.connection: Any = None  # that carries it, or is being made for it
        self.sock: Any = None  # kept here too: a connection lets go of it once "Connection: close" is read
        self.sent = False
        self.status: int | None = None  # of an answer whose head arrived
        self.expired = False

    def cut(self) -> None:
        self.expired = True
        sock = self.sock or getattr(self.connection, "sock", None)
        sock = getattr(sock, "socket", sock)  # TLS inside the TLS of a proxy is no socket, and holds one
        if isinstance(sock, socket.socket):
            # Of the plain socket: an SSLSocket's own shutdown pulls the state from under the reading thread.
            with suppress(OSError):  # it ended by itself
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Current(threading.local):
    call: Call


current = _Current()


class Watchdog:
    """Cuts off requests that outlive their deadline.

    A socket's own time-out starts anew with every byte, so a body that drips a byte a second would hold a thread for
    hours; only somebody outside of the reading thread can end that.
    """

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._lock = threading.Condition()
        threading.Thread(target=self._watch, name="deadline-watchdog", daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[Call]:
        """Give the request of this thread `seconds` from now on; `current.call` is its `Call`."""
        current.call = call = Call(time.monotonic() + seconds)
        with self._lock:
            self._calls.add(call)
            self._lock.notify()
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)

    def _watch(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._calls)
                now = time.monotonic()
                for call in self._calls:
                    if now >= call.deadline:
                        call.cut()
            time.sleep(_WATCH_SECONDS)
