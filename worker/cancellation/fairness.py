"""Whose turn it is: within a connection, and between connections for the threads of one worker. Numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

# The order of turn within a connection: by rank, then the earliest `send_by`, then first come. SQL takes it from here.
PRIORITY_RANK = {"urgent": 0, "normal": 1, "bulk": 2}


def turn_key(priority: str, send_by: datetime | None, requested_at: datetime) -> tuple[int, bool, float, datetime]:
    """Return what cancellations of one connection are sorted by; who sorts first goes first."""
    return PRIORITY_RANK[priority], send_by is None, send_by.timestamp() if send_by else 0.0, requested_at


# The last sixteenth of the threads is for connections that have nothing in flight: a slow warehouse takes all others.
# Of many threads eight are enough, for some of the others come free all the time.
RESERVE_FRACTION, RESERVE_MAX = 16, 8


def reserve_size(capacity: int) -> int:
    """Return how many threads are kept free for a connection that has none in flight."""
    return min(max(1, capacity // RESERVE_FRACTION), RESERVE_MAX) if capacity > 1 else 0


def fair_limit(own: int, free: int, capacity: int, contenders: int) -> int:
    """Return how many more threads a connection may take now.

    `own` are in its hands, `free` in nobody's; `contenders` are the connections that have something in flight or to
    send, this one included. While others contend a connection stays within its even share; alone, it may borrow all
    but the reserve. One that has nothing in flight may always have one, from the reserve.
    """
    open_to_all = max(0, free - reserve_size(capacity))
    fair = max(1, (capacity - reserve_size(capacity)) // max(1, contenders))
    more = open_to_all if contenders <= 1 else min(open_to_all, max(0, fair - own))
    return max(more, 1) if own == 0 and free > 0 else more


def round_robin(threads: int, wants: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Give `threads` one by one, in turn from the first connection on, to each at most as many as it wants."""
    given: dict[str, int] = {}
    rest = [(name, want) for name, want in wants if want > 0]
    while threads > 0 and rest:
        for name, _ in rest[:threads]:
            given[name] = given.get(name, 0) + 1
        threads -= min(threads, len(rest))
        rest = [(name, want) for name, want in rest if given.get(name, 0) < want]
    return given


# Every eighth request of a connection goes to whoever has waited longest, whatever its priority: nothing starves.
AGING_EVERY = 8
# In batches, for to find them costs a statement; an urgent cancel waits for one batch at most.
AGING_BATCH = 16


def aging_quota(sent: int, by_age: int, count: int) -> int:
    """Return how many of the next `count` requests go by waiting time and not by priority.

    `sent` went before, `by_age` of them to whoever had waited longest.
    """
    owed = (sent + count) // AGING_EVERY - by_age
    return min(owed, count) if owed >= AGING_BATCH else 0


def round_robin_order(names: Iterable[str], after: str | None) -> list[str]:
    """Return the names in order, beginning behind the one that was served last."""
    known = sorted(names)
    if after is None:
        return known
    return [name for name in known if name > after] + [name for name in known if name <= after]
