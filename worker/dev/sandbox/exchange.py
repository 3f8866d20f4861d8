"""One request on its way from arrival to end. Knows what belongs to it, and no rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.keys import KeyUse
from worker.dev.sandbox.orders import Order, Request, State
from worker.dev.sandbox.replies import Headers, Reply
from worker.dev.sandbox.script import OK, Step


class Page(NamedTuple):
    """Which orders of the copy are asked for: those behind this update time and number, so many at most."""

    updated: float
    number: float
    limit: int


@dataclass(slots=True, eq=False)
class Exchange:
    """`reply` is None until it is known."""

    request: Request
    connection: Connection | None = None
    order_ids: tuple[str, ...] = ()
    orders: tuple[Order | None, ...] = ()
    steps: tuple[Step, ...] = ()
    step: Step = OK
    page: Page | None = None
    body: bytes = b""
    headers: Headers = ()
    reply: Reply | None = None
    use: KeyUse | None = None
    stored: State | None = None
    done: State | None = None
    held: bool = False
    released: bool = False
    wake: Callable[[], object] | None = None

    @property
    def order(self) -> Order | None:
        return self.orders[0] if self.orders else None
