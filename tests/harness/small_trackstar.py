"""A small Trackstar in front of a warehouse with other people in it. Stands where the HTTP client stands.

Knows what is true, and since when; knows keys, copies and crawls as documented, and any fault on demand. What issue 13
takes for granted holds: what is in doubt lands before the second crawl after its request begins, and one crawl misses
at most what does not touch its order's update time. What was accepted may be applied at any time, or never.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from worker.cancellation.answer import Answer, NoReply, read_reply
from worker.cancellation.listing import read_connections, read_crawl_request, read_orders_page

KEY_BUSY, KEY_LIFE, PERIOD = timedelta(seconds=900), timedelta(days=1), timedelta(hours=1)


class Fault(StrEnum):
    """What becomes of one request."""

    NONE = "none"
    LOST = "done, and the answer is lost"
    RUNNING = "still under way when its client gives up"
    BROKE_AFTER = "done, then a 502"
    BROKE_BEFORE = "not done: a 503"
    GARBLED = "done, and the answer is no JSON"
    LATER = "accepted: the warehouse decides later"
    REFUSED = "refused by the warehouse for a reason of its own"
    SHIPPED = "the order ships just before"
    NOT_SENT = "no connection"
    BUSY = "429"
    NO_ACCESS = "401"
    DISABLED = "403"
    MISSING = "404"
    UNSUPPORTED = "501"


NEVER_PASSED_ON: dict[Fault, tuple[int, str | None]] = {
    Fault.BROKE_BEFORE: (503, None),
    Fault.BUSY: (429, None),
    Fault.NO_ACCESS: (401, "trackstar"),
    Fault.DISABLED: (403, "trackstar"),
    Fault.MISSING: (404, "trackstar"),
    Fault.UNSUPPORTED: (501, "integration"),
}
NO_ANSWER = NoReply("read_timeout", sent=True)


class Crawling(StrEnum):
    """How a connection's crawls are."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    ERROR = "error"
    STUCK = "stuck"
    UNTOLD = "nothing is told of them"


def now() -> datetime:
    return datetime.now(UTC)


def reply(status: int, *, replayed: bool = False, **body: Any) -> Answer:
    return read_reply(status, json.dumps(body).encode(), replayed=replayed)


@dataclass
class Change:
    """What became of an order, and how Trackstar comes to know of it."""

    at: datetime
    state: str
    touches: bool = True  # the order's update time
    missed: bool = False  # by the first crawl that could bring it
    ours: bool = True


@dataclass
class Order:
    """What the warehouse knows, what Trackstar shows of it, and which requests are on their way."""

    id: str
    copy: str | None = "open"  # what a read shows
    unheard_of: bool = False  # no crawl brings it
    updated: datetime = field(default_factory=now)  # of the copy
    changes: list[Change] = field(default_factory=list)
    uncopied: list[Change] = field(default_factory=list)
    undecided: bool = False  # the warehouse was asked and decides later
    asked_again: bool = False  # meanwhile
    underway: list[str] = field(default_factory=list)  # keys of requests for which nobody waits any more
    begins: int = 0  # of crawls since our last request
    running: set[str] = field(default_factory=set)
    stored: dict[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)  # keys of requests that were passed on to the warehouse
    said_yes: set[str] = field(default_factory=set)

    @property
    def real(self) -> str:
        return self.changes[-1].state if self.changes else "open"

    @property
    def is_settled(self) -> bool:
        return self.real != "open" or not (self.undecided or self.underway)

    @property
    def times_cancelled(self) -> int:
        """How often a request of ours did it."""
        return sum(each.ours and each.state == "cancelled" for each in self.changes)

    @property
    def cancelled_by_us(self) -> bool:
        return self.times_cancelled > 0

    def real_at(self, when: datetime) -> str:
        return next((each.state for each in reversed(self.changes) if each.at <= when), "open")

    def was_cancelled(self, when: datetime) -> bool:
        """Whether it had been cancelled by then; goods that leave after that contradict it."""
        return any(each.state == "cancelled" and each.at <= when for each in self.changes)

    def become(self, state: str, *, touches: bool = True, missed: bool = False, ours: bool = True) -> None:
        change = Change(now(), state, touches, missed, ours)
        self.changes.append(change)
        self.uncopied.append(change)
        self.undecided = False

    def decide(self, *, ships: bool) -> None:
        """Let the warehouse ship an open order, or cancel one that it was asked to cancel."""
        if self.real == "open" and ships:
            self.become("fulfilled", ours=False)
        elif self.undecided:
            self.become("cancelled")

    def show(self) -> None:
        """Show at once what is true: Trackstar's copy is fresh after a success of our own."""
        self.copy, self.updated = None if self.unheard_of else self.real, now()
        self.uncopied.clear()

    def crawl(self, began: datetime) -> None:
        """Bring what changed before a crawl began, but for what this one misses."""
        if self.unheard_of:
            return
        seen = [each for each in self.uncopied if each.at <= began]
        missed = any(each.missed for each in seen)
        for each in seen:
            each.missed = False  # it is the next crawl's
        if missed:
            return
        self.copy = seen[-1].state if seen else self.copy or "open"
        self.updated = max([self.updated, *(each.at for each in seen if each.touches)])
        self.uncopied = [each for each in self.uncopied if each.at > began]

    def grow_older(self, ago: timedelta) -> None:
        self.updated -= ago
        for each in self.changes:
            each.at -= ago
        self.running = set() if ago >= KEY_BUSY else self.running
        self.stored = {} if ago >= KEY_LIFE else self.stored


class SmallTrackstar:
    """One connection, `shop-1`."""

    def __init__(
        self,
        orders: Sequence[str],
        on_cancel: Callable[[str], None],
        *,
        absent: Sequence[str] = (),
        unheard_of: Sequence[str] = (),
    ) -> None:
        """`absent`: not in the copy before the first crawl; `unheard_of`: never."""
        missing = {*absent, *unheard_of}
        self.orders = {name: Order(name, None if name in missing else "open") for name in orders}
        for name in unheard_of:
            self.orders[name].unheard_of = True
        self.fault = self.fault_of_read = Fault.NONE
        self.crawling = Crawling.ENABLED
        self.length = timedelta(minutes=2)
        self.ahead = timedelta()  # of Trackstar's clock
        self.completed: list[datetime] = []  # when they began
        self._on_cancel = on_cancel
        self._next = now() + PERIOD / 2
        self._running: datetime | None = None
        self._start = self._end = None  # type: datetime | None
        self._failed = False

    # -- cancels and reads

    def cancel(self, order_id: str, *, access_token: str, idempotency_key: str) -> Answer:  # noqa: ARG002
        order, key, fault = self.orders[order_id], idempotency_key, self.fault
        self._on_cancel(key)
        order.begins, order.asked_again = 0, order.undecided
        order.decide(ships=fault is Fault.SHIPPED)
        answer = self._stopped_early(fault, order)
        if answer is None and key in order.running:
            answer = reply(409, origin="trackstar")
        elif answer is None and key in order.stored:
            answer = reply(200, replayed=True, data={"id": order_id, "status": order.stored[key]})
        elif answer is None and fault is Fault.RUNNING:
            order.running.add(key)
            order.underway.append(key)
            answer = NO_ANSWER
        elif answer is None:
            answer = self.pass_on(order, key, fault)
        if fault is Fault.LOST:
            return NO_ANSWER
        return read_reply(200, b"<html>") if fault is Fault.GARBLED or answer is None else answer

    def pass_on(self, order: Order, key: str, fault: Fault) -> Answer:
        """Ask the warehouse, and keep the key if it agrees."""
        order.running.discard(key)
        order.asked.add(key)
        if order.real != "open" or fault is Fault.REFUSED:
            return reply(400, origin="integration")
        if fault is Fault.LATER:
            order.undecided = True
        else:
            order.become("cancelled")
        if fault is Fault.BROKE_AFTER:
            return reply(502)
        order.said_yes.add(key)
        order.stored[key] = order.real
        order.show()
        return reply(200, data={"id": order.id, "status": order.real})

    def read_order(self, order_id: str, *, access_token: str) -> Answer:  # noqa: ARG002
        order = self.orders[order_id]
        return self._stopped_early(self.fault_of_read, order) or reply(200, data=_document(order))

    def read_orders(self, order_ids: Sequence[str], *, access_token: str) -> Answer:  # noqa: ARG002
        there = [order for name in order_ids if (order := self.orders[name]).copy]
        return self._stopped_early(self.fault_of_read) or reply(200, data=[_document(each) for each in there])

    def _stopped_early(self, fault: Fault, order: Order | None = None) -> Answer | None:
        if fault is Fault.NOT_SENT:
            return NoReply("connect_failed", sent=False)
        if fault in NEVER_PASSED_ON:
            status, origin = NEVER_PASSED_ON[fault]
            return reply(status, origin=origin)
        return reply(404, origin="trackstar") if order and order.copy is None else None

    # -- crawls

    def read_connections(self, page_token: str | None = None) -> Answer:  # noqa: ARG002
        if self.crawling is Crawling.UNTOLD:
            return reply(404, origin="trackstar")
        schedule = {
            "function_name": "get_orders",
            "last_crawl_start": self._told(self._start),
            "last_crawl_end": self._told(self._end),
            "sync_frequency": PERIOD.total_seconds(),
            "in_progress": self._running is not None,
            "sync_status": self._word(),
        }
        listed = json.dumps({"data": [{"id": "shop-1", "sync_schedules": [schedule]}]}).encode()
        return read_connections(200, listed, date=(now() + self.ahead).replace(microsecond=0))

    def _word(self) -> str:
        if self.crawling is Crawling.DISABLED:
            return "disabled"
        if self._running:
            return "sync_in_progress"
        return "error" if self._failed else "enabled"

    def _told(self, instant: datetime | None) -> str | None:
        return (instant + self.ahead).isoformat() if instant else None

    def read_changed_orders(self, since: datetime, **_: Any) -> Answer:
        shown = [_document(each) for each in self.orders.values() if each.copy and each.updated + self.ahead >= since]
        return self._stopped_early(self.fault_of_read) or read_orders_page(200, json.dumps({"data": shown}).encode())

    def force_crawl(self, *, access_token: str) -> Answer:  # noqa: ARG002
        if self.crawling is Crawling.DISABLED:
            return reply(422, origin="trackstar")
        self._begin(now())
        return read_crawl_request(200, json.dumps({"id": "shop-1", "syncing": True}).encode())

    def grow_older(self, ago: timedelta) -> None:
        """Let time pass, and with it the crawls that fall into it."""
        for order in self.orders.values():
            order.grow_older(ago)
        self._next -= ago
        self._running, self._start, self._end = (
            each and each - ago for each in (self._running, self._start, self._end)
        )
        self.completed = [each - ago for each in self.completed]
        self._crawl()

    def _crawl(self) -> None:
        while True:
            ends = self._running + self.length if self._running and self.crawling is not Crawling.STUCK else None
            if ends is not None and ends <= min(now(), self._next):
                self._stop(ends)
            elif self._next <= now():
                self._begin(self._next)
                self._next += PERIOD
            else:
                return

    def _begin(self, at: datetime) -> None:
        if self._running or self.crawling is Crawling.DISABLED:
            return
        self._running = self._start = at
        for order in self.orders.values():
            order.begins += 1
            if order.begins > 1:
                self._land(order, at)

    def _land(self, order: Order, at: datetime) -> None:
        """End what is in doubt, just before a crawl begins."""
        known = len(order.changes)
        while order.underway:
            self.pass_on(order, order.underway.pop(0), Fault.NONE)
        if order.asked_again:
            order.decide(ships=False)
        for each in order.changes[known:]:
            each.at = at

    def _stop(self, at: datetime) -> None:
        began, self._running = self._running, None
        self._failed = self.crawling is Crawling.ERROR
        if self._failed or began is None:
            return
        self._end = at
        self.completed.append(began)
        for order in self.orders.values():
            order.crawl(began)

    def calm_down(self) -> None:
        """End every request, let the warehouse decide, and show the truth; crawls come again."""
        self.crawling = Crawling.UNTOLD if self.crawling is Crawling.UNTOLD else Crawling.ENABLED
        self.fault = self.fault_of_read = Fault.NONE
        for order in self.orders.values():
            while order.underway:
                self.pass_on(order, order.underway.pop(0), Fault.NONE)
            order.decide(ships=False)
            order.show()


def _document(order: Order) -> dict[str, Any]:
    return {"id": order.id, "status": order.copy}
