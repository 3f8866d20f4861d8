"""Forgets what has been kept for its time, one small batch after another, beside the work.

Every worker's housekeeper does it, none waits for another. Knows how long things are kept; what may go,
`ledger.retention` knows.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger import retention
from worker.ledger.problems import lacks_a_right

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from worker.cancellation.policy import Retention
    from worker.ledger.retention import Place

log = structlog.get_logger()

IDLE_SECONDS = 600.0  # until it is looked again, where nothing is old enough
PAUSE_SECONDS = 1.0  # between two batches: the work goes first
NO_RIGHT_SECONDS = 3600.0
LOG_SECONDS = 60.0  # at most so often


class Forgetting:
    """What one worker forgets."""

    def __init__(self, ledger: Engine, kept: Retention) -> None:
        self._ledger = ledger
        self._after: Place | None = None
        # Each kind in a transaction of its own: a role may lack the right to delete some of them.
        self._kinds: dict[str, tuple[float, Callable[[Connection, float], int]]] = {
            "cancellations": (kept.facts, self._facts),
            "events": (kept.facts, retention.prune_events),
            "refunds": (kept.facts, retention.prune_refunds),
            "delivery_tries": (kept.facts, retention.prune_tries),
            "documents": (kept.documents, retention.prune_documents),
            "dead_letters": (kept.dead_letters, retention.prune_dead_letters),
        }
        self._next_at = {name: float("-inf") for name, (seconds, _) in self._kinds.items() if seconds}  # monotonic
        self._gone: Counter[str] = Counter()
        self._log_at = float("-inf")

    def run(self) -> None:
        """Forget a batch of each kind, if it is time for it. Raises SQLAlchemyError."""
        now = time.monotonic()
        for name, next_at in self._next_at.items():
            if next_at <= now:
                # First of all: where it fails, nothing else is kept from its turn.
                self._next_at[name] = now + IDLE_SECONDS
                self._next_at[name] = now + self._forget(name)
        if self._gone and self._log_at <= now:
            gone, self._gone = self._gone, Counter()
            log.info(
                "retention.pruned",
                cancellations=gone["cancellations"],
                events=gone["events"],
                documents=gone["documents"],
                refunds=gone["refunds"],
                delivery_tries=gone["delivery_tries"],
                dead_letters=gone["dead_letters"],
            )
            self._log_at = now + LOG_SECONDS

    def _forget(self, name: str) -> float:
        """Forget a batch of one kind; return the seconds until the next."""
        seconds, prune = self._kinds[name]
        try:
            with self._ledger.begin() as db:
                count = prune(db, seconds)
        except SQLAlchemyError as error:
            if not lacks_a_right(error):
                raise
            log.warning("retention.not_permitted", what=name)
            return NO_RIGHT_SECONDS
        if count:
            self._gone[name] += count
        more = self._after is not None if name == "cancellations" else count == retention.BATCH
        return PAUSE_SECONDS if more else IDLE_SECONDS

    def _facts(self, db: Connection, seconds: float) -> int:
        pruned = retention.prune_facts(db, seconds, self._after)
        self._after = pruned.after
        return pruned.count
