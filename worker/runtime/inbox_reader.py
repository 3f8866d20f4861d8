"""How entries are read from the inboxes: bounded before they leave Redis, and those of lost readers taken over.

An entry may be of any length, and a reply that is too long kills who reads it. So the wait for an entry gets no reply
at all, and a script reads it where it lies. All inboxes are waited for, and read, in one round trip. Knows streams;
does not know what an entry holds.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import ResponseError
from redis.exceptions import NoScriptError

from worker.inputs.entries import FIELDS, KEPT_BYTES, MAX_BATCH_BYTES, MAX_ENTRY_BYTES, Entry, read_entries
from worker.runtime.inbox_script import TAKE
from worker.streams import GROUP, INBOX, forget_readers, producer_of, wait_unread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis import Redis

BATCH = 500
BLOCK_MS = 2_000  # an idle intake asks this often; a new entry wakes it at once
# An entry that its reader has not settled for this long is taken over: its reader is dead or cut off.
TAKE_OVER_AFTER_MS = 5_000
TAKE_OVER_EVERY_SECONDS = 2.0


class Inbox(msgspec.Struct, frozen=True):
    """One stream that is read."""

    stream: str
    rate: float = 0.0  # entries per second that are read, by all workers; 0: as they come
    lasting: bool = True  # whether it is made where it is lacking

    @property
    def pace_key(self) -> str:
        return f"cancellations:pace:inbox:{producer_of(self.stream) or ''}"


ONE_INBOX = (Inbox(INBOX),)


class InboxReader:
    """Reads inboxes for one reader of their groups; what it returns is settled or released by the caller."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis: Any = redis
        self._name = name
        self._take = redis.register_script(TAKE)
        self._inboxes: tuple[Inbox, ...] = ONE_INBOX
        self._not_before: dict[str, float] = {}  # of an inbox whose rate is used up, or that cannot be read
        self._looked_at = -TAKE_OVER_EVERY_SECONDS
        self._held: dict[tuple[str, bytes, bytes, int], float] = {}  # by other readers, and since when we know
        self._more = True  # entries may be left in Redis: read at once, wait for nothing
        self.suspects: tuple[Inbox, ...] = ()  # with entries in hand that are to be taken one by one
        self.refused: dict[str, ResponseError] = {}  # what Redis refuses, by stream, while others are read

    def watch(self, inboxes: Sequence[Inbox]) -> None:
        """Read these from now on; another one is read first by each look, so that none is always the last."""
        if set(inboxes) != set(self._inboxes):
            for each in set(inboxes) - set(self._inboxes):
                with suppress(ResponseError):  # what Redis refuses is noted when it is read
                    self._make_group(each)
            self._inboxes, self._more = tuple(inboxes), True
            streams = {each.stream for each in inboxes}
            self._not_before = {name: at for name, at in self._not_before.items() if name in streams}
            self.refused = {name: error for name, error in self.refused.items() if name in streams}

    def next(self) -> list[Entry]:
        """Return the next batch, waiting a short while for an entry where there is none."""
        idle = self._idle()
        if len(self._inboxes) > 1:
            self._inboxes = (*self._inboxes[1:], self._inboxes[0])
        # Includes inboxes whose rate is used up: what a dead reader had taken was counted already.
        ready = self._ready() if idle < 0 else tuple(each for each in self._inboxes if each.stream not in self.refused)
        if ready and (self._more or idle >= 0):
            entries = self.take(ready, idle=idle)
            if not entries:
                forget_readers(self._redis, [each.stream for each in self._inboxes])
            return entries
        return self._waited(ready)

    def _ready(self) -> tuple[Inbox, ...]:
        if not self._not_before:
            return self._inboxes
        now = time.monotonic()
        self._not_before = {name: at for name, at in self._not_before.items() if at > now}
        return tuple(each for each in self._inboxes if each.stream not in self._not_before)

    def _waited(self, ready: Sequence[Inbox]) -> list[Entry]:
        """Wait for an entry, a short while, and read what came: one round trip."""
        milliseconds = self._patience()
        if not ready:
            time.sleep(milliseconds / 1000)
            return []
        self._more = True  # where this fails
        streams = [each.stream for each in ready]
        words = ("XREADGROUP", "GROUP", GROUP, self._name, "COUNT", 1, "BLOCK", milliseconds, "STREAMS")
        wait: list[str | int] = [*words, *streams, *(">" for _ in streams)]
        keys = _keys(ready)
        then = ("EVALSHA", self._take.sha, len(keys), *keys, *self._args(ready, -1, woken=True))
        try:
            return self._read(ready, wait_unread(self._redis, *wait, then=then))
        except NoScriptError:
            return self.take(ready)

    def _patience(self) -> int:
        """Return the milliseconds to wait: until the next inbox may be read again, at most."""
        soonest = min(self._not_before.values(), default=float("inf")) - time.monotonic()
        return max(1, min(BLOCK_MS, int(min(soonest, BLOCK_MS) * 1000)))

    def take(self, inboxes: Sequence[Inbox] = (), *, idle: int = -1) -> list[Entry]:
        """Take one batch without waiting; `idle` ms after which others' entries are taken over, or -1."""
        self._more = True  # where this fails
        asked = inboxes or self._inboxes
        return self._read(asked, self._take(keys=_keys(asked), args=self._args(asked, idle)))

    def _args(self, inboxes: Sequence[Inbox], idle: int, *, woken: bool = False) -> list[str | int | float]:
        sizes = (BATCH, MAX_BATCH_BYTES, MAX_ENTRY_BYTES, KEPT_BYTES)
        return [GROUP, self._name, *sizes, idle, int(woken), *(each.rate for each in inboxes), *FIELDS]

    def _read(self, inboxes: Sequence[Inbox], answer: Sequence[Sequence[Any]]) -> list[Entry]:
        entries: list[Entry] = []
        more, suspects = False, []
        for inbox, (flag, *found) in zip(inboxes, answer, strict=True):
            if isinstance(flag, bytes):
                more = self._set_aside(inbox, ResponseError(flag.decode(errors="replace"))) or more
                continue
            if self.refused:
                self.refused.pop(inbox.stream, None)
            if found[0] > 0:
                self._not_before[inbox.stream] = time.monotonic() + found[0] / 1000
            if flag > 1:
                suspects.append(inbox)
            more = more or flag > 0
            entries += read_entries(found[1:], inbox.stream)
        self._more, self.suspects = more, tuple(suspects)
        return entries

    def _set_aside(self, inbox: Inbox, error: ResponseError) -> bool:
        """Leave an inbox that cannot be read alone for a moment; return whether it can be read at once."""
        if "NOGROUP" not in str(error):
            self.refused[inbox.stream] = error
        elif self._make_group(inbox):
            return True
        self._not_before[inbox.stream] = time.monotonic() + TAKE_OVER_EVERY_SECONDS
        return False

    def _idle(self) -> int:
        if time.monotonic() - self._looked_at < TAKE_OVER_EVERY_SECONDS:
            return -1
        self._looked_at = time.monotonic()
        return 0 if self._somebody_is_stuck() else TAKE_OVER_AFTER_MS

    def _somebody_is_stuck(self) -> bool:
        """Whether another reader holds an entry as it did 5 s ago by our own clock: Redis' may have been set back."""
        now = time.monotonic()
        held = {each for each in self._in_hand() if each[2] != self._name.encode()}
        self._held = {each: self._held.get(each, now) for each in held}
        return any(now - since > TAKE_OVER_AFTER_MS / 1000 for since in self._held.values())

    def _in_hand(self) -> Iterator[tuple[str, bytes, bytes, int]]:
        pipeline = self._redis.pipeline(transaction=False)
        for each in self._inboxes:
            pipeline.xpending_range(each.stream, GROUP, "-", "+", BATCH)
        answers = pipeline.execute(raise_on_error=len(self._inboxes) == 1)
        for inbox, rows in zip(self._inboxes, answers, strict=True):
            for row in rows if isinstance(rows, list) else ():
                yield inbox.stream, row["message_id"], row["consumer"], row["times_delivered"]

    def settle(self, entries: Sequence[Entry]) -> None:
        """Acknowledge and delete: for what is in the ledger."""
        pipeline = self._redis.pipeline(transaction=True)
        for stream, ids in _by_stream(entries):
            pipeline.xack(stream, GROUP, *ids)
            pipeline.xdel(stream, *ids)
        pipeline.execute()

    def release(self, entries: Sequence[Entry]) -> None:
        """Note that these did their reader no harm: it could not store them."""
        for stream, ids in _by_stream(entries):
            self._redis.xclaim(stream, GROUP, self._name, 0, ids, retrycount=0, justid=True)

    def make_groups(self) -> None:
        """Make each stream and its group where they are lacking."""
        for each in self._inboxes:
            self._make_group(each)

    def _make_group(self, inbox: Inbox) -> bool:
        """Make the group; return whether the stream is there, which is made only where it is to last."""
        try:
            self._redis.xgroup_create(inbox.stream, GROUP, id="0", mkstream=inbox.lasting)
        except ResponseError as error:
            if "requires the key to exist" in str(error):
                return False
            if "BUSYGROUP" not in str(error):
                raise
        return True


def _keys(inboxes: Sequence[Inbox]) -> list[str]:
    return [key for each in inboxes for key in (each.stream, each.pace_key)]


def _by_stream(entries: Sequence[Entry]) -> Iterable[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.stream, []).append(entry.id)
    return found.items()
