"""A Trackstar that costs next to nothing: a million orders, each with a fate of its own, and the truth about each.

Knows cancels with their keys, reads, and faults drawn from a seed; knows no token and no limit (the sandbox does).
Runs in a process of its own: `python -m soak.fast_world SEED` prints its port, and the end of standard input ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import time
from typing import Any
from urllib.parse import unquote

# What an order's first requests meet, before Trackstar answers as the contract says. An effect comes before a colon.
FATES: tuple[tuple[str, ...], ...] = (
    *[()] * 60,
    *[("slow",)] * 10,
    ("503",),
    ("500", "502"),
    ("applied:500",),
    ("applied:reset",),
    ("done:reset",),
    ("done:500",),
    ("reset", "cut"),
    ("hang",),
    ("done:hang",),
    ("429",),
    ("hints",),
    ("done:cut",),
    ("refused",),
    ("absent",),
    ("shipped",),
    ("unsupported",),
)
HANG_SECONDS, SLOW_SECONDS = 1.3, 0.02  # the first is longer than a worker's time-out
COPY_SECONDS = 0.3  # how far Trackstar's copy is behind the warehouse
_REASONS = {"refused": (400, "integration"), "absent": (404, "trackstar"), "unsupported": (501, "trackstar")}


class Order:
    """One order: what the warehouse did, and who asked when."""

    __slots__ = ("asking", "cancelled_at", "cancels", "fate", "keys", "most_in_flight", "served")

    def __init__(self, fate: tuple[str, ...]) -> None:
        self.fate = list(fate)
        self.keys: dict[str, bool] = {}  # each key that came, and whether it is known to have cancelled
        self.asking: set[Connection] = set()  # on which a cancel of it is under way
        self.cancelled_at = 0.0
        self.cancels = self.most_in_flight = self.served = 0

    def cancel(self) -> None:
        if not self.cancelled_at:
            self.cancelled_at = time.monotonic()
            self.cancels += 1

    @property
    def shown(self) -> str:
        if self.fate[-1:] == ["shipped"]:
            return "fulfilled"
        return "cancelled" if 0 < self.cancelled_at < time.monotonic() - COPY_SECONDS else "open"

    def truth(self) -> tuple[int, int, int, int, int]:
        return (int(self.cancelled_at > 0), self.cancels, self.most_in_flight, len(self.keys), self.served)


class World:
    """All orders, made when they are asked for first."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.orders: dict[str, Order] = {}

    def order(self, order_id: str) -> Order:
        if (found := self.orders.get(order_id)) is None:
            found = self.orders[order_id] = Order(random.Random(f"{self._seed}:{order_id}").choice(FATES))
        return found

    def cancel(self, order_id: str, key: str) -> tuple[str, float, bytes]:
        """Say how one cancel is answered: a word for the wire, the seconds before it, and the answer."""
        order = self.order(order_id)
        known = order.keys.get(key)
        order.keys.setdefault(key, False)
        order.served += 1
        word = order.fate.pop(0) if order.fate and order.fate[0] not in {*_REASONS, "shipped"} else ""
        effect, _, answer = word.rpartition(":")
        if effect:
            order.cancel()
            order.keys[key] = effect == "done"
        if answer in {"reset", "cut", "hang"}:
            # A worker on a busy machine may still be there when the answer of a hang comes: it must be true.
            yes, no = (200, _document(order_id, "cancelled")), (503, _error("trackstar"))
            true = _answer(*(yes if order.cancelled_at else no))
            return answer, HANG_SECONDS if answer == "hang" else 0.0, true
        if answer.isdecimal():
            return "", 0.0, _answer(int(answer), _error("trackstar"), b"Retry-After: 1\r\n")
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n" if answer == "hints" else b""
        return "", SLOW_SECONDS if answer == "slow" else 0.0, hints + self._by_contract(order_id, order, key, known)

    def _by_contract(self, order_id: str, order: Order, key: str, known: bool | None) -> bytes:
        fate = order.fate[0] if order.fate else ""
        if fate in _REASONS:
            status, origin = _REASONS[fate]
            return _answer(status, _error(origin))
        if fate == "shipped" or (order.cancelled_at and not known):
            return _answer(400, _error("integration"))
        order.cancel()
        order.keys[key] = True
        return _answer(200, _document(order_id, "cancelled"))

    def read(self, order_id: str) -> bytes:
        order = self.order(order_id)
        if order.fate[-1:] == ["absent"]:
            return _answer(404, _error("trackstar"))
        return _answer(200, _document(order_id, order.shown))

    def read_all(self, ids: list[str]) -> bytes:
        there = [each for each in ids if self.order(each).fate[-1:] != ["absent"]]
        return _answer(200, {"data": [_fields(each, self.order(each).shown) for each in there]})


def _fields(order_id: str, status: str) -> dict[str, Any]:
    return {"id": order_id, "status": status, "ship_to_address": {"full_name": "Jane Example"}, "shipments": []}


def _document(order_id: str, status: str) -> dict[str, Any]:
    return {"data": _fields(order_id, status), "id": order_id, "unused_fields": []}


def _error(origin: str) -> dict[str, Any]:
    return {"error": "The warehouse says no.", "origin": origin}


def _answer(status: int, document: dict[str, Any], headers: bytes = b"") -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come one after the other."""

    transport: asyncio.Transport

    def __init__(self, world: World) -> None:
        self._world = world
        self._received = b""
        self._asked: Order | None = None  # whose cancel is under way on this connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] - it is one of TCP

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the base's shape
        self.over()  # its client has given up, or was killed

    def over(self) -> None:
        """Note that nobody waits any more for the cancel that was under way here."""
        if self._asked is not None:
            self._asked.asking.discard(self)
            self._asked = None

    def hung_up(self) -> bool:
        """Whether the client has gone, which this process may not have heard yet: it has stood still for a while."""
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as peer:
            try:
                return not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[:end].decode("latin-1"), self._received[end + 4 :]
            self._serve(head)

    def _serve(self, head: str) -> None:
        target = head.split(" ", 2)[1]
        if target == "/truth":
            self._send("", _answer(200, {each: order.truth() for each, order in self._world.orders.items()}))
        elif target.endswith("/cancel"):
            self._cancel(unquote(target.split("/")[-2]), _header(head, "idempotency-key"))
        elif "ids[in]=" in target:
            self._send("", self._world.read_all([unquote(each) for each in target.rpartition("=")[2].split(",")]))
        else:
            self._send("", self._world.read(unquote(target.rpartition("/")[2])))

    def _cancel(self, order_id: str, key: str) -> None:
        self._asked = order = self._world.order(order_id)
        for other in [each for each in order.asking if each.hung_up()]:
            other.over()
        order.asking.add(self)
        order.most_in_flight = max(order.most_in_flight, len(order.asking))
        word, seconds, answer = self._world.cancel(order_id, key)
        asyncio.get_running_loop().call_later(seconds, self._end, word, answer)

    def _end(self, word: str, answer: bytes) -> None:
        if self._asked is not None:
            self.over()
            self._send(word, answer)

    def _send(self, word: str, answer: bytes) -> None:
        if self.transport.is_closing():
            return
        if word == "reset":
            self.transport.abort()
        elif word == "cut":
            self.transport.write(answer[:-20])
            self.transport.close()
        else:
            self.transport.write(answer)


def _header(head: str, name: str) -> str:
    return next((line.partition(":")[2].strip() for line in head.split("\r\n") if line.lower().startswith(name)), "")


async def serve(seed: str) -> None:
    """Serve on a free port and print it; the end of standard input ends it."""
    world, loop = World(seed), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(world), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
