"""Forgets what has been kept for its time, one small batch after another, beside the work.

Every worker's housekeeper does it, none waits for another. Knows how long things are kept; what may go,
`ledger.retention` knows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger import retention
from worker.ledger.problems import lacks_a_right

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from worker.cancellation.policy import Retention
    from worker.ledger.retention import Place

log = structlog.get_logger()

IDLE_SECONDS = 600.0  # until it is looked again, where nothing is old enough
PAUSE_SECONDS = 1.0  # between two batches: the work goes first
NO_RIGHT_SECONDS = 3600.0


class Forgetting:
    """What one worker forgets."""

    def __init__(self, ledger: Engine, kept: Retention) -> None:
        self._ledger = ledger
        self._kept = kept
        self._after: Place | None = None
        self._next_at = float("-inf")  # monotonic

    def run(self) -> None:
        """Forget a batch of each kind, if it is time for it. Raises SQLAlchemyError."""
        if time.monotonic() < self._next_at:
            return
        try:
            with self._ledger.begin() as db:
                more = [self._facts(db), self._documents(db), self._dead_letters(db)]
            pause = PAUSE_SECONDS if any(more) else IDLE_SECONDS
        except SQLAlchemyError as error:
            if not lacks_a_right(error):
                raise
            log.warning("retention.not_permitted")
            pause = NO_RIGHT_SECONDS
        self._next_at = time.monotonic() + pause

    def _facts(self, db: Connection) -> bool:
        if not self._kept.facts:
            return False
        self._after = retention.prune_facts(db, self._kept.facts, self._after).after
        return self._after is not None

    def _documents(self, db: Connection) -> bool:
        kept = self._kept.documents
        return bool(kept) and retention.prune_documents(db, kept) == retention.BATCH

    def _dead_letters(self, db: Connection) -> bool:
        kept = self._kept.dead_letters
        return bool(kept) and retention.prune_dead_letters(db, kept) == retention.BATCH
