"""Waiting for what happens in a world, and letting paused requests go on. Knows no connection and no rule."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, RLock
from typing import TYPE_CHECKING

from worker.dev.sandbox.orders import Order, Request

if TYPE_CHECKING:
    from worker.dev.sandbox.exchange import Exchange

# Waiting looks again this often, because a `open:2` step comes true by the clock alone.
LOOK_SECONDS = 0.05


class Waiting(ABC):
    """What a world is besides its content: one lock, and a notice of each change."""

    def __init__(self) -> None:
        self.changed = Condition(RLock())
        self.pausing: list[Exchange] = []

    @abstractmethod
    def order(self, connection_id: str, order_id: str) -> Order: ...

    @abstractmethod
    def find(self, connection_id: str, order_id: str) -> Order | None: ...

    def release(self, connection_id: str, order_id: str) -> int:
        """Let the paused requests of one order go on, also those that have not reached their pause yet."""
        with self._change():
            order = self.order(connection_id, order_id)
            released = [each for each in self.pausing if order in each.orders and not each.released]
            for exchange in released:
                exchange.released = True
                if exchange.wake is not None:
                    exchange.wake()
            return len(released)

    def wait_until(self, fact: Callable[[], bool], timeout: float = 5, what: str = "it") -> None:
        deadline = time.monotonic() + timeout
        with self.changed:
            while not fact():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"Waited {timeout:g} seconds for {what}, in vain.")
                self.changed.wait(min(left, LOOK_SECONDS))

    def wait_for_request(
        self, connection_id: str, order_id: str, count: int = 1, timeout: float = 5, kind: str = "cancel"
    ) -> Request:
        """Return the count-th request of this kind as soon as it has arrived."""

        def arrived() -> list[Request]:
            order = self.find(connection_id, order_id)
            return [] if order is None else [each for each in order.requests if each.kind == kind]

        self.wait_until(lambda: len(arrived()) >= count, timeout, f"{kind} number {count} of {order_id!r}")
        return arrived()[count - 1]

    def wait_for_pause(self, connection_id: str, order_id: str, timeout: float = 5) -> None:
        """Return once a request of this order stands still at its pause."""

        def paused() -> bool:
            waiting = [each for each in self.pausing if each.held and not each.released]
            return any(self.find(connection_id, order_id) in each.orders for each in waiting)

        self.wait_until(paused, timeout, f"a pause of {order_id!r}")

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.changed:
            yield
            self.changed.notify_all()
