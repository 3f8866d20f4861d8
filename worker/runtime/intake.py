"""Inbox to ledger: read a batch, let it be accepted, then acknowledge and delete.

Knows the streams and when an entry is settled; what it becomes, `runtime/acceptance` knows. All of it is safe to do
twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger.notices import add_stream_repaired
from worker.runtime.acceptance import Acceptance
from worker.runtime.inbox_reader import BATCH, BLOCK_MS, TAKE_OVER_AFTER_MS, TAKE_OVER_EVERY_SECONDS, InboxReader
from worker.runtime.inboxes import Inboxes
from worker.runtime.loop import Loop
from worker.runtime.refusals import Refusals
from worker.runtime.stream_ids import StreamIds
from worker.streams import DEAD_LETTERS, EVENTS, INBOX, INBOX_AHEAD
from worker.telemetry.health import REDIS
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.inputs.entries import Entry
    from worker.telemetry.health import Vitals

__all__ = ["BATCH", "TAKE_OVER_AFTER_MS", "Intake"]

log = structlog.get_logger()

KEYS = (INBOX, INBOX_AHEAD, EVENTS, DEAD_LETTERS)


class Intake:
    """One thread that empties the inboxes into the ledger."""

    def __init__(
        self,
        redis: Redis,
        ledger: Engine,
        name: str,
        on_accepted: Callable[[set[str]], None],
        vitals: Vitals,
        metrics: Metrics | None = None,
        inboxes: Inboxes | None = None,
    ) -> None:
        self._reader = InboxReader(redis, name)
        self._stream_ids = StreamIds(redis)
        self._keys = dict.fromkeys(KEYS, "stream")
        self._refusals = Refusals(redis, "The inbox", self._keys, vitals)
        self._ledger = ledger
        self._inboxes = inboxes or Inboxes(redis, ledger)
        self._acceptance = Acceptance(ledger, self._inboxes, metrics or Metrics())
        self._on_accepted = on_accepted
        self._vitals = vitals
        self._repaired_at = -TAKE_OVER_EVERY_SECONDS
        self.loop = Loop("intake", self._tick, expected=(RedisError, SQLAlchemyError))

    def stop(self) -> None:
        """Take nothing new, and wait until what was taken is settled or left for another worker."""
        self.loop.stop(BLOCK_MS / 1000 + 5)

    def _tick(self) -> float:
        try:
            self.take()
        except ResponseError as error:
            if "NOGROUP" in str(error):
                self._reader.make_groups()
                return 0.0
            self._refusals.note(error)
            raise
        self._note_refusals()
        return 0.0

    def _note_refusals(self) -> None:
        """Name what Redis refuses of one inbox while the others are read."""
        for error in self._reader.refused.values():
            self._refusals.note(error)
        if not self._reader.refused:
            self._refusals.over()

    def take(self) -> int:
        """Take one batch: what was in hand, what is new, what was put aside. Return how many entries were settled."""
        self._refresh_inboxes()
        entries = self._reader.next()
        self._vitals.responded(REDIS)
        self._store_and_ack(entries)
        while self._reader.suspects and self.loop.running:
            entries += (alone := self._reader.take(self._reader.suspects, idle=TAKE_OVER_AFTER_MS))
            self._store_and_ack(alone)
        return len(entries)

    def _refresh_inboxes(self) -> None:
        """Every few seconds, learn which inboxes there are, and repair what is ahead."""
        if time.monotonic() - self._repaired_at < TAKE_OVER_EVERY_SECONDS:
            return
        self._inboxes.refresh()
        self._vitals.found("producers", [self._inboxes.problem] if self._inboxes.problem else [])
        for each in self._stream_ids.repair(self._inboxes.streams):
            log.error("stream.repaired", stream=each.stream, problem=each.problem)
            with self._ledger.begin() as db:
                add_stream_repaired(db, each.stream, each.problem)
        self._reader.watch(self._inboxes.to_read(self._stream_ids.aside))
        self._keys.update(dict.fromkeys((*self._inboxes.streams, *self._stream_ids.aside), "stream"))
        self._repaired_at = time.monotonic()

    def _store_and_ack(self, entries: list[Entry]) -> None:
        if not entries:
            return
        try:
            accepted = self._acceptance.take_in(entries)
        except SQLAlchemyError:
            self._reader.release(entries)
            raise
        if accepted:
            self._on_accepted({request.connection_id for request in accepted})
            time.sleep(0)  # lets the dispatcher's thread run first: an acknowledgement can wait
        # Only now: what is acknowledged is in the ledger.
        self._reader.settle(entries)
        for request in accepted:
            log.info("cancellation.requested", **request.named)
