"""When a connection stands still: nothing of it goes out though it is due and may be sent. Ids and numbers only.

Progress is seen at the head of its queue: the row whose turn it is must leave. Where a pause of its pace explains that
it does not, or that all threads are at work, nothing stands still. Knows no clock, no ledger, no Redis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

STANDSTILL_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 60.0  # a longer one must be a hold, which people see
SHORT_SECONDS = 1.0  # the next send slot of a busy connection is always a little ahead
MAX_WATCHED = 1000  # connections; with more of them the rest is watched as others move
# Rows of one connection. More urgent ones may come before the first again and again, while nothing leaves.
MAX_HEADS = 4
SLOWEST_RATE = 0.01  # requests per second; a lower one explains nothing more


class Unsent(msgspec.Struct, frozen=True):
    """A row that still waits to be sent, or is being sent, on a connection without a hold."""

    claims: int
    in_flight: bool


class Head(msgspec.Struct, frozen=True):
    """The row of a connection without a hold whose turn it is; `rate` in requests per second, None for the setting."""

    connection_id: str
    record_id: str
    rate: float | None = None


class Unmoved(msgspec.Struct, frozen=True):
    """A connection whose head has not left: for how long, and how long of it a thread was free for it."""

    head: Head
    seconds: float
    free_seconds: float


class _Queue(msgspec.Struct):
    first: Head
    since: float
    free_since: float
    heads: dict[str, int | None]  # the rows that were seen at the head; their claims then, from the next poll on


class Heads:
    """The heads of the connections that have something to send, from poll to poll."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}

    @property
    def record_ids(self) -> list[str]:
        """The rows whose state is to be looked up before `observe`."""
        return [record_id for queue in self._queues.values() for record_id in queue.heads]

    def observe(
        self,
        now: float,
        heads: Iterable[Head],
        unsent: Mapping[str, Unsent],
        at_work: Callable[[str], bool],
    ) -> None:
        """Compare with the last poll: the heads now, and which of `record_ids` are still unsent.

        `at_work` says whether this worker is busy for a connection, or has no thread for it.
        """
        for name, queue in list(self._queues.items()):
            if any(record_id not in unsent for record_id in queue.heads):
                del self._queues[name]  # one has left: it moves
                continue
            for record_id, claims in queue.heads.items():
                if claims is None:
                    queue.heads[record_id] = unsent[record_id].claims - unsent[record_id].in_flight
            if at_work(name) and not _bounces(queue, unsent):
                queue.free_since = now
        for head in heads:
            if head.connection_id in self._queues or len(self._queues) < MAX_WATCHED:
                queue = self._queues.setdefault(head.connection_id, _Queue(head, now, now, {}))
                _see(queue, head.record_id)

    def unmoved(self, now: float, unsent: Mapping[str, Unsent]) -> list[Unmoved]:
        """Return the connections whose head has not left for longer than a standstill, the longest first."""
        found = [
            Unmoved(queue.first, now - queue.since, now - queue.free_since)
            for queue in self._queues.values()
            if now - queue.since > STANDSTILL_SECONDS and not _is_being_sent(queue, unsent)
        ]
        return sorted(found, key=lambda each: -each.seconds)


def _see(queue: _Queue, record_id: str) -> None:
    queue.heads.setdefault(record_id, None)
    if len(queue.heads) > MAX_HEADS:
        del queue.heads[next(iter(queue.heads))]


def _claims_since(queue: _Queue, record_id: str, state: Unsent) -> int:
    """Return how often a row was claimed since it was first seen at the head, where it was pending."""
    first = queue.heads[record_id]
    return 0 if first is None else state.claims - first


def _is_being_sent(queue: _Queue, unsent: Mapping[str, Unsent]) -> bool:
    """Whether a head is in flight for the first time: its request takes as long as it takes."""
    known = [(record_id, unsent[record_id]) for record_id in queue.heads if record_id in unsent]
    return any(state.in_flight and _claims_since(queue, record_id, state) == 1 for record_id, state in known)


def _bounces(queue: _Queue, unsent: Mapping[str, Unsent]) -> bool:
    """Whether a head is claimed and given back again and again."""
    return any(_claims_since(queue, record_id, unsent[record_id]) > 1 for record_id in queue.heads)


def is_standing(unmoved: Unmoved, rate: float, ahead: float | None) -> bool:
    """Whether neither the pace nor the threads explain it.

    `rate` in requests per second; `ahead` are the seconds to its next send slot, None where nobody can read them.
    """
    if ahead is None or ahead > LONGEST_PAUSE_SECONDS + SHORT_SECONDS:
        return True
    pause = LONGEST_PAUSE_SECONDS if ahead > SHORT_SECONDS else 0.0
    return unmoved.free_seconds > STANDSTILL_SECONDS + pause + 1 / max(rate, SLOWEST_RATE)
