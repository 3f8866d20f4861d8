"""How many tries each endpoint may have at once, so that none that hangs delays one that answers.

Who is known to take what comes may use all tries; who fails, or is unknown so far, has half of them together and one
each. Knows what runs; does not know rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from worker.ledger.deliveries import Due

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence, Sized

    from worker.ledger.deliveries import Lane

MAX_AT_ONCE = 32  # tries of one endpoint that answers well
QUICK_SECONDS = 1.0  # an endpoint whose answers take longer gets one event at a time

Key = tuple[str, int]


class Running(msgspec.Struct, frozen=True):
    """A try that is under way."""

    due: Due
    at: datetime
    began: float  # monotonic

    @property
    def key(self) -> Key:
        return self.due.endpoint_id, self.due.number


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Tries at once in all; and the seconds that the last one took, of each endpoint that accepted it."""

    concurrency: int
    took: dict[str, float] = msgspec.field(default_factory=dict)


class Shares:
    """What may be sent to whom in one turn."""

    def __init__(self, lanes: Mapping[str, Lane], busy: Sequence[Running], limits: Limits) -> None:
        self._failing = {each.id for each in lanes.values() if each.standing.failures}
        self._took = limits.took
        self._under_way = {each.key for each in busy}
        self._busy: dict[str, list[float]] = defaultdict(list)
        for each in busy:
            self._busy[each.due.endpoint_id].append(each.began)
        self._free = limits.concurrency - len(busy)
        # Of these, what others than those who take what comes may have.
        self._others = max(1, limits.concurrency // 2) - sum(not self._takes(each.due.endpoint_id) for each in busy)

    def _takes(self, endpoint_id: str) -> bool:
        return endpoint_id in self._took and endpoint_id not in self._failing

    def room(self, lane: Lane) -> int:
        """Return how many more tries an endpoint may have now; more than one at once only where all is quick."""
        began = self._busy.get(lane.id, [])
        late = time.monotonic() - QUICK_SECONDS
        quick = self._takes(lane.id) and self._took[lane.id] <= QUICK_SECONDS and all(each > late for each in began)
        allowed = (MAX_AT_ONCE if quick else 1) - len(began)
        return min(allowed, self._free, self._free if self._takes(lane.id) else self._others)

    def most(self, lanes: Sized) -> int:
        """Return how many deliveries of one of these endpoints are to be looked at: those under way, and its share."""
        return max(map(len, self._busy.values()), default=0) + self._share(lanes)

    def _share(self, lanes: Sized) -> int:
        return max(1, min(MAX_AT_ONCE, self._free // max(1, len(lanes))))

    def share(self, lanes: Collection[Lane], due: Iterable[Due]) -> list[Due]:
        """Choose what is sent now, those first who take what comes, and of them who has the fewest under way."""
        waiting: dict[str, list[Due]] = defaultdict(list)
        for each in due:
            if (each.endpoint_id, each.number) not in self._under_way:
                waiting[each.endpoint_id].append(each)
        chosen: list[Due] = []
        share = self._share(waiting)
        for lane in sorted(lanes, key=self._turn_of):
            taken = waiting[lane.id][: max(0, min(share, self.room(lane)))]
            chosen += taken
            self._free -= len(taken)
            self._others -= 0 if self._takes(lane.id) else len(taken)
        return chosen

    def _turn_of(self, lane: Lane) -> tuple[bool, int, int]:
        return not self._takes(lane.id), lane.standing.failures, len(self._busy.get(lane.id, []))
