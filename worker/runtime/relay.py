"""Outcome events from the outbox to the stream `cancellations:events`, at least once.

What this process has just written is handed over in memory; what it could not publish in time, or what nobody was
there to publish, is found in the outbox.

Knows rows and the stream; does not know what the events mean.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import structlog
from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger.database import autocommit
from worker.ledger.outbox import mark_published, take_unpublished
from worker.runtime.loop import NEVER, Loop
from worker.streams import EVENTS, EVENTS_KEPT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.ledger.outbox import Event

log = structlog.get_logger()

BATCH = 500
MAX_HANDED = 20_000  # beyond that they are left to the outbox
# One event alone is marked at once; under load marks gather so long, far below the lease of an event.
MARK_SECONDS, MAX_MARKED = 0.5, 2_000


class Relay:
    """One thread that publishes what it is handed, and empties the outbox whenever it is woken."""

    def __init__(self, redis: Redis, ledger: Engine) -> None:
        self._redis = redis
        self._ledger = ledger
        self._handed: deque[Event] = deque()
        self._published: list[int] = []  # ids that the ledger still calls unpublished
        self._marked_at = 0.0
        self._look = threading.Event()
        self.loop = Loop("relay", self._tick, expected=(RedisError, SQLAlchemyError, OSError), drain=self._drain)

    def put(self, events: Iterable[Event]) -> None:
        """Publish these, which are leased to this process."""
        if len(self._handed) < MAX_HANDED:
            self._handed.extend(events)
        self.loop.wake()

    def wake(self) -> None:
        """Look into the outbox."""
        self._look.set()
        self.loop.wake()

    def _tick(self) -> float:
        self._publish_all()
        if self._published and (
            len(self._published) >= MAX_MARKED or time.monotonic() - self._marked_at >= MARK_SECONDS
        ):
            self._mark_published()
        return MARK_SECONDS if self._published else NEVER

    def _drain(self) -> None:
        self._publish_all()
        self._mark_published()

    def _publish_all(self) -> None:
        try:
            while self._handed:
                self._publish([self._handed.popleft() for _ in range(min(BATCH, len(self._handed)))])
            if self._look.is_set():
                self._mark_published()  # or they would be found once more
            while self._look.is_set():
                self._look.clear()  # before looking: what is announced meanwhile is looked for again
                with self._ledger.begin() as db:
                    events = take_unpublished(db, BATCH)
                self._publish(events)
                if len(events) == BATCH:
                    self._look.set()
        except Exception:
            self._look.set()  # what was taken off is in the outbox still
            raise

    def _publish(self, events: list[Event]) -> None:
        if events:
            self._add_to_stream(events)
            self._published.extend(event.id for event in events)

    def _mark_published(self) -> None:
        """Note in the ledger what is on the stream, many at once; after a crash before that it is published again."""
        if self._published:
            with autocommit(self._ledger) as db:
                mark_published(db, self._published)
            self._published.clear()
            self._marked_at = time.monotonic()

    def _add_to_stream(self, events: list[Event]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for event in events:
            pipeline.xadd(
                EVENTS,
                {"type": event.type, "event": event.payload, "event_id": event.id},
                maxlen=EVENTS_KEPT,
                approximate=True,
            )
        try:
            pipeline.execute()
        except ResponseError as error:
            if "WRONGTYPE" in str(error) and not self.loop.away:  # told once: it is tried again and again
                log.error("relay.wrong_type", key=EVENTS)  # noqa: TRY400 - the error's text holds an event
            raise
