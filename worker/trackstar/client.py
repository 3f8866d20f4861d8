"""One HTTP request to Trackstar, bounded in time and size. Returns what came back; never judges, never raises for it.

Knows the wire; does not know retries, claims or the ledger. No header and no body is ever logged: they hold secrets
and personal data.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.client import IncompleteRead  # urllib3's own is one too
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidHeader, RequestException
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.cancellation.answer import Answer, NoReply, NoReplyReason, Reply, read_connection, read_reply
from worker.cancellation.lifecycle import Policy
from worker.inputs.headers import read_rate_limit, read_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEFAULT_RETRY_CAP = Policy().retry_cap  # seconds of a `retry-after`
_CHUNK = 64 * 1024
_WATCH_SECONDS = 0.1  # how late a deadline may be noticed


class _Call:
    """One request under way: what its connection notes, and what the watchdog does to it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.connection: HTTPConnection | None = None
        self.sock: Any = None  # kept here too: a connection lets go of it once "Connection: close" is read
        self.sent = False
        self.expired = False

    def cut(self) -> None:
        self.expired = True
        sock = self.sock or getattr(self.connection, "sock", None)
        if isinstance(sock, socket.socket):
            # Of the plain socket: an SSLSocket's own shutdown pulls the state from under the reading thread.
            with suppress(OSError):  # it ended by itself
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Current(threading.local):
    call: _Call


_current = _Current()


def _about_to_send(connection: HTTPConnection) -> None:
    """Note that the first byte is about to leave, so that *not sent* is known and not guessed."""
    call = _current.call
    call.connection = connection
    if connection.sock is None:
        connection.connect()
    call.sock = connection.sock
    # Looking up a name cannot be cut off, and this process may have been paused; sending late can be left out.
    if call.expired or time.monotonic() >= call.deadline:
        call.expired = True
        raise TimeoutError("the deadline passed before the request was sent")
    call.sent = True


class _PlainConnection(HTTPConnection):
    def send(self, data: Any) -> None:
        _about_to_send(self)
        super().send(data)


class _TlsConnection(HTTPSConnection):
    def send(self, data: Any) -> None:
        _about_to_send(self)
        super().send(data)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """Goes to one server, and never through a proxy; so its pool is looked up once."""

    _pool: Any = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def close(self) -> None:
        super().close()
        if self._pool is not None:
            self._pool.close()

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:  # noqa: ARG002 - the base's shape
        return request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """Wrap an answer, without the cookies and the guessed encoding that nobody asks for."""
        response = requests.Response()
        response.status_code, response.headers, response.raw, response.request = resp.status, resp.headers, resp, req
        return response


class _Watchdog:
    """Cuts off requests that outlive their deadline.

    A socket's own time-out starts anew with every byte, so a body that drips a byte a second would hold a thread for
    hours; only somebody outside of the reading thread can end that.
    """

    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._lock = threading.Condition()
        threading.Thread(target=self._watch, name="deadline-watchdog", daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[_Call]:
        _current.call = call = _Call(time.monotonic() + seconds)
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


class TrackstarClient:
    """Calls Trackstar for one organisation. Safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        connect_timeout: float,
        request_timeout: float,
        max_response_bytes: int,
        threads: int,
        retry_cap: float = DEFAULT_RETRY_CAP,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._max_response_bytes = max_response_bytes
        self._retry_cap = retry_cap
        self._watchdog = _Watchdog()
        self._headers = {
            "x-trackstar-api-key": api_key,
            "User-Agent": "trackstar-cancel-worker",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # the size limit then counts what is kept
            "Connection": "keep-alive",
        }
        # No session around it: no redirect is followed, no cookie kept, no proxy, netrc or certificate taken from the
        # environment, so a secret goes only where the settings say. Zero retries: the ledger alone tries again.
        self._adapter = _Adapter(pool_connections=4, pool_maxsize=threads, max_retries=0)

    def cancel(self, order_id: str, *, access_token: str, idempotency_key: str) -> Answer:
        """`PUT /wms/orders/{order_id}/cancel`, without a body."""
        return self._send(
            "PUT",
            f"/wms/orders/{_segment(order_id)}/cancel",
            {"x-trackstar-access-token": access_token, "Idempotency-Key": idempotency_key},
        )

    def read_order(self, order_id: str, *, access_token: str) -> Answer:
        """`GET /wms/orders/{order_id}`: Trackstar's copy, up to an hour old."""
        return self._send("GET", f"/wms/orders/{_segment(order_id)}", {"x-trackstar-access-token": access_token})

    def read_orders(self, order_ids: Sequence[str], *, access_token: str) -> Answer:
        """`GET /wms/orders?ids[in]=a,b,c`, up to 100 ids, none with a comma."""
        ids = ",".join(quote(order_id, safe="") for order_id in order_ids)
        return self._send("GET", f"/wms/orders?ids[in]={ids}", {"x-trackstar-access-token": access_token})

    def read_connection(self, connection_id: str) -> Answer:
        """`GET /connections/{id}`, with the API key alone."""
        return self._send("GET", f"/connections/{_segment(connection_id)}", {}, read_connection)

    def _send(
        self, method: str, path: str, headers: dict[str, str], read: Callable[..., Reply] = read_reply
    ) -> Answer:
        with self._watchdog.limit(self._request_timeout) as call:
            try:
                return self._exchange(self._prepared(method, path, headers), call, read)
            except (RequestException, HTTPError, OSError) as error:
                # Its kind only: the text may hold a header.
                return NoReply(_why(error, call), call.sent, type(error).__name__)

    def _prepared(self, method: str, path: str, headers: dict[str, str]) -> requests.PreparedRequest:
        # By hand: preparing would tidy the percent-encoding, and an id must stay one segment.
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = method, self._base_url + path
        prepared.headers = CaseInsensitiveDict(self._headers | headers)
        return prepared

    def _exchange(self, prepared: requests.PreparedRequest, call: _Call, read: Callable[..., Reply]) -> Answer:
        timeout = (self._connect_timeout, self._request_timeout)
        try:
            response = self._adapter.send(prepared, stream=True, timeout=timeout)
        except ValueError:  # of a header's value, which its text shows
            raise InvalidHeader from None
        with response:
            content = self._read_body(response)
            if content is None:
                return NoReply("body_too_large", sent=True)
            if call.expired:
                return NoReply("read_timeout", sent=True)
            headers = response.headers
            return read(
                response.status_code,
                content,
                request_id=_bounded(headers.get("X-Request-Id")),
                replayed=headers.get("Idempotent-Replayed", "").lower() == "true",
                retry_after=read_retry_after(
                    headers.get("Retry-After"), date=headers.get("Date"), now=datetime.now(UTC), cap=self._retry_cap
                ),
                rate_limit=read_rate_limit(headers.get("x-ratelimit-limit")),
            )

    def _read_body(self, response: requests.Response) -> bytes | None:
        parts: list[bytes] = []
        size = 0
        while chunk := response.raw.read(_CHUNK):
            size += len(chunk)
            if size > self._max_response_bytes:
                response.raw.close()  # what is left is not worth reading, so the connection is not worth keeping
                return None
            parts.append(chunk)
        return b"".join(parts)


def _segment(order_id: str) -> str:
    return quote(order_id, safe="")


def _why(error: Exception, call: _Call) -> NoReplyReason:
    if not call.sent:
        if call.expired or isinstance(error, requests.ConnectTimeout):
            return "connect_timeout"
        return "tls_failed" if isinstance(error, requests.exceptions.SSLError) else "connect_failed"
    if call.expired or isinstance(error, requests.Timeout | ReadTimeoutError):
        return "read_timeout"
    if isinstance(error, IncompleteRead) or any(isinstance(arg, IncompleteRead) for arg in error.args):
        return "cut_body"
    return "connection_lost"


def _bounded(text: str | None) -> str | None:
    return "".join(char for char in text[:255] if char.isprintable()) if text else None
