"""The world behind the sandbox: connections, orders and their truth, as tests and people arrange and read it.

Thread-safe. It does not know what Trackstar answers (`contract`), nor that there are sockets (`server`).
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, RLock
from typing import Any, Literal, TypedDict, Unpack

from worker.dev.sandbox.keys import Keys, KeyUse
from worker.dev.sandbox.limits import Budget, Traffic
from worker.dev.sandbox.orders import Calendar, Order, Request, State
from worker.dev.sandbox.replies import Headers, Reply
from worker.dev.sandbox.script import OK, Step, parse, parse_all

ACTIONS = ("get_orders", "create_order", "cancel_order")
# Waiting looks again this often, because a `open:2` step comes true by the clock alone.
LOOK_SECONDS = 0.05


class ConnectionOptions(TypedDict, total=False):
    """`fault` is one step that answers every request of the connection until it is set to None."""

    integration_name: str
    available_actions: Sequence[str]
    errors: Sequence[Any]
    writes_per_second: int | None
    reads_per_second: int | None
    fault: str | None


class OrderOptions(TypedDict, total=False):
    """`document` lies over the sample order; `synced=False` keeps it out of Trackstar's copy until a sync."""

    status: str
    script: Sequence[str]
    reads: Sequence[str]
    document: Mapping[str, Any]
    synced: bool


@dataclass(slots=True, eq=False)
class Connection:
    id: str
    access_token: str
    writes: Budget
    reads: Budget
    integration_name: str = "sandbox"
    available_actions: tuple[str, ...] = ACTIONS
    errors: tuple[Any, ...] = ()
    fault: Step | None = None
    keys: Keys = field(default_factory=Keys)

    @property
    def traffic(self) -> Traffic:
        writes, reads = self.writes, self.reads
        return Traffic(writes.total, writes.refused, writes.peak, reads.total, reads.refused, reads.peak)


@dataclass(slots=True, eq=False)
class Exchange:
    """One request on its way from arrival to end. `reply` is None until it is known."""

    request: Request
    connection: Connection | None = None
    order_ids: tuple[str, ...] = ()
    orders: tuple[Order | None, ...] = ()
    steps: tuple[Step, ...] = ()
    step: Step = OK
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


def steady_epoch() -> Callable[[], float]:
    """Seconds since the epoch that never jump back, so that a window of one second stays one."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()


class World:
    def __init__(
        self,
        api_key: str,
        *,
        clock: Callable[[], float] | None = None,
        writes_per_second: int | None = 50,
        reads_per_second: int | None = 10,
        sync_seconds: float = 3600,
        unknown_orders: Literal["404", "open"] = "404",
        idempotency: bool = True,
        connections_as_list: bool = False,
    ) -> None:
        now = clock or steady_epoch()
        self.api_key = api_key
        self.calendar = Calendar(now, now(), sync_seconds)
        self.writes_per_second = writes_per_second
        self.reads_per_second = reads_per_second
        self.unknown_orders = unknown_orders
        self.idempotency = idempotency
        self.connections_as_list = connections_as_list
        self.unauthorised = 0
        self.changed = Condition(RLock())
        self.pausing: list[Exchange] = []
        self._connections: dict[str, Connection] = {}
        self._tokens: dict[str, Connection] = {}
        self._orders: dict[tuple[str, str], Order] = {}
        self._request_numbers = itertools.count(1)

    # -- connections

    def connect(
        self, connection_id: str, access_token: str | None = None, **options: Unpack[ConnectionOptions]
    ) -> Connection:
        """Make a connection, or change what is given of one that exists (a new token ends the old one)."""
        with self._change():
            fault = options.get("fault")
            step = None if fault is None else parse(fault)
            connection = self._connections.get(connection_id)
            token = access_token or (connection.access_token if connection else secrets.token_hex(16))
            holder = self.connection_of(token)
            if not connection_id or (holder is not None and holder is not connection):
                raise ValueError("A connection needs an id, and a token that no other connection has.")
            if connection is None:
                limits = Budget(self.writes_per_second), Budget(self.reads_per_second)
                connection = self._connections[connection_id] = Connection(connection_id, token, *limits)
            self._tokens.pop(connection.access_token, None)
            self._tokens[token] = connection
            connection.access_token = token
            connection.integration_name = options.get("integration_name", connection.integration_name)
            connection.available_actions = tuple(options.get("available_actions", connection.available_actions))
            connection.errors = tuple(options.get("errors", connection.errors))
            connection.writes.limit = options.get("writes_per_second", connection.writes.limit)
            connection.reads.limit = options.get("reads_per_second", connection.reads.limit)
            connection.fault = step if "fault" in options else connection.fault
            return connection

    def connection(self, connection_id: str) -> Connection:
        with self.changed:
            if connection_id not in self._connections:
                raise KeyError(f"There is no connection {connection_id!r}.")
            return self._connections[connection_id]

    def connections(self) -> list[Connection]:
        with self.changed:
            return list(self._connections.values())

    def traffic(self, connection_id: str) -> Traffic:
        with self.changed:
            return self.connection(connection_id).traffic

    def connection_of(self, token: str | None) -> Connection | None:
        return self._tokens.get(token or "")

    # -- orders

    def add_order(self, connection_id: str, order_id: str, **options: Unpack[OrderOptions]) -> Order:
        with self._change():
            self.connection(connection_id)
            if not order_id or (connection_id, order_id) in self._orders:
                raise ValueError(f"An order needs an id that is new to its connection, and {order_id!r} is not.")
            script, reads = parse_all(options.get("script", ())), parse_all(options.get("reads", ()), reads=True)
            now = self.calendar.now()
            real = State(options.get("status", "open"), now, dict(options.get("document", {})))
            copy = real if options.get("synced", True) else None
            order = Order(connection_id, order_id, real, copy, self.calendar, self.changed)
            order.copied_at, order.script, order.reads = now, script, reads
            self._orders[connection_id, order_id] = order
            return order

    def alter_order(self, connection_id: str, order_id: str, **options: Unpack[OrderOptions]) -> Order:
        """Change what is given; a new status or document is the warehouse's, and the copy learns it at a sync."""
        with self._change():
            order = self.order(connection_id, order_id)
            script = parse_all(options["script"]) if "script" in options else order.script
            reads = parse_all(options["reads"], reads=True) if "reads" in options else order.reads
            order.script, order.reads = script, reads
            if "status" in options or "document" in options:
                order.change(options.get("status"), options.get("document"))
            if options.get("synced"):
                order.show(order.real)
            return order

    def order(self, connection_id: str, order_id: str) -> Order:
        with self.changed:
            found = self.find(connection_id, order_id)
            if found is None:
                raise KeyError(f"Connection {connection_id!r} has no order {order_id!r}.")
            return found

    def find(self, connection_id: str, order_id: str) -> Order | None:
        return self._orders.get((connection_id, order_id))

    def orders(self, connection_id: str | None = None) -> list[Order]:
        with self.changed:
            return [each for each in self._orders.values() if connection_id in (None, each.connection_id)]

    def remove_orders(self, connection_id: str) -> None:
        with self._change():
            for order in self.orders(connection_id):
                del self._orders[order.connection_id, order.order_id]

    def ship(self, connection_id: str, order_id: str, status: str | None = "fulfilled") -> None:
        """Let the goods leave; with status None only a shipment says so."""
        with self._change():
            self.order(connection_id, order_id).ship(status)

    def settle(self, connection_id: str, order_id: str) -> None:
        """Make the warehouse do what it accepted under an `open` step."""
        with self._change():
            self.order(connection_id, order_id).settle()

    def sync(self, connection_id: str | None = None) -> None:
        """Trackstar renews its copy of every order (of one connection)."""
        with self._change():
            for order in self.orders(connection_id):
                order.refresh()
                order.show(order.real)

    # -- waiting and releasing

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
        place = (connection_id, order_id)

        def paused() -> bool:
            waiting = [each for each in self.pausing if each.held and not each.released]
            return any(self._orders.get(place) in each.orders for each in waiting)

        self.wait_until(paused, timeout, f"a pause of {order_id!r}")

    def next_request_id(self) -> str:
        return f"req-{next(self._request_numbers):08d}"

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self.changed:
            yield
            self.changed.notify_all()
