"""A thousand connections, a day, in seconds: the pure rules together, by a simulated clock.

One dumps 20,000 cancels on a Monday morning, another's warehouse is down for three hours with 50,000 waiting.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections import defaultdict
from typing import Any

from worker.cancellation.outage import Tally, is_down, seconds_to_probe
from worker.cancellation.pace import LOOKAHEAD_SECONDS, reserve

HOUR, DAY, RATE = 3600.0, 86_400.0, 50.0
FLOOD, DOWN = "c-flood", "c-down"
OUTAGE = (12 * HOUR, 15 * HOUR)


class Connection:
    """One connection's backlog, send slots and hold, as the ledger and Redis keep them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.backlog: list[tuple[float, float]] = []  # (order of turn, asked at)
        self.free_from = 0.0
        self.held_at: float | None = None
        self.recent = Tally(good=0, bad=0)
        self.waits: list[float] = []
        self.calls: list[float] = []
        self.due = False

    def send(self, now: float) -> float | None:
        """Send what may be sent at this moment; return when to look again, None when there is nothing left."""
        if self.held_at is not None:
            return self._probe(now)
        slots = reserve(self.free_from, now, RATE, len(self.backlog))
        self.free_from = slots.end if slots.count else self.free_from
        for number in range(slots.count):
            self._call(slots.send_at(number))
            if self.held_at is not None:
                return now + seconds_to_probe(0)
        return max(now + LOOKAHEAD_SECONDS / 2, self.free_from - LOOKAHEAD_SECONDS / 2) if self.backlog else None

    def _probe(self, now: float) -> float:
        self.free_from = reserve(self.free_from, now, RATE, 1).end  # a probe takes a slot as any request
        self._call(now)
        if self.held_at is None:
            return now
        return now + seconds_to_probe(now - self.held_at)

    def _call(self, at: float) -> None:
        self.calls.append(at)
        failed = self.name == DOWN and OUTAGE[0] <= at < OUTAGE[1]
        self.recent = Tally(self.recent.good + (not failed), self.recent.bad + failed) if failed else Tally(0, 0)
        if failed and self.held_at is None and is_down(self.recent):
            self.held_at = at
        if not failed:
            self.held_at = None
            _, asked = heapq.heappop(self.backlog)
            self.waits.append(at - asked)


def a_day(seed: int) -> dict[str, Connection]:
    """Let a day pass: a few cancels of every shop, the flood at nine, the outage at noon."""
    dice = random.Random(seed)
    names = [f"c-{number}" for number in range(998)] + [FLOOD, DOWN]
    shops = {name: Connection(name) for name in names}
    arrivals = [(dice.uniform(0, DAY), name) for name in names for _ in range(20)]
    arrivals += [(9 * HOUR, FLOOD)] * 20_000
    arrivals += [(dice.uniform(OUTAGE[0], OUTAGE[1]), DOWN) for _ in range(50_000)]
    happenings: list[tuple[float, int, str, str]] = [(at, n, "job", name) for n, (at, name) in enumerate(arrivals)]
    heapq.heapify(happenings)
    number = len(arrivals)
    while happenings:
        now, _, kind, name = heapq.heappop(happenings)
        shop = shops[name]
        if kind == "job":
            heapq.heappush(shop.backlog, (now, now))
            if shop.due:
                continue
        again = shop.send(now)
        shop.due = again is not None
        if again is not None:
            number += 1
            heapq.heappush(happenings, (again, number, "look", name))
    return shops


def fullest_second(calls: list[float]) -> int:
    calls = sorted(calls)
    return max((bisect_left(calls, at + 1.0) - n for n, at in enumerate(calls)), default=0)


def test_a_day_of_a_thousand_connections_keeps_every_promise_of_pace_and_turns() -> None:
    shops = a_day(seed=4)
    waits: dict[str, Any] = defaultdict(list)
    for shop in shops.values():
        waits["others" if shop.name not in {FLOOD, DOWN} else shop.name] += shop.waits

    # Everything was sent, and no second of any token saw more than its limit.
    assert all(not shop.backlog for shop in shops.values())
    assert 998 * 20 + 20_020 + 50_020 == sum(len(shop.waits) for shop in shops.values())
    assert max(fullest_second(shop.calls) for shop in shops.values()) <= RATE
    # The flood uses what it may, and nobody else notices it.
    assert max(waits[FLOOD]) < 20_000 / (RATE * 0.97)
    assert max(waits["others"]) < LOOKAHEAD_SECONDS
    # An outage of three hours costs some two hundred calls, and then all goes out at the pace.
    down = shops[DOWN]
    during = [at for at in down.calls if OUTAGE[0] <= at < OUTAGE[1]]
    assert len(during) < 400
    assert max(down.waits) < OUTAGE[1] - OUTAGE[0] + 60 + 50_020 / (RATE * 0.97)
