"""Reads what `/metrics` shows of the ledger and of the inbox, once in 15 s for this process, whoever asks for it.

A thread of its own: what is away or slow keeps no probe and no scrape waiting. Knows whom to ask and which series each
answer is; what is asked of the ledger, `ledger.gauges` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.proof import NeedsPerson
from worker.inputs.text import visible
from worker.ledger import gauges
from worker.ledger.database import read_only
from worker.runtime.loop import Loop
from worker.streams import GROUP, INBOX, producer_of
from worker.telemetry.metrics import DEAD_LETTER_REASONS, word_label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.telemetry.metrics import Metrics, Samples

READ_SECONDS = 15.0


class LedgerGauges:
    """One thread that tells the gauges."""

    def __init__(
        self,
        redis: Redis,
        ledger: Engine,
        metrics: Metrics,
        *,
        writes_per_second: float,
        reads_per_second: float,
        names: bool,
        inboxes: Callable[[], Sequence[str]] = lambda: (INBOX,),
    ) -> None:
        self._redis: Any = redis
        self._ledger = ledger
        self._metrics = metrics
        self._rates = (writes_per_second, reads_per_second)
        self._names = names  # whether connections are named
        self._inboxes = inboxes
        self.loop = Loop("gauges", self.tick, expected=(SQLAlchemyError, RedisError, OSError))

    def tick(self) -> float:
        """Read once; return the seconds until the next time."""
        try:
            with read_only(self._ledger) as db:
                self._metrics.tell(samples_of(gauges.read(db, self._rates[0]), self._rates[1]))
                if self._names:
                    self._metrics.tell(_named(gauges.named_connections(db)))
        finally:
            self._metrics.tell(self._of_inboxes(self._inboxes()))
        return READ_SECONDS

    def _of_inboxes(self, streams: Sequence[str]) -> dict[str, Samples]:
        pipeline = self._redis.pipeline(transaction=False)
        for each in streams:
            pipeline.xinfo_groups(each)
            pipeline.xlen(each)
        answers = pipeline.execute(raise_on_error=False)
        lag = 0.0
        waiting: Samples = {}
        for stream, groups, length in zip(streams, answers[::2], answers[1::2], strict=True):
            lag += _lag(groups, length)
            if name := producer_of(stream):
                waiting[name,] = 0.0 if isinstance(length, ResponseError) else float(length)
        return {"cancel_worker_inbox_lag": {(): lag}, "cancel_worker_producer_inbox_entries": waiting}


def _lag(groups: Any, length: Any) -> float:
    if isinstance(groups, ResponseError) or isinstance(length, ResponseError):
        return 0.0  # there is no such stream so far; one of another type is told by /readyz
    for group in groups:
        if group["name"] == GROUP.encode() and group.get("lag") is not None:
            return float(group["lag"])
    return float(length)  # before Redis 7, or where it cannot tell


def samples_of(found: gauges.Gauges, reads_per_second: float) -> dict[str, Samples]:
    """Return the values of the series."""
    allowed = {"write": found.writes_per_second, "read": found.open_connections * reads_per_second}
    return {
        "cancel_worker_backlog": _by_word(found.backlog),
        "cancel_worker_oldest_due_age_seconds": _by_word(found.oldest_due),
        "cancel_worker_unproven": _by_word(found.unproven),
        "cancel_worker_unproven_oldest_age_seconds": _by_word(found.unproven_age),
        "cancel_worker_needs_person": _by_word(dict.fromkeys(map(str, NeedsPerson), 0) | found.needs_person),
        "cancel_worker_connections_held": _by_word(found.held),
        "cancel_worker_permits_allowed_per_second": _by_word(allowed),
        "cancel_worker_dead_letters": _by_word(dict.fromkeys(DEAD_LETTER_REASONS, 0) | found.dead_letters),
        "cancel_worker_outbox_lag_seconds": {(): found.outbox_age},
    }


def _by_word(values: Mapping[str, float]) -> Samples:
    samples: Samples = {}
    for word, value in values.items():  # what is no word of ours is counted together
        samples[word_label(word),] = samples.get((word_label(word),), 0.0) + value
    return samples


def _named(rows: Sequence[Any]) -> dict[str, Samples]:
    return {"cancel_worker_connection_info": {tuple(visible(each or "") for each in row): 1.0 for row in rows}}
