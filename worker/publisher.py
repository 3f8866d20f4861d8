"""Outcome events from the outbox to the stream `cancellations:events`, at least once.

Knows rows and the stream; does not know what the events mean.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.inbox import EVENTS, EVENTS_KEPT
from worker.ledger.outbox import Event, mark_published, take_unpublished
from worker.observability import report_bug
from worker.pause import Pause

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

BATCH = 500


class Publisher:
    """One thread that empties the outbox whenever it is woken."""

    def __init__(self, redis: Redis, ledger: Engine) -> None:
        self._redis = redis
        self._ledger = ledger
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        """Publish what is there, once more, and end. What is left stays in the outbox."""
        self._stop.set()
        self._wake.set()
        self.thread.join(10)

    def _run(self) -> None:
        pause = Pause(self._stop)
        while True:
            self._wake.wait()
            self._wake.clear()
            last_round = self._stop.is_set()
            try:
                while self.publish_batch() == BATCH:
                    pass
                pause.over("publisher.back")
            except (RedisError, SQLAlchemyError, OSError) as error:
                pause.wait("publisher.part_away", error)
                self._wake.set()
            except Exception as error:  # noqa: BLE001 - a bug may not end it: the events stay in the outbox
                report_bug("publisher.failed")
                pause.wait("publisher.failed", error)
            if last_round:
                return

    def publish_batch(self) -> int:
        """Publish what is due; return how many events that were."""
        with self._ledger.begin() as connection:
            events = take_unpublished(connection, BATCH)
        if not events:
            return 0
        self._add_to_stream(events)
        with self._ledger.begin() as connection:
            mark_published(connection, [event.id for event in events])
        return len(events)

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
