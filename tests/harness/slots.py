"""The send slots of one connection as Redis issues them, seen from outside with MONITOR.

A busy machine may deliver a request late, and then two arrive in a bunch. What is reserved does not depend on the
machine: which slots there are, by Redis' clock, and that no request comes before its slot was reserved.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Self

import msgspec
from redis import Redis

from worker.cancellation.pace import interval
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from worker.dev.sandbox import World

STOP_SECONDS = 30.0
END = "the end of this log"


class Slot(msgspec.Struct, frozen=True):
    """Seconds of the epoch by Redis' clock, which on one machine is the sandbox's too."""

    send_at: float
    issued_at: float


class SlotLog:
    """Every slot that one connection's requests reserve while the `with` block lasts, at `per_second` at most."""

    def __init__(self, redis_url: str, connection_id: str, per_second: float) -> None:
        self.slots: list[Slot] = []
        self.since = 0.0  # when it began
        self._key = f"cancellations:pace:w:{connection_id}"
        self._interval = interval(per_second)
        self._next = 0.0  # the first moment that is free
        self._reserving = False
        self._redis: Any = Redis.from_url(redis_url)
        self._reserve = Pacing(self._redis, "w")._reserve.sha
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="slot-log")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(STOP_SECONDS)
        self.since = time.time()
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.echo(END)
        self._thread.join(STOP_SECONDS)
        self._redis.close()

    def _listen(self) -> None:
        with self._redis.monitor() as monitor:
            self._listening.set()
            for line in monitor.listen():
                if END in line["command"]:
                    return
                self._note(line["command"].split(), line["time"])

    def _note(self, command: list[str], now: float) -> None:
        # Three scripts move `next`: to reserve, to return what is unused, and to pause.
        match command:
            case ["EVALSHA", script, *_]:
                self._reserving = script == self._reserve
            case ["HSET", self._key, "next", microseconds]:
                self._move(int(microseconds) / 1e6, now)

    def _move(self, free_from: float, now: float) -> None:
        if self._reserving:
            # Reserved are the last moments before `free_from`, evenly spaced, and none that is past or was taken.
            count = math.ceil((free_from - max(self._next, now)) / self._interval - 1e-3)
            self.slots += [Slot(free_from - number * self._interval, now) for number in range(count, 0, -1)]
        elif free_from < self._next:
            self.slots = [slot for slot in self.slots if slot.send_at < free_from - self._interval / 2]
        self._next = free_from


def fullest_second(moments: Iterable[float]) -> int:
    """Return how many of these moments lie in the sliding second that holds the most."""
    ordered = sorted(moments)
    return max((bisect_left(ordered, start + 1.0) - number for number, start in enumerate(ordered)), default=0)


def arrivals(trackstar: World, connection_id: str) -> list[float]:
    """Return when each cancel of a connection arrived, also those that were refused."""
    orders = trackstar.orders(connection_id)
    return sorted(request.arrived for order in orders for request in order.truth.cancels)


def without_a_slot(arrived: Sequence[float], slots: Sequence[Slot]) -> list[float]:
    """Return the arrivals for which, by then, no slot had been reserved that another arrival had not used."""
    issued = sorted(slot.issued_at for slot in slots)
    return [
        moment for number, moment in enumerate(sorted(arrived)) if number >= len(issued) or moment < issued[number]
    ]


def late(arrived: Sequence[float], slots: Sequence[Slot], seconds: float) -> list[float]:
    """Return the arrivals that came more than so many seconds after a moment that was theirs.

    Each is matched with the latest slot that no later arrival needs. One that had none is late too.
    """
    moments = sorted(slot.send_at for slot in slots)
    found = []
    for came in sorted(arrived, reverse=True):
        while moments and moments[-1] > came + seconds:
            moments.pop()
        if not moments or came - moments.pop() > seconds:
            found.append(came)
    return found
