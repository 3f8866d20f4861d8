"""Other people in the warehouse, and crawls that come late, fail, or are not told of: what a soak's world does.

Strikes no part of the deployment. What it breaks it has mended when it ends; what became of orders stays.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from worker.dev.sandbox import World

# Shares of what somebody does with an order, most of them just when it is cancelled by us too.
DEEDS = {"cancel": 4, "ship": 2, "ship what was cancelled": 1, "edit": 3}
PAUSE_SECONDS = 0.25
MISHAP_SECONDS = (20.0, 70.0)  # workers ask every half minute
REST_SECONDS = (10.0, 40.0)
WELL: dict[str, Any] = {"crawl_state": "enabled", "crawl_length": 1.0, "sync_schedules": True, "refuse_sync": None}
MISHAPS: dict[str, dict[str, Any]] = {
    "crawls stuck": {"crawl_state": "stuck"},
    "crawls disabled": {"crawl_state": "disabled"},
    "crawls in error": {"crawl_state": "error"},
    "crawls slow": {"crawl_length": 25.0},
    "crawls not told of": {"sync_schedules": False},
    "crawls not forced": {"refuse_sync": 404},
}


class People:
    """Everybody but us, at one connection's orders, for as long as the `with` block lasts."""

    def __init__(self, world: World, connection_id: str, orders: Sequence[str], dice: Random) -> None:
        self.struck = Counter[str]()
        self._world = world
        self._connection_id = connection_id
        self._orders = orders  # grows meanwhile
        self._dice = dice
        self._stop = threading.Event()
        self._mishap = ""
        self._changes_at = time.monotonic() + dice.uniform(*REST_SECONDS)
        self._thread = threading.Thread(target=self._run, name="people")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._world.connect(self._connection_id, **WELL)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            if self._orders:
                self._do_something()
            if time.monotonic() > self._changes_at:
                self._break_or_mend()

    def _do_something(self) -> None:
        (deed,) = self._dice.choices(list(DEEDS), list(DEEDS.values()))
        recent = self._dice.choice([self._orders[-1], self._dice.choice(self._orders)])
        place, world = (self._connection_id, recent), self._world
        status = world.order(*place).truth.status
        if deed == "cancel" and world.cancel_by_somebody(*place):
            self.struck["somebody cancels"] += 1
        elif (deed, status) in {("ship", "open"), ("ship what was cancelled", "cancelled")}:
            self.struck[f"somebody ships what is {status}"] += 1
            world.ship(*place)
        elif deed == "edit":
            self.struck["somebody edits"] += 1
            world.edit(*place)

    def _break_or_mend(self) -> None:
        self._mishap = "" if self._mishap else self._dice.choice(list(MISHAPS))
        self.struck[self._mishap] += bool(self._mishap)
        self._world.connect(self._connection_id, **(WELL | MISHAPS.get(self._mishap, {})))
        self._changes_at = time.monotonic() + self._dice.uniform(*(MISHAP_SECONDS if self._mishap else REST_SECONDS))
