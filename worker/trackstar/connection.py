"""Connections to Trackstar, and when one may be used again: only after an answer without anything unusual.

Knows HTTP's framing, TLS and a proxy; does not know requests of ours, their time limit or what an answer means.
Whatever stays on a connection behind an answer would be taken for the answer to the next order.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from http import HTTPStatus
from http.client import BadStatusLine, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import make_headers, parse_url

from worker.trackstar.tls import tls_context
from worker.trackstar.watchdog import current

if TYPE_CHECKING:
    from requests import PreparedRequest

MAX_IDLE_SECONDS = 50.0  # a NAT or a load balancer forgets what was silent for a minute, and tells nobody
MAX_INTERIM_ANSWERS = 100  # 1xx before one answer; and lines of each
REMEMBERED_ANSWERS = 64  # of one connection; to compare an id with so many takes a microsecond
_MAX_LINE = 65_536
_NEVER_WITH_A_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED}

# Idle connections are probed, so that a NAT keeps them and a dead one is found; what is sent and not acknowledged for
# this long is lost. Not every system has every option.
_UNACKNOWLEDGED_SECONDS = 20
_KEEPALIVE = (
    ("SOL_SOCKET", "SO_KEEPALIVE", 1),
    ("IPPROTO_TCP", "TCP_NODELAY", 1),
    ("IPPROTO_TCP", "TCP_KEEPIDLE", 15),  # Linux
    ("IPPROTO_TCP", "TCP_KEEPALIVE", 15),  # macOS' name for it
    ("IPPROTO_TCP", "TCP_KEEPINTVL", 5),
    ("IPPROTO_TCP", "TCP_KEEPCNT", 3),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", _UNACKNOWLEDGED_SECONDS * 1000),
)
SOCKET_OPTIONS = [
    (getattr(socket, level), getattr(socket, name), value)
    for level, name, value in _KEEPALIVE
    if hasattr(socket, name)
]


class _Answer(HTTPResponse):
    """Reads over interim answers, and closes its connection after anything unusual."""

    def __init__(self, connection: _Connection, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._connection = connection
        self._sock = sock
        self._interim = 0

    def _read_status(self) -> tuple[str, int, str]:
        # http.client knows 100 alone: it would take a 103 for the answer, and the answer for the next order's.
        version, status, reason = super()._read_status()  # type: ignore[misc]
        while 100 <= status < 200 and status != HTTPStatus.SWITCHING_PROTOCOLS:  # noqa: PLR2004
            self._interim += 1
            if self._interim > MAX_INTERIM_ANSWERS:
                raise BadStatusLine("no end of interim answers")
            self._skip_head()
            version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, status, reason

    def _skip_head(self) -> None:
        for _ in range(MAX_INTERIM_ANSWERS):
            if self.fp.readline(_MAX_LINE) in {b"\r\n", b"\n", b""}:
                return
        raise BadStatusLine("no end of an interim answer")

    def begin(self) -> None:
        super().begin()
        self.will_close = self.will_close or not self._is_ordinary()
        # Every answer has an id of its own, so a second one to an earlier request is known however late it comes.
        request_id = self.headers.get("x-request-id")
        if request_id:
            if request_id in self._connection.answered:
                raise BadStatusLine("an answer to another request")
            self._connection.answered.append(request_id)

    def _is_ordinary(self) -> bool:
        """Whether it is clear where this answer ends, and nothing came before it."""
        lengths = self.headers.get_all("content-length", [])
        codings = self.headers.get_all("transfer-encoding", [])
        framed = not lengths if codings else len(lengths) == 1 and lengths[0].strip().isdecimal()
        return (
            framed
            and not self._interim
            and self.version == 11  # noqa: PLR2004 - HTTP/1.1
            and self.status >= HTTPStatus.OK
            and self.status not in _NEVER_WITH_A_BODY
        )

    def _close_conn(self) -> None:
        # Called when the body was read to its end: from here on the connection could be used again.
        spoiled = not self.will_close and self._has_more()
        super()._close_conn()  # type: ignore[misc]
        self._connection.idle_since = time.monotonic()
        if spoiled:
            self._connection.close()

    def _has_more(self) -> bool:
        """Whether there is something behind this answer already: in the buffer, inside TLS or on the socket."""
        self._sock.settimeout(0)  # the next request sets its own
        try:
            more = self.fp.peek(1)
        except ssl.SSLWantReadError:
            return False
        except (OSError, ValueError):
            return True
        # Without TLS "nothing yet" and the end look alike here; the end is noticed before the next use.
        return bool(more) or isinstance(self._sock, ssl.SSLSocket)


class _Connection(HTTPConnection):
    """Notes what becomes of a request, and is not used again when it was silent for long."""

    idle_since = 0.0
    answered: deque[str]  # the ids of the last answers
    _connecting = False  # a tunnel through a proxy is asked for with `send` as well, and is no request

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> _Answer:  # type: ignore[override]
        return _Answer(self, sock, *args, **kwargs)

    @property
    def is_connected(self) -> bool:
        return time.monotonic() - self.idle_since < MAX_IDLE_SECONDS and super().is_connected

    def connect(self) -> None:
        current.call.connection = self
        self._connecting, self.answered = True, deque(maxlen=REMEMBERED_ANSWERS)
        try:
            super().connect()
        finally:
            self._connecting = False
        if _speaks_first(self.sock):
            self.close()
            raise ConnectionAbortedError("bytes that nobody asked for")

    def send(self, data: Any) -> None:
        if not self._connecting:
            self._about_to_send()
        super().send(data)

    def _about_to_send(self) -> None:
        """Note that the first byte is about to leave, so that *not sent* is known and not guessed."""
        call = current.call
        call.connection = self
        if self.sock is None:
            self.connect()
        call.sock = self.sock
        # Looking up a name cannot be cut off, and this process may have been paused; sending late can be left out.
        if call.expired or time.monotonic() >= call.deadline:
            call.expired = True
            raise TimeoutError("the deadline passed before the request was sent")
        call.sent = True


def _speaks_first(sock: Any) -> bool:
    """Whether a server answers, or hangs up, before it was asked."""
    before = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        sock.settimeout(before)
    return True


class _PlainConnection(_Connection):
    pass


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Adapter(HTTPAdapter):
    """Goes to one server, through the proxy of the settings or none; so its pool is made once.

    No session around it: no redirect is followed, no cookie kept, no proxy, netrc or certificate taken from the
    environment, so a secret goes only where the settings say. Zero retries: the ledger alone tries again.
    """

    def __init__(self, base_url: str, *, threads: int, ca_bundle: str, proxy: str) -> None:
        super().__init__(max_retries=0)
        self._pool = _pool(base_url, proxy, tls_context(ca_bundle), threads)
        # Through a tunnel the server is asked as it is without a proxy; a proxy that forwards wants whole addresses.
        self._forwards = bool(proxy) and self._pool.scheme != "https"

    def get_connection_with_tls_context(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._pool

    def cert_verify(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: the pool's own TLS context verifies."""

    def close(self) -> None:
        super().close()
        self._pool.close()

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:  # noqa: ARG002 - the base's shape
        return str(request.url) if self._forwards else request.path_url

    def build_response(self, req: PreparedRequest, resp: Any) -> Any:  # noqa: ARG002 - the base's shape
        """Return the answer as urllib3 gave it: nobody asks for cookies, a history and a guessed encoding."""
        return resp


def _pool(base_url: str, proxy: str, context: ssl.SSLContext, threads: int) -> HTTPConnectionPool:
    kind: dict[str, Any] = {"maxsize": threads, "socket_options": SOCKET_OPTIONS, "ssl_context": context}
    manager = PoolManager(**kind)
    if proxy:
        url = parse_url(proxy)
        headers = make_headers(proxy_basic_auth=unquote(url.auth)) if url.auth else {}
        manager = ProxyManager(url._replace(auth=None).url, proxy_headers=headers, proxy_ssl_context=context, **kind)
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
    return manager.connection_from_url(base_url)
