"""What Trackstar's documentation promises, and the scripted exceptions. Knows nothing of sockets or of waiting.

An exchange goes `cancel` or `read` (arrival), `act` (the order changes), `answer` (Trackstar knows), `finish`
(the answer is out or lost). Time may pass between any two of them; `gone` says that the client has hung up.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from worker.dev.sandbox import directory, replies, views
from worker.dev.sandbox.connections import Connection
from worker.dev.sandbox.directory import UNAUTHORISED, Directory
from worker.dev.sandbox.exchange import Exchange
from worker.dev.sandbox.keys import MAX_LENGTH
from worker.dev.sandbox.orders import Order, Request
from worker.dev.sandbox.replies import Reply
from worker.dev.sandbox.script import OK
from worker.dev.sandbox.views import READ_AT_ONCE

WRITES = ("cancel", "sync")
REPLAYED = (("Idempotent-Replayed", "true"),)
NOT_FOUND = replies.error(404, "There is no such order for this connection.")


class Caller(NamedTuple):
    api_key: str | None
    access_token: str | None


class Contract(Directory):
    # -- arrival

    def cancel(self, caller: Caller, order_id: str, key: str | None = None, body: bytes = b"") -> Exchange:
        with self.world.changed:
            exchange = self._arrive("cancel", caller, (order_id,), key)
            if exchange.reply is None and key is not None and self.world.idempotency:
                self._claim_key(exchange, key, ("cancel", order_id, body.hex()))
            if exchange.reply is None:
                self._take_step(exchange)
            self.world.changed.notify_all()
            return exchange

    def read(self, caller: Caller, order_id: str) -> Exchange:
        return self._read("read", caller, (order_id,))

    def read_many(self, caller: Caller, order_ids: Sequence[str]) -> Exchange:
        """Read the orders asked for, each once; without ids, the first hundred of the connection."""
        connection = self._connection(caller)
        if not order_ids and connection is not None:
            order_ids = [order.order_id for order in self.world.orders(connection.id)][:READ_AT_ONCE]
        return self._read("read_many", caller, tuple(dict.fromkeys(order_ids)))

    def read_changed(self, caller: Caller, since: str, limit: str = "", page_token: str = "") -> Exchange:
        """Read the orders of the copy whose update time there is at or after an ISO instant, a page at a time."""
        exchange = self._read("read_changed", caller, ())
        try:
            exchange.page = views.page_of(since, limit, page_token)
        except (ValueError, OverflowError) as refusal:
            exchange.reply = exchange.reply or replies.error(422, str(refusal))
        return exchange

    def force_crawl(self, caller: Caller, body: bytes = b"") -> Exchange:
        """Begin a crawl of the connection's orders; it costs a write."""
        exchange = self._read("sync", caller, ())
        exchange.body = body
        return exchange

    def _read(self, kind: str, caller: Caller, order_ids: tuple[str, ...]) -> Exchange:
        with self.world.changed:
            exchange = self._arrive(kind, caller, order_ids, None)
            if exchange.reply is None and len(order_ids) > READ_AT_ONCE:
                exchange.reply = replies.error(400, f"At most {READ_AT_ONCE} ids may be asked for at once.")
            if exchange.reply is None:
                self._take_step(exchange)
            self.world.changed.notify_all()
            return exchange

    def _arrive(self, kind: str, caller: Caller, order_ids: tuple[str, ...], key: str | None) -> Exchange:
        now = self.world.now()
        exchange = Exchange(Request(self.world.next_request_id(), kind, now, key), order_ids=order_ids)
        exchange.connection = connection = self._connection(caller)
        if connection is None:
            self.world.unauthorised += 1
            exchange.reply = UNAUTHORISED
            return exchange
        exchange.orders = tuple(self._order(connection, order_id) for order_id in order_ids)
        for order in exchange.orders:
            if order is not None:
                order.entered(exchange.request)
        budget = connection.writes if kind in WRITES else connection.reads
        if not budget.take(now):
            exchange.reply = replies.error(429, "Too many requests.", retry_after=budget.retry_after(now))
        exchange.headers = budget.headers(now)
        return exchange

    def _connection(self, caller: Caller) -> Connection | None:
        if caller.api_key != self.world.api_key or not caller.access_token:
            return None
        return self.world.connection_of(caller.access_token)

    def _order(self, connection: Connection, order_id: str) -> Order | None:
        order = self.world.find(connection.id, order_id)
        if order is None and self.world.unknown_orders == "open" and order_id:
            order = self.world.add_order(connection.id, order_id)
        return order

    def _take_step(self, exchange: Exchange) -> None:
        reads = exchange.request.kind != "cancel"
        fault = exchange.connection.fault if exchange.connection else None
        steps = tuple(fault or views.next_step(order, reads=reads) for order in exchange.orders)
        exchange.steps = steps or (fault or OK,)
        # In a read of many orders the first fault of any of them is the fault of the whole answer.
        exchange.step = next((step for step in exchange.steps if not views.is_view(step)), exchange.steps[0])
        exchange.request.step = exchange.step.text
        if exchange.step.pause:
            self.world.pausing.append(exchange)

    # -- idempotency

    def _claim_key(self, exchange: Exchange, key: str, intent: tuple[str, ...]) -> None:
        """Refuse the request, or find the success that is replayed, or note that the key is in use from now on."""
        if exchange.connection is None:
            return
        now = self.world.now()
        use = exchange.connection.keys.find(key, now)
        if not 0 < len(key) <= MAX_LENGTH:
            exchange.reply = replies.error(400, f"An Idempotency-Key has 1 to {MAX_LENGTH} characters.")
        elif use is None:
            exchange.use = exchange.connection.keys.begin(key, intent, now)
        elif use.intent != intent:
            exchange.reply = replies.error(400, "This Idempotency-Key was used for a different request.")
        elif use.stored is None:
            exchange.reply = replies.error(409, "A request with this Idempotency-Key is still in progress.")
        else:
            exchange.stored = use.stored

    # -- the order changes

    def act(self, exchange: Exchange) -> Reply:
        """Do what the request asks of the order and settle what will be answered; the second time, nothing."""
        with self.world.changed:
            if exchange.reply is not None:
                return exchange.reply
            step, reply = exchange.step, replies.scripted(exchange.step)
            if reply is None or step.effect != "none":
                promised = self._promised(exchange)
                reply = reply or promised
            exchange.reply = replies.dressed(reply, step)
            self.world.changed.notify_all()
            return exchange.reply

    def _promised(self, exchange: Exchange) -> Reply:
        if exchange.connection is not None and exchange.request.kind == "sync":
            return directory.force(exchange.connection, exchange.body)
        if exchange.connection is not None and exchange.page is not None:
            return views.changed(exchange.connection, exchange.page)
        return self._act_cancel(exchange) if exchange.request.kind == "cancel" else self._act_read(exchange)

    def _act_cancel(self, exchange: Exchange) -> Reply:
        step, order = exchange.step, exchange.order
        if exchange.stored is not None:
            exchange.request.replayed = True
            return replies.cancelled(exchange.order_ids[0], exchange.stored, step).having(REPLAYED)
        if order is not None:
            order.refresh()
        if order is None or order.copy is None:
            return NOT_FOUND
        if order.real.status == "cancelled":
            return replies.error(400, "The order is already cancelled.", "integration")
        if order.real.has_left:
            return replies.error(400, "The order has already shipped.", "integration")
        if step.effect == "accepted":
            order.accept(step.target, step.seconds, touches=step.touches)
        else:
            order.cancel()
        exchange.done = None if step.effect == "applied" else order.real
        return replies.cancelled(order.order_id, order.real, step)

    def _act_read(self, exchange: Exchange) -> Reply:
        pairs = zip(exchange.order_ids, exchange.orders, exchange.steps, strict=False)
        found = [(views.seen_id(order_id, step), views.view(order, step)) for order_id, order, step in pairs]
        documents = [replies.document(order_id, state) for order_id, state in found if state is not None]
        if exchange.request.kind == "read_many":
            return replies.of({"data": documents})
        return replies.of({"data": documents[0]}) if documents else NOT_FOUND

    # -- Trackstar knows, and the answer goes out

    def answer(self, exchange: Exchange) -> Reply:
        """Give the answer that goes out; from here on a success is stored under its key and shown by reads."""
        with self.world.changed:
            reply = self.act(exchange)
            if exchange.done is not None and exchange.order is not None:
                exchange.order.show(exchange.done)
                if exchange.use is not None:
                    exchange.use.stored = exchange.done
            return reply.having(exchange.headers)

    def finish(self, exchange: Exchange, end: str, status: int | None = None) -> None:
        """Trackstar is done with the request: a key without success is released. Once; later calls do nothing."""
        with self.world.changed:
            request = exchange.request
            if exchange.use is not None and exchange.connection is not None and request.key is not None:
                exchange.connection.keys.release(request.key, exchange.use)
                exchange.use = None
            if exchange in self.world.pausing:
                self.world.pausing.remove(exchange)
            self._end(exchange, end, status)

    def gone(self, exchange: Exchange) -> None:
        """Note that the client has hung up; Trackstar does not notice, and goes on with the request."""
        with self.world.changed:
            self._end(exchange, "client_gone", None)

    def hold(self, exchange: Exchange, wake: Callable[[], object]) -> bool:
        """Stand still at the pause; False when it has already been released."""
        with self.world.changed:
            if exchange.released:
                return False
            exchange.held, exchange.wake = True, wake
            self.world.changed.notify_all()
            return True

    def _end(self, exchange: Exchange, end: str, status: int | None) -> None:
        request = exchange.request
        if request.ended is None:
            request.ended, request.end, request.status = self.world.now(), end, status
            for order in exchange.orders:
                if order is not None:
                    order.left(request)
        self.world.changed.notify_all()
