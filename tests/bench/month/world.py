"""The warehouse, its people, and Trackstar's copy of it, on virtual time. Knows no rule of the worker.

What issue 13 takes for granted holds here, and no more: a request that is in doubt lands before the second crawl after
it begins, and one crawl may miss a change that does not touch its order's update time. A cancel that was accepted may
be applied days later, or never.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from worker.cancellation.freshness import CrawlStatus, Schedule, ahead_of

if TYPE_CHECKING:
    from random import Random

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
DAYS = 30.0
END = DAYS * DAY
NEVER = math.inf


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def seconds_of(instant: datetime) -> float:
    return (instant - EPOCH).total_seconds()


class Timeline:
    """What happens next."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def put(self, when: float, what: Callable[[], None]) -> None:
        if when <= END:
            heapq.heappush(self._heap, (max(when, self.now), next(self._numbers), what))

    def run(self) -> None:
        while self._heap:
            self.now, _, what = heapq.heappop(self._heap)
            what()


class Change:
    """What became of an order in the warehouse, and how Trackstar comes to know of it."""

    __slots__ = ("at", "missed", "state", "touches")

    def __init__(self, at: float, state: str, *, touches: bool, missed: bool) -> None:
        self.at = at
        self.state = state
        self.touches = touches  # the order's update time
        self.missed = missed  # by the first crawl that could bring it


class Order:
    """One order: what is true, and what the copy shows."""

    def __init__(self, name: str, created: float) -> None:
        self.id = name
        self.created = created
        self.changes: list[Change] = []  # without the first, to open
        self.uncopied: list[Change] = []
        self.copied: list[tuple[float, str]] = []  # when the copy began to show what
        self.updated = created  # its update time in the copy
        self.cancelled_by_us = NEVER
        self.late: float | None = None  # when the warehouse applies a cancel that it has taken
        self.in_doubt_since: float | None = None  # nobody knows that it has taken it
        self.begins = 0  # of crawls since then

    @property
    def real(self) -> str:
        return self.changes[-1].state if self.changes else "open"

    @property
    def copy(self) -> str | None:
        return self.copied[-1][1] if self.copied else None

    def real_at(self, when: float) -> str:
        return next((each.state for each in reversed(self.changes) if each.at <= when), "open")

    def was_cancelled(self, by: float) -> bool:
        """Whether it had been cancelled by then; goods that leave after that contradict it."""
        return any(each.state == "cancelled" and each.at <= by for each in self.changes)


class Trouble:
    """A time in which crawls do not do their work."""

    def __init__(self, begin: float, end: float, kind: str) -> None:
        self.begin = begin
        self.end = end
        self.kind = kind


class Shop:
    """One connection: its warehouse and its crawls."""

    def __init__(self, dice: Random, timeline: Timeline) -> None:
        self.dice = dice
        self.timeline = timeline
        self.orders: dict[str, Order] = {}
        self.told = dice.random() >= 0.03  # whether Trackstar tells of its crawls
        self.forced = dice.random() >= 0.03  # whether it crawls on request
        self.period = HOUR if not self.told else dice.choice([HOUR] * 8 + [2 * HOUR, 4 * HOUR])
        self.usual = dice.choice([20.0, 30.0, 40.0, 50.0, 50.0, 180.0, 300.0, 480.0])  # seconds of a crawl
        self.misses = self.told and dice.random() < 0.2
        self.troubles = self._draw_troubles()
        self._keeps_its_clock = dice.random() < 0.5  # whatever is forced
        self._to_the_second = dice.random() < 0.5
        self._ends_what_fails = dice.random() < 0.5
        self._skew, self._drift = dice.uniform(-90, 90), dice.uniform(-1, 1) / DAY
        self._churn = dice.choice([10, 50, 400, 1_500])  # orders of others that change in an hour
        self._start = self._end = None  # type: float | None
        self._status = CrawlStatus.ENABLED
        self._running = 0  # the number of the crawl that runs
        self._crawls = 0
        self._changing: set[Order] = set()
        self._taken: set[Order] = set()
        self.completed: list[tuple[float, float]] = []
        self.on_schedule: Callable[[], None] = lambda: None
        timeline.put(dice.uniform(0, self.period), self._by_the_clock)
        for trouble in self.troubles:
            timeline.put(trouble.begin, self._enter)
            timeline.put(trouble.end, self._leave)

    def _draw_troubles(self) -> list[Trouble]:
        found: list[Trouble] = []
        if self.told and self.dice.random() < 0.15:
            begin = self.dice.uniform(0, END)
            kind = self.dice.choice(["stuck", "disabled", "error"])
            length = self.dice.uniform(2 * HOUR, 12 * HOUR) if kind == "stuck" else self.dice.uniform(HOUR, 4 * DAY)
            found.append(Trouble(begin, begin + length, kind))
        return found

    def trouble(self, begin: float, end: float) -> bool:
        """Whether crawls did not do their work at some time between, or shortly before."""
        return any(each.begin <= end and begin <= each.end + 2 * self.period for each in self.troubles)

    def _trouble_now(self) -> str | None:
        now = self.timeline.now
        return next((each.kind for each in self.troubles if each.begin <= now < each.end), None)

    # -- the warehouse

    def change(self, order: Order, state: str, *, touches: bool = True, missed: bool = False) -> None:
        """Let an order become cancelled or shipped, which is for ever but for goods that leave after all."""
        if order.real in {"shipped", state}:
            return
        change = Change(self.timeline.now, state, touches=touches, missed=missed)
        order.changes.append(change)
        order.uncopied.append(change)
        self._changing.add(order)

    def somebody(self, order: Order, state: str) -> None:
        """Let somebody else do it: in some warehouses a crawl misses that. A shipment touches its order always."""
        missed = self.misses and self.dice.random() < 0.5
        self.change(order, state, touches=state == "shipped" or not missed, missed=missed)

    def create(self, name: str) -> Order:
        order = self.orders[name] = Order(name, self.timeline.now)
        self._changing.add(order)
        return order

    def take(self, order: Order, seconds: float, *, in_doubt: bool) -> None:
        """Take a cancel that is applied later. In doubt: at the latest before the second crawl from now begins."""
        order.late, order.begins = self.timeline.now + seconds, 0
        order.in_doubt_since = self.timeline.now if in_doubt else None
        self._taken.add(order)
        self.timeline.put(order.late, lambda: self._apply(order))

    def _apply(self, order: Order) -> None:
        if order in self._taken:
            self._taken.discard(order)
            if order.real == "open":
                order.cancelled_by_us = self.timeline.now
                self.change(order, "cancelled")

    def cancel_now(self, order: Order, *, shown: bool) -> None:
        """Apply our cancel; after a success of our own the copy is fresh at once."""
        order.cancelled_by_us = self.timeline.now
        self.change(order, "cancelled")
        if shown:
            order.uncopied.clear()
            order.copied.append((self.timeline.now, "cancelled"))
            order.updated = self.timeline.now

    # -- crawls

    def _by_the_clock(self) -> None:
        self._next_by_the_clock()
        self._begin()

    _clock = 0

    def _next_by_the_clock(self) -> None:
        self._clock += 1
        number = self._clock
        self.timeline.put(self.timeline.now + self.period, lambda: self._clock == number and self._by_the_clock())

    def force(self) -> bool:
        """Crawl on request; False where that is refused."""
        if not self.forced or self._trouble_now() == "disabled":
            return False
        if not self._keeps_its_clock and not self._running:
            self._next_by_the_clock()
        self._begin()
        return True

    def _begin(self) -> None:
        trouble = self._trouble_now()
        if self._running or trouble == "disabled":
            return
        self._crawls += 1
        self._running = number = self._crawls
        self._start, self._status = self.timeline.now, CrawlStatus.IN_PROGRESS
        for order in sorted(self._taken, key=lambda each: each.id):
            order.begins += 1
            if order.in_doubt_since is not None and order.begins >= 2:
                self._apply(order)
        length = self.usual * self.dice.uniform(0.6, 1.1)
        if trouble != "stuck":
            begin = self.timeline.now
            self.timeline.put(begin + length, lambda: self._end_of(number, begin, fails=trouble == "error"))
        self.on_schedule()

    def _end_of(self, number: int, begin: float, *, fails: bool) -> None:
        if self._running != number:
            return
        self._running = 0
        if fails:
            self._status = CrawlStatus.ERROR
            self._end = self.timeline.now if self._ends_what_fails else self._end
        else:
            disabled = self._trouble_now() == "disabled"
            self._status = CrawlStatus.DISABLED if disabled else CrawlStatus.ENABLED
            self._end = self.timeline.now
            self._copy(begin)
            self.completed.append((begin, self.timeline.now))
        self.on_schedule()

    def _copy(self, begin: float) -> None:
        """Bring all that changed before the crawl began, and some of what changed while it ran."""
        now = self.timeline.now
        for order in sorted(self._changing, key=lambda each: each.id):
            reads = self.dice.uniform(begin, now)
            if order.created > reads:
                continue
            seen = [each for each in order.uncopied if each.at <= reads]
            if any(each.missed for each in seen):
                for each in seen:
                    each.missed = False  # it is the next crawl's
                continue
            if not order.copied or seen:
                order.copied.append((now, seen[-1].state if seen else "open"))
                order.updated = max([order.updated, *(each.at for each in seen if each.touches)])
            order.uncopied = [each for each in order.uncopied if each.at > reads]
            if not order.uncopied:
                self._changing.discard(order)

    def _enter(self) -> None:
        if self._trouble_now() == "disabled" and not self._running:
            self._status = CrawlStatus.DISABLED
            self.on_schedule()

    def _leave(self) -> None:
        if self._status is CrawlStatus.DISABLED:
            self._status = CrawlStatus.ENABLED
            self.on_schedule()
        elif (
            self._running and self.timeline.now - (self._start or 0.0) > 2 * self.usual
        ):  # stuck: given up, begun again
            self._running = 0
            self._begin()

    # -- what Trackstar tells

    def schedule(self) -> Schedule | None:
        """Return what Trackstar says of its crawls, in the ledger's time as far as its `Date` allows."""
        if not self.told:
            return None
        now = self.timeline.now
        date = at(math.floor(now + self._ahead(now)))
        said = Schedule(self._told(self._start), self._told(self._end), self.period, self._status)
        return said.in_ledger_time(ahead_of(date, at(now - 0.3)))

    def _ahead(self, when: float) -> float:
        return self._skew + self._drift * when

    def _told(self, when: float | None) -> datetime | None:
        if when is None:
            return None
        own = when + self._ahead(when)
        return at(math.floor(own) if self._to_the_second else own)

    def changed_since(self, instant: float) -> tuple[list[Order], int]:
        """Return what the incremental list shows of the known orders, and how many pages all of it has."""
        hours = max(0.0, self.timeline.now - instant) / HOUR
        pages = 1 + int(self._churn * hours) // 1_000
        return [order for order in self.orders.values() if order.copied and order.updated >= instant], pages
