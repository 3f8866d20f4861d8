"""The crawls of one connection: when Trackstar reads the warehouse, what it brings, and when its copy shows it.

A crawl brings the orders whose update time is newer than what the last completed one read, as they stand at its
begin, and shows them at its end. No thread runs: every look at the connection first lets happen what was due by
then, at a cost that does not grow with the time between. The caller holds the lock. Knows nothing of answers.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, get_args

from worker.dev.sandbox.options import CrawlState

if TYPE_CHECKING:
    from worker.dev.sandbox.orders import Order, State

NEVER = math.inf
# Of a period: what floating point may add to the number of periods in a length.
ROUNDING = 1e-9


@dataclass(slots=True, eq=False)
class Crawl:
    """Instants are seconds since the epoch; one that is stuck ends at `NEVER`."""

    began: float
    ends: float
    fails: bool = False
    brings: "dict[Order, State]" = field(default_factory=dict)


class Crawls:
    """Makes a connection that has just been read as a whole, in a crawl that ended a moment ago."""

    def __init__(self, now: Callable[[], float], start: float) -> None:
        self.now = now
        self.start = start
        self.frequency: float = 3600
        self.length: float = 0
        self.state: CrawlState = "enabled"
        self.touches = True
        self.completed = self.latest = Crawl(now(), now())
        self.running: Crawl | None = None
        # What the next crawl will bring.
        self.touched: set[Order] = set()
        # The orders in Trackstar's copy by their update time there.
        self.copies: list[tuple[float, int, Order]] = []
        self._due: list[tuple[float, int, Order]] = []
        # The number of the last instant at which a crawl of the schedule has begun, or was left out.
        self._tick = self._last_tick(now())

    def arrange(self, frequency: float, length: float, state: CrawlState, start: float) -> None:
        """Crawl from now on at `start` + n times `frequency`; one that is stuck is given up when it may go on."""
        if not (0 <= frequency < NEVER and 0 <= length < NEVER) or state not in get_args(CrawlState):
            raise ValueError("A crawl needs a frequency and a length in seconds, and one of the known states.")
        self.catch_up()
        self.frequency, self.length, self.state, self.start = frequency, length, state, start
        self._tick = self._last_tick(self.now())
        if self.running is not None and state == "stuck":
            self.running.ends = NEVER
        elif self.running is not None and self.running.ends == NEVER:
            self.touched.update(self.running.brings)
            self.running = None
        if self.running is not None:
            self._leave_out(self.running.ends)

    # -- following the clock

    def catch_up(self) -> None:
        """Let everything happen that was due by now; each change and each look begins with it."""
        now = self.now()
        while self._due and self._due[0][0] <= now:
            at, _, order = heappop(self._due)
            self._follow(at)
            order.apply_due(at)
        self._follow(now)

    def _follow(self, now: float) -> None:
        self._end(now)
        last = self._last_tick(now)
        while self.running is None and self.state != "disabled" and self._tick < last:
            step = max(1, self._ticks(self.length)) if self.frequency else 1
            begun = (last - self._tick - 1) // step
            # Nothing changes between two looks: after the first crawl the others bring nothing, and only the last two
            # are told of.
            if begun > 1 and (self.state == "error" or (self.state == "enabled" and not self.touched)):
                self._tick += (begun - 1) * step
            self._tick += 1
            self._begin(min(self.start + self._tick * self.frequency, now) if self.frequency else now)
            self._end(now)
        if self.running is None:
            self._tick = last

    def _last_tick(self, at: float) -> int:
        # Without a frequency each look is a crawl.
        return math.floor((at - self.start) / self.frequency) if self.frequency else self._tick + 1

    def _ticks(self, seconds: float) -> int:
        return math.ceil(seconds / self.frequency - ROUNDING)

    def _begin(self, at: float) -> None:
        ends = NEVER if self.state == "stuck" else at + (self.length if self.frequency else 0)
        crawl = Crawl(at, ends, self.state == "error", {order: order.real for order in self.touched})
        self.running = self.latest = crawl
        self.touched.clear()
        self._leave_out(ends)

    def _leave_out(self, until: float) -> None:
        # No other begins while one runs; one that would begin at its end does.
        if self.frequency and until < NEVER:
            self._tick = max(self._tick, self._ticks(until - self.start) - 1)

    def _end(self, now: float) -> None:
        crawl = self.running
        if crawl is None or crawl.ends > now:
            return
        self.running = None
        if crawl.fails:
            self.touched.update(crawl.brings)
            return
        self.completed = crawl
        for order, state in crawl.brings.items():
            order.show(state)
        crawl.brings = {}

    # -- crawls out of turn

    def force(self) -> None:
        """Begin one now, unless one runs."""
        self.catch_up()
        if self.running is None:
            self._begin(self.now())
            self._end(self.now())

    def renew(self, orders: "Iterable[Order]") -> None:
        """Show all orders as they are, at once: a whole crawl that also ends the one that runs."""
        self.catch_up()
        self.running = None
        self._tick = self._last_tick(self.now())
        self.touched.clear()
        self.completed = self.latest = Crawl(self.now(), self.now())
        for order in orders:
            order.show(order.real)

    # -- what orders tell

    def will_change(self, order: "Order", at: float) -> None:
        """Note that the warehouse acts at this instant; the order says what it does."""
        if at < NEVER:
            heappush(self._due, (at, order.number, order))

    def overtaken(self, order: "Order") -> None:
        """Note that the copy is newer than what a crawl that runs would bring."""
        if self.running is not None:
            self.running.brings.pop(order, None)

    def move(self, order: "Order", before: "State | None", after: "State") -> None:
        """Note that the copy of an order changes."""
        if before is not None:
            del self.copies[bisect_left(self.copies, (before.updated, order.number))]
        insort(self.copies, (after.updated, order.number, order))

    def forget(self) -> None:
        """Let go of all orders of the connection."""
        self.touched.clear()
        self.copies.clear()
        self._due.clear()
        if self.running is not None:
            self.running.brings.clear()
