"""A clock that stands still, and requests to the sandbox's rules without a socket."""

import json
from typing import Any

from worker.dev.sandbox import World
from worker.dev.sandbox.contract import Caller, Contract
from worker.dev.sandbox.control import handle
from worker.dev.sandbox.exchange import Exchange
from worker.dev.sandbox.replies import Reply

SHOP = "shop-1"
ORDER = "order-1"
CALLER = Caller("k", "t1")
HOUR = 3600


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += seconds


def end(contract: Contract, exchange: Exchange) -> Reply:
    reply = contract.answer(exchange)
    contract.finish(exchange, "answered", reply.status)
    return reply


def cancel(contract: Contract, key: str | None = None, order_id: str = ORDER, body: bytes = b"") -> Reply:
    return end(contract, contract.cancel(CALLER, order_id, key, body))


def read(contract: Contract, order_id: str = ORDER) -> Reply:
    return end(contract, contract.read(CALLER, order_id))


def status_read(contract: Contract) -> str:
    return str(body_of(read(contract))["data"]["status"])


def body_of(reply: Reply) -> Any:
    return json.loads(reply.body)


def refusal(reply: Reply) -> tuple[int, str]:
    return reply.status, body_of(reply)["origin"]


def control(world: World, verb: str, path: str, wish: Any = None, **query: str) -> Reply:
    body = b"" if wish is None else json.dumps(wish).encode()
    return handle(world, verb, tuple(path.split("/")) if path else (), query, body)
