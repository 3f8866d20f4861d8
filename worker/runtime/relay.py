"""Events from the outbox to the streams `cancellations:events` and `cancellations:dead-letters`, at least once.

What this process has just written is handed over in memory; what it could not publish in time, or what nobody was
there to publish, is found in the outbox.

Knows rows and the stream; does not know what the events mean.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.stream_entry import write_entry
from worker.ledger.database import autocommit, read_only
from worker.ledger.outbox import mark_published, take_unpublished
from worker.ledger.told import read_told
from worker.runtime.loop import NEVER, Loop
from worker.runtime.refusals import Refusals
from worker.streams import DEAD_LETTERS, EVENTS, EVENTS_KEPT
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.signature import Signer
    from worker.ledger.told import Told

BATCH = 500
MAX_HANDED = 20_000  # beyond that they are left to the outbox
# One event alone is marked at once; under load marks gather so long, far below the lease of an event.
MARK_SECONDS, MAX_MARKED = 0.5, 2_000
KEYS = {EVENTS: "stream", DEAD_LETTERS: "stream"}


class Relay:
    """One thread that publishes what it is handed, and empties the outbox whenever it is woken."""

    def __init__(
        self, redis: Redis, ledger: Engine, vitals: Vitals | None = None, signer: Signer | None = None
    ) -> None:
        self._redis = redis
        self._refusals = Refusals(redis, "The events", KEYS, vitals or Vitals())
        self._ledger = ledger
        self._signer = signer
        self._handed: deque[int] = deque()
        self._published: list[int] = []  # ids that the ledger still calls unpublished
        self._marked_at = 0.0
        self._look = threading.Event()
        self.loop = Loop("relay", self._tick, expected=(RedisError, SQLAlchemyError, OSError), drain=self._drain)

    def put(self, events: Iterable[int]) -> None:
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

    def _publish(self, events: list[int]) -> None:
        if events:
            with read_only(self._ledger) as db:
                told = read_told(db, events)
            self._add_to_stream(told)
            self._published.extend(events)

    def _mark_published(self) -> None:
        """Note in the ledger what is on the stream, many at once; after a crash before that it is published again."""
        if self._published:
            with autocommit(self._ledger) as db:
                mark_published(db, self._published)
            self._published.clear()
            self._marked_at = time.monotonic()

    def _add_to_stream(self, told: list[Told]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        now = datetime.now(UTC)
        for number, event in ((each.number, each.event) for each in told):
            pipeline.xadd(
                DEAD_LETTERS if event.type.startswith("dead_letter.") else EVENTS,
                write_entry(number, event, self._signer, now),
                maxlen=EVENTS_KEPT,
                approximate=True,
            )
        try:
            pipeline.execute()
        except RedisError as error:
            self._refusals.note(error)
            raise
        self._refusals.over()
