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

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.inbox import EVENTS, EVENTS_KEPT
from worker.ledger.engine import one_statement
from worker.ledger.outbox import Event, mark_published, take_unpublished
from worker.observability import report_bug
from worker.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis
    from sqlalchemy import Engine

BATCH = 500
MOST_HANDED = 20_000  # beyond that they are left to the outbox
# One event alone is marked at once; under load marks gather so long, far below the lease of an event.
MARK_SECONDS, MOST_MARKED = 0.5, 2_000


class Publisher:
    """One thread that publishes what it is given, and empties the outbox whenever it is woken."""

    def __init__(self, redis: Redis, ledger: Engine) -> None:
        self._redis = redis
        self._ledger = ledger
        self._handed: deque[Event] = deque()
        self._published: list[int] = []  # ids that the ledger still calls unpublished
        self._marked_at = 0.0
        self._look = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def put(self, events: Iterable[Event]) -> None:
        """Publish these, which are leased to this process."""
        if len(self._handed) < MOST_HANDED:
            self._handed.extend(events)
        self._wake.set()

    def wake(self) -> None:
        """Look into the outbox."""
        self._look.set()
        self._wake.set()

    def stop(self) -> None:
        """Publish what is there, once more, and end. What is left stays in the outbox."""
        self._stop.set()
        self._wake.set()
        self.thread.join(10)

    def _run(self) -> None:
        pause = Pause(self._stop)
        while True:
            self._wake.wait(MARK_SECONDS if self._published else None)
            self._wake.clear()
            last_round = self._stop.is_set()
            try:
                self._publish_all()
                self._mark_published(wait=not last_round)
                pause.over("publisher.back")
            except (RedisError, SQLAlchemyError, OSError) as error:
                pause.wait("publisher.part_away", error)
                self.wake()
            except Exception as error:  # noqa: BLE001 - a bug may not end it: the events stay in the outbox
                report_bug("publisher.failed")
                pause.wait("publisher.failed", error)
            if last_round:
                return

    def _publish_all(self) -> None:
        while self._handed:
            self._publish([self._handed.popleft() for _ in range(min(BATCH, len(self._handed)))])
        while self._look.is_set():
            self._look.clear()  # before looking: what is announced meanwhile is looked for again
            with self._ledger.begin() as connection:
                events = take_unpublished(connection, BATCH)
            self._publish(events)
            if len(events) == BATCH:
                self._look.set()

    def _publish(self, events: list[Event]) -> None:
        if events:
            self._add_to_stream(events)
            self._published.extend(event.id for event in events)
            self._mark_published()

    def _mark_published(self, *, wait: bool = True) -> None:
        """Note in the ledger what is on the stream, many at once; after a crash before that it is published again."""
        if wait and len(self._published) < MOST_MARKED and time.monotonic() - self._marked_at < MARK_SECONDS:
            return
        if self._published:
            with one_statement(self._ledger) as connection:
                mark_published(connection, self._published)
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
        pipeline.execute()
