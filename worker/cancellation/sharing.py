"""Whose turn it is: how the request threads of one worker are divided between connections. Numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# The last sixteenth of the threads is for connections that have nothing in flight: a slow warehouse takes all others.
# Of many threads eight are enough, for some of the others come free all the time.
RESERVED_PART, RESERVED_MOST = 16, 8


def reserved(capacity: int) -> int:
    """Return how many threads are kept free for a connection that has none in flight."""
    return min(max(1, capacity // RESERVED_PART), RESERVED_MOST) if capacity > 1 else 0


def most_for(own: int, free: int, capacity: int, contenders: int) -> int:
    """Return how many more threads a connection may take now.

    `own` are in its hands, `free` in nobody's; `contenders` are the connections that have something in flight or to
    send, this one included. While others contend a connection stays within its even share; alone, it may borrow all
    but the reserve. One that has nothing in flight may always have one, from the reserve.
    """
    open_to_all = max(0, free - reserved(capacity))
    fair = max(1, (capacity - reserved(capacity)) // max(1, contenders))
    more = open_to_all if contenders <= 1 else min(open_to_all, max(0, fair - own))
    return max(more, 1) if own == 0 and free > 0 else more


def deal(room: int, wants: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Deal `room` seats one by one, in turn from the first on, to at most as many as each wants."""
    dealt: dict[str, int] = {}
    rest = [(name, want) for name, want in wants if want > 0]
    while room > 0 and rest:
        for name, _ in rest[:room]:
            dealt[name] = dealt.get(name, 0) + 1
        room -= min(room, len(rest))
        rest = [(name, want) for name, want in rest if dealt.get(name, 0) < want]
    return dealt


# Every eighth permit of a connection goes to whoever has waited longest, whatever its priority: nothing starves.
LONGEST_WAITING_EVERY = 8
# They are taken in lumps, for to find them costs a statement; an urgent cancel waits for one lump at most.
LUMP = 16


def for_the_longest_waiting(sent: int, by_age: int, count: int) -> int:
    """Return how many of the next `count` permits go by waiting time and not by priority.

    `sent` permits went before, `by_age` of them to whoever had waited longest.
    """
    owed = (sent + count) // LONGEST_WAITING_EVERY - by_age
    return min(owed, count) if owed >= LUMP else 0


def rotated(names: Iterable[str], after: str | None) -> list[str]:
    """Return the names in order, beginning behind the one that was served last."""
    known = sorted(names)
    if after is None:
        return known
    return [name for name in known if name > after] + [name for name in known if name <= after]
