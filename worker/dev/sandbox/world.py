"""The world behind the sandbox: connections, orders and their truth, as tests and people arrange and read it.

Thread-safe. It does not know what Trackstar answers (`contract`), nor that there are sockets (`server`).
"""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack, cast

from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.limits import Traffic
from worker.dev.sandbox.options import ConnectionOptions, CrawlOptions, OrderOptions
from worker.dev.sandbox.orders import Order, State
from worker.dev.sandbox.script import parse_all
from worker.dev.sandbox.waiting import Waiting


def steady_epoch() -> Callable[[], float]:
    """Seconds since the epoch that never jump back, so that a window of one second stays one."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()


class World(Waiting):
    def __init__(
        self,
        api_key: str,
        *,
        clock: Callable[[], float] | None = None,
        writes_per_second: int | None = 50,
        reads_per_second: int | None = 10,
        unknown_orders: Literal["404", "open"] = "404",
        idempotency: bool = True,
        connections_as_list: bool = False,
        connections_listed: bool = True,
        connections_per_page: int = 100,
        clock_skew: float = 0.0,
        date_header: bool = True,
        **crawls: Unpack[CrawlOptions],
    ) -> None:
        super().__init__()
        if crawls.keys() - CrawlOptions.__annotations__.keys():
            raise TypeError(f"A world has no option of these names: {', '.join(crawls)}.")
        self.now = clock or steady_epoch()
        self.start = self.now()
        self.api_key = api_key
        self.unknown_orders = unknown_orders
        self.idempotency = idempotency
        self.connections_as_list = connections_as_list
        self.connections_listed = connections_listed
        self.connections_per_page = connections_per_page
        self.clock_skew = clock_skew
        self.date_header = date_header
        self.unauthorised = 0
        # The lists of connections that were asked for, pages counted singly.
        self.connections_lists = 0
        # What a new connection begins with.
        rates = {"writes_per_second": writes_per_second, "reads_per_second": reads_per_second}
        self._beginning = cast("ConnectionOptions", {**rates, **crawls})
        self._connections: dict[str, Connection] = {}
        self._tokens: dict[str, Connection] = {}
        self._trackstar_ids: dict[str, Connection] = {}
        self._order_numbers = itertools.count(1)
        self._request_numbers = itertools.count(1)

    # -- connections

    def connect(
        self, connection_id: str, access_token: str | None = None, **options: Unpack[ConnectionOptions]
    ) -> Connection:
        """Make a connection, or change what is given of one that exists (a new token ends the old one)."""
        with self._change():
            connection = self._connections.get(connection_id)
            known = connection is not None
            if connection is None:
                connection = Connection(connection_id, secrets.token_hex(16), self.now, self.start)
                options = self._beginning | options
            token = access_token or connection.access_token
            name = options.get("trackstar_id", connection.trackstar_id)
            holders = {self.connection_of(token), self._trackstar_ids.get(name)}
            if not (connection_id and name) or holders - {None, connection}:
                raise ValueError("A connection needs an id, and a token and a Trackstar id that no other one has.")
            old_name = connection.trackstar_id
            connection.change(options)
            if known:
                del self._tokens[connection.access_token], self._trackstar_ids[old_name]
            connection.access_token = token
            self._connections[connection_id] = self._tokens[token] = self._trackstar_ids[name] = connection
            return connection

    def connection(self, connection_id: str) -> Connection:
        with self.changed:
            if connection_id not in self._connections:
                raise KeyError(f"There is no connection {connection_id!r}.")
            return self._connections[connection_id]

    def connection_named(self, name: str) -> Connection | None:
        """Find a connection by Trackstar's id, or by the one that it has here."""
        return self._trackstar_ids.get(name) or self._connections.get(name)

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
            connection = self.connection(connection_id)
            if not order_id or order_id in connection.orders:
                raise ValueError(f"An order needs an id that is new to its connection, and {order_id!r} is not.")
            script, reads = parse_all(options.get("script", ())), parse_all(options.get("reads", ()), reads=True)
            connection.crawls.catch_up()
            real = State(options.get("status", "open"), self.now(), dict(options.get("document", {})))
            number = next(self._order_numbers)
            order = Order(number, connection_id, order_id, real, connection.crawls, self.changed)
            order.script, order.reads = script, reads
            if options.get("synced", True):
                order.show(real)
            else:
                connection.crawls.touched.add(order)
            connection.orders[order_id] = order
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
        connection = self._connections.get(connection_id)
        return None if connection is None else connection.orders.get(order_id)

    def orders(self, connection_id: str | None = None) -> list[Order]:
        with self.changed:
            return [order for each in self._chosen(connection_id) for order in each.orders.values()]

    def remove_orders(self, connection_id: str) -> None:
        with self._change():
            for connection in self._chosen(connection_id):
                connection.orders.clear()
                connection.crawls.forget()

    # -- other people, and a warehouse that takes its time; `touches` says whether the update time is set

    def ship(
        self, connection_id: str, order_id: str, status: str | None = "fulfilled", *, touches: bool | None = None
    ) -> None:
        """Let the goods leave; with status None only a shipment says so."""
        with self._change():
            self.order(connection_id, order_id).ship(status, touches=touches)

    def cancel_by_somebody(self, connection_id: str, order_id: str, *, touches: bool | None = None) -> bool:
        """Cancel in the warehouse, without a request; False where nothing was left to cancel."""
        with self._change():
            order = self.order(connection_id, order_id)
            order.refresh()
            possible = order.cancellable()
            if possible:
                order.change("cancelled", touches=touches)
            return possible

    def edit(
        self,
        connection_id: str,
        order_id: str,
        document: Mapping[str, Any] | None = None,
        *,
        status: str | None = None,
        touches: bool | None = None,
    ) -> None:
        """Change some of an order's fields in the warehouse, or nothing but its update time."""
        with self._change():
            self.order(connection_id, order_id).change(status, document, touches=touches)

    def settle(self, connection_id: str, order_id: str) -> None:
        """Make the warehouse do what it accepted under an `open` step."""
        with self._change():
            self.order(connection_id, order_id).settle()

    def sync(self, connection_id: str | None = None) -> None:
        """Trackstar renews its copy of every order (of one connection): a whole crawl that takes no time."""
        with self._change():
            for connection in self._chosen(connection_id):
                connection.crawls.renew(connection.orders.values())

    def _chosen(self, connection_id: str | None) -> list[Connection]:
        if connection_id is None:
            return list(self._connections.values())
        return [each for each in (self._connections.get(connection_id),) if each is not None]

    def next_request_id(self) -> str:
        return f"req-{next(self._request_numbers):08d}"
