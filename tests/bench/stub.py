"""A stand-in for `PUT /wms/orders/{id}/cancel` that costs next to nothing, so that it is never what is measured.

It answers every order with success, at once or after a delay, and remembers when each order was first asked for. It
knows no token, no limit and no fault; the project's own sandbox does. `/control/...` reads and resets it.
Of webhooks it is the receivers: `/hook` takes each at once, `/hang` takes connections and never answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_MARK = b"@@order-id@@"
_ORDER = {
    "id": _MARK.decode(),
    "warehouse_customer_id": "wc_71f0c2",
    "warehouse_id": "wh_us_east_1",
    "created_date": "2025-03-04T09:12:44Z",
    "updated_date": "2025-03-04T09:20:03Z",
    "reference_id": "9b0d2a55-7f0e-4c5e-9a58-0f6f0f9d3c11",
    "order_number": "#10482",
    "status": "cancelled",
    "raw_status": "CANCELLED",
    "channel": "shopify",
    "channel_object": {"id": "5562201", "name": "Example Shop"},
    "type": "d2c",
    "trading_partner": None,
    "shipping_method": "ground",
    "service_level": "standard",
    "invoice_currency_code": "USD",
    "total_price": 129.9,
    "total_tax": 9.74,
    "total_discount": 0.0,
    "total_shipping": 6.95,
    "ship_to_address": {
        "full_name": "Jane Example",
        "company": None,
        "address1": "1 Example Street",
        "address2": None,
        "city": "Springfield",
        "state": "IL",
        "postal_code": "62701",
        "country": "US",
        "phone_number": "+1 555 0100",
        "email_address": "jane@example.com",
    },
    "line_items": [
        {"product_id": f"prod_{n}", "sku": f"SKU-{n:05}", "quantity": n, "unit_price": 19.99, "discount_amount": 0.0}
        for n in range(1, 5)
    ],
    "tags": ["vip", "gift"],
    "shipments": [{"shipment_id": "shp_1", "status": "cancelled", "warehouse_id": "wh_us_east_1"}],
    "external_system_url": "https://example.com/orders/10482",
    "trackstar_tags": ["late"],
    "additional_fields": {},
}
_BODY = json.dumps({"data": _ORDER, "id": _MARK.decode(), "unused_fields": []}).encode()
_PARTS = _BODY.split(_MARK)
_REST = sum(map(len, _PARTS))
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req-%d\r\n"
    b"x-ratelimit-limit: 1000000\r\nx-ratelimit-remaining: 999999\r\nContent-Length: %d\r\n\r\n"
)
_END_OF_HEAD = b"\r\n\r\n"
_SUFFIX = b"/cancel"
_HOOK, _HANG = b"/hook", b"/hang"
_WEBHOOK_ID = b"webhook-id: "
_TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"


class State:
    """What one measurement saw."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.answers = 0  # never reset: an answer whose id came before is taken for one to an earlier request
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.seen_at: dict[str, int] = {}  # order or webhook to CLOCK_MONOTONIC in ns, which all processes share
        self.last_at = 0  # when the last one came, on that clock

    def came(self, name: str) -> None:
        self.last_at = time.monotonic_ns()
        self.seen_at.setdefault(name, self.last_at)
        self.count += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def control(self, path: str, query: dict[str, list[str]]) -> Any:
        """Answer one control request."""
        if path == "/control/reset":
            self.reset()
            self.delay = float(query.get("delay", ["0"])[0])
        if path == "/control/arrivals":
            return self.seen_at
        return {
            "count": self.count,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "first_at": min(self.seen_at.values(), default=0),
            "last_at": self.last_at,
        }


class _Connection(asyncio.Protocol):
    """One keep-alive connection. Requests come one after the other, as every HTTP/1.1 client sends them."""

    transport: asyncio.Transport

    def __init__(self, state: State) -> None:
        self._state = state
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] - it is one of TCP

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (request := self._next_request()) is not None:
            self._answer(request)

    def _next_request(self) -> bytes | None:
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            return None
        head = self._received[:end]
        end += len(_END_OF_HEAD) + _content_length(head)
        if len(self._received) < end:
            return None
        self._received = self._received[end:]
        return head

    def _answer(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1]
        if target == _HANG:
            return
        if target == _HOOK:
            self._take(head)
            return
        if not target.endswith(_SUFFIX):
            self._answer_control(target.decode())
            return
        segment = target[: -len(_SUFFIX)].rpartition(b"/")[2].decode()
        order_id = unquote(segment) if "%" in segment else segment
        self._state.came(order_id)
        if self._state.delay:
            asyncio.get_running_loop().call_later(self._state.delay, self._send, order_id)
        else:
            self._send(order_id)

    def _send(self, order_id: str) -> None:
        self._state.in_flight -= 1
        self._state.answers += 1
        order = json.dumps(order_id)[1:-1].encode()
        length = _REST + len(order) * (len(_PARTS) - 1)
        self.transport.write(_HEAD % (self._state.answers, length) + order.join(_PARTS))

    def _take(self, head: bytes) -> None:
        self._state.came(head.partition(_WEBHOOK_ID)[2].partition(b"\r")[0].decode())
        self._state.in_flight -= 1
        self.transport.write(_TAKEN)

    def _answer_control(self, target: str) -> None:
        url = urlsplit(target)
        body = json.dumps(self._state.control(url.path, parse_qs(url.query))).encode()
        self.transport.write(_HEAD % (0, len(body)) + body)


def _content_length(head: bytes) -> int:
    start = head.lower().find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    start += len(b"\r\ncontent-length:")
    end = head.find(b"\r\n", start)
    return int(head[start : end if end >= 0 else len(head)])


class StubClient:
    """Reads and resets a running stub."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._address = urlsplit(url).netloc

    def reset(self, delay: float) -> None:
        """Forget what was seen; from now on answer after `delay` seconds."""
        self._ask(f"/control/reset?delay={delay}")

    def stats(self) -> dict[str, int]:
        """Return `count`, `in_flight`, `most_in_flight`, `first_at` and `last_at` since the last reset."""
        return self._ask("/control/stats")

    def arrivals(self) -> dict[str, int]:
        """Return when each order, or webhook, came first, in nanoseconds of CLOCK_MONOTONIC."""
        return self._ask("/control/arrivals")

    def _ask(self, target: str) -> Any:
        connection = HTTPConnection(self._address, timeout=10)
        try:
            connection.request("GET", target)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


async def serve() -> None:
    """Serve on a free port and print it; the end of standard input ends it."""
    state = State()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
