"""One HTTP request to Trackstar, bounded in time and size. Returns what came back; never judges, never raises for it.

Knows the wire; does not know retries, claims or the ledger. No header and no body is ever logged: they hold secrets
and personal data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import IncompleteRead  # urllib3's own is one too
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import requests
from requests.exceptions import InvalidHeader, RequestException
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.cancellation.answer import Answer, NoReply, NoReplyReason, Reply, read_reply
from worker.cancellation.listing import (
    MAX_ORDERS,
    ORDERS_CRAWL,
    read_connection,
    read_connections,
    read_crawl_request,
    read_magic_link,
    read_orders_page,
)
from worker.cancellation.policy import Policy
from worker.inputs.body import TooLargeError, decompressed
from worker.inputs.headers import read_date, read_rate_limit, read_retry_after
from worker.trackstar.connection import Adapter
from worker.trackstar.tls import certificate_problem
from worker.trackstar.watchdog import Call, Watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_RETRY_CAP = Policy().retry_cap  # seconds of a `retry-after`
_CHUNK = 64 * 1024
_PAGE_TIMES = 4  # of what another answer may hold: a thousand connections with all that is told of them
_FORCED = b'{"functions_to_sync": ["%s"]}' % ORDERS_CRAWL.encode()


# Hears of each request: method, template of its path, status where one came, why no answer came or "", seconds.
Observe = Callable[[str, str, int | None, str, float], None]

_CANCEL, _ORDER, _ORDERS = "/wms/orders/{order_id}/cancel", "/wms/orders/{order_id}", "/wms/orders"
_CONNECTIONS, _CONNECTION = "/connections", "/connections/{connection_id}"
_SYNC, _MAGIC_LINKS = "/connections/sync", "/magic-links"


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
        ca_bundle: str = "",
        proxy: str = "",
        observe: Observe = lambda *_: None,
    ) -> None:
        self._observe = observe
        self._base_url = base_url.rstrip("/")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._max_response_bytes = max_response_bytes
        self._retry_cap = retry_cap
        self._watchdog = Watchdog()
        self._headers = {
            "x-trackstar-api-key": api_key,
            "User-Agent": "trackstar-cancel-worker",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
        }
        self._adapter = Adapter(base_url, threads=threads, ca_bundle=ca_bundle, proxy=proxy)

    def cancel(self, order_id: str, *, access_token: str, idempotency_key: str) -> Answer:
        """`PUT /wms/orders/{order_id}/cancel`, without a body."""
        return self._send(
            "PUT",
            _CANCEL,
            _CANCEL.format(order_id=_segment(order_id)),
            _of(access_token) | {"Idempotency-Key": idempotency_key},
        )

    def read_order(self, order_id: str, *, access_token: str) -> Answer:
        """`GET /wms/orders/{order_id}`: Trackstar's copy, up to an hour old."""
        return self._send("GET", _ORDER, _ORDER.format(order_id=_segment(order_id)), _of(access_token))

    def read_orders(self, order_ids: Sequence[str], *, access_token: str) -> Answer:
        """`GET /wms/orders?ids[in]=a,b,c`, up to 100 ids, none with a comma."""
        ids = ",".join(quote(order_id, safe="") for order_id in order_ids)
        return self._send("GET", _ORDERS, f"{_ORDERS}?ids[in]={ids}", _of(access_token))

    def read_connection(self, connection_id: str) -> Answer:
        """`GET /connections/{id}`, with the API key alone."""
        path = _CONNECTION.format(connection_id=_segment(connection_id))
        return self._send("GET", _CONNECTION, path, {}, read_connection)

    def read_connections(self, page_token: str | None = None) -> Answer:
        """`GET /connections`, with the API key alone: a page of all connections, with their crawls of orders.

        A reply has `connections`, `next_token`, `more` where a page holds more than is looked at, and `date`.
        """
        path = _CONNECTIONS + _query(page_token=page_token)
        return self._send("GET", _CONNECTIONS, path, {}, read_connections, most=_PAGE_TIMES)

    def read_changed_orders(
        self, since: datetime, *, access_token: str, page_token: str | None = None, limit: int = MAX_ORDERS
    ) -> Answer:
        """`GET /wms/orders?updated_date[gte]=…`: a page of the orders that changed since an instant of Trackstar's.

        `limit` is at most 1,000. A reply has `orders` and `next_token`.
        """
        # To the whole second before: what changed within it is read twice, and not missed.
        instant = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        query = _query(updated_date_gte=instant, limit=str(max(1, min(limit, MAX_ORDERS))), page_token=page_token)
        return self._send("GET", _ORDERS, _ORDERS + query, _of(access_token), read_orders_page, most=_PAGE_TIMES)

    def force_crawl(self, *, access_token: str) -> Answer:
        """`POST /connections/sync` for orders: Trackstar renews its copy now, which takes minutes. Counts as a write.

        A reply has `id`, Trackstar's own of the connection, and `syncing`.
        """
        headers = _of(access_token) | {"Content-Type": "application/json"}
        return self._send("POST", _SYNC, _SYNC, headers, read_crawl_request, body=_FORCED)

    def magic_link(self, connection_id: str) -> Answer:
        """`POST /magic-links`, with the API key alone: where a customer enters the warehouse's credentials anew.

        A reply has `link`, a secret of that customer's: for a person to pass on, and for no log.
        """
        body = msgspec.json.encode({"connection_id": connection_id})
        headers = {"Content-Type": "application/json"}
        return self._send("POST", _MAGIC_LINKS, _MAGIC_LINKS, headers, read_magic_link, body=body)

    def _send(
        self,
        method: str,
        template: str,
        path: str,
        headers: dict[str, str],
        read: Callable[..., Reply] = read_reply,
        *,
        body: bytes | None = None,
        most: int = 1,
    ) -> Answer:
        began = time.monotonic()
        answer: Answer
        with self._watchdog.limit(self._request_timeout) as call:
            try:
                prepared = self._prepared(method, path, headers, body)
                answer = self._exchange(prepared, call, read, most * self._max_response_bytes)
            except (RequestException, HTTPError, OSError) as error:
                # Its kind, or OpenSSL's own words: its text may hold a header.
                detail = certificate_problem(error) or type(error).__name__
                answer = NoReply(_why(error, call), call.sent, detail, call.status)
        reason = answer.reason if isinstance(answer, NoReply) else ""
        self._observe(method, template, answer.status, reason, time.monotonic() - began)
        return answer

    def _prepared(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> requests.PreparedRequest:
        # By hand: preparing would tidy the percent-encoding, and an id must stay one segment.
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = method, self._base_url + path
        if body is not None:
            headers = headers | {"Content-Length": str(len(body))}  # without it a body is sent in chunks
            prepared.body = body
        prepared.headers = self._headers | headers  # type: ignore[assignment] # looked up as it is written here
        return prepared

    def _exchange(
        self, prepared: requests.PreparedRequest, call: Call, read: Callable[..., Reply], max_bytes: int
    ) -> Answer:
        timeout = (self._connect_timeout, self._request_timeout)
        try:
            response: Any = self._adapter.send(prepared, stream=True, timeout=timeout)  # urllib3's own
        except ValueError:  # of a header's value, which its text shows
            raise InvalidHeader from None
        call.status = response.status
        with response:
            headers = response.headers
            try:
                content = decompressed(_read_body(response, max_bytes), headers.get("Content-Encoding"), max_bytes)
            except TooLargeError:
                return NoReply("body_too_large", sent=True, status=call.status)
            if call.expired:
                return NoReply("read_timeout", sent=True, status=call.status)
            return read(
                response.status,
                content,
                request_id=_bounded(headers.get("X-Request-Id")),
                replayed=headers.get("Idempotent-Replayed", "").lower() == "true",
                retry_after=read_retry_after(
                    headers.get("Retry-After"), date=headers.get("Date"), now=datetime.now(UTC), cap=self._retry_cap
                ),
                rate_limit=read_rate_limit(headers.get("x-ratelimit-limit")),
                date=read_date(headers.get("Date")),
            )


def _read_body(response: Any, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while response.length_remaining != 0 and (chunk := response.read(_CHUNK)):
        size += len(chunk)
        if size > max_bytes:
            raise TooLargeError  # what is left is not worth reading, so the connection is not worth keeping
        parts.append(chunk)
    return b"".join(parts)


def _of(access_token: str) -> dict[str, str]:
    return {"x-trackstar-access-token": access_token}


def _segment(order_id: str) -> str:
    return quote(order_id, safe="")


def _query(**given: str | None) -> str:
    names = {"updated_date_gte": "updated_date[gte]"}
    parts = [f"{names.get(name, name)}={quote(value, safe='')}" for name, value in given.items() if value]
    return "?" + "&".join(parts) if parts else ""


def _why(error: Exception, call: Call) -> NoReplyReason:
    if not call.sent:
        if call.expired or isinstance(error, requests.ConnectTimeout):
            return "connect_timeout"
        if isinstance(error, requests.exceptions.ProxyError):
            return "proxy_failed"
        return "tls_failed" if isinstance(error, requests.exceptions.SSLError) else "connect_failed"
    if call.expired or isinstance(error, requests.Timeout | ReadTimeoutError):
        return "read_timeout"
    if isinstance(error, IncompleteRead) or any(isinstance(arg, IncompleteRead) for arg in error.args):
        return "cut_body"
    return "connection_lost"


def _bounded(text: str | None) -> str | None:
    return "".join(char for char in text[:255] if char.isprintable()) if text else None
