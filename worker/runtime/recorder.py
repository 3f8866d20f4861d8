"""Results into the ledger, in group commits: whatever has been answered since the last commit goes into the next.

A slow call delays no other's record. While the ledger is away the results are kept here: Trackstar has given them, so
they are worth waiting for. This thread does nothing but record: who hears of it afterwards gets it through a queue.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger.database import refuses_the_row
from worker.ledger.results import commit_results
from worker.runtime.loop import NEVER, Loop
from worker.telemetry.sentry import report_bug

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from worker.ledger.results import CommitSummary, Result

log = structlog.get_logger()

MAX_GROUP = 200  # rows in one transaction: enough to make its cost per row small, few enough to keep it short
# Group commit: at most one commit per 25 ms. A result that comes later than that is committed at once; under load
# results gather meanwhile, for a transaction costs as much as twenty rows.
SPACING_SECONDS = 0.025


class Recorder:
    """One thread that writes results in the order in which they came.

    `on_committed` and `on_refused` are called in this thread: they may only put things into queues.
    """

    def __init__(
        self,
        ledger: Engine,
        on_committed: Callable[[list[Result], CommitSummary], None],
        on_refused: Callable[[Result], None],
        took: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._took = took  # is told how long each transaction was
        self._ledger = ledger
        self._on_committed = on_committed
        self._on_refused = on_refused
        self._results: deque[Result] = deque()
        self._group: list[Result] = []  # taken and not written yet: kept while the ledger is away
        self._not_before = 0.0
        self.loop = Loop("recorder", self._tick, expected=(SQLAlchemyError,), drain=self._drain)

    def put(self, result: Result) -> None:
        """Hand a result over; returns at once."""
        self._results.append(result)
        self.loop.wake()

    def stop(self, seconds: float) -> bool:
        """Write what is left, for at most so many seconds; return whether all of it was written."""
        return self.loop.stop(seconds)

    def _tick(self) -> float:
        if not self._group:
            if not self._results:
                return NEVER
            time.sleep(max(0.0, self._not_before - time.monotonic()))
            self._not_before = time.monotonic() + SPACING_SECONDS
            self._group = [self._results.popleft() for _ in range(min(MAX_GROUP, len(self._results)))]
        self._write_group()
        return 0.0 if self._results else NEVER

    def _drain(self) -> None:
        while self._group or self._results:
            self._tick()

    def _write_group(self) -> None:
        try:
            self._write(self._group)
            self._group = []
        except Exception as error:
            if _is_away(error):
                raise
            self._write_one_by_one()

    def _write(self, group: list[Result]) -> None:
        began = time.monotonic()
        with self._ledger.begin() as db:
            summary = commit_results(db, group)
        self._took(time.monotonic() - began)
        try:
            self._on_committed(group, summary)
        except Exception:  # noqa: BLE001 - what was only to be told must not undo what was written
            report_bug("recorder.not_told")

    def _write_one_by_one(self) -> None:
        """Write the others of a group in which one cannot be written."""
        while self._group:
            result = self._group[0]
            try:
                self._write([result])
            except Exception as error:
                if _is_away(error):
                    raise
                # Its lease ends and the rescue decides anew; the error's text may hold the row, so only its kind.
                log.error("recorder.record_failed", **result.claim.named, error=type(error).__name__)  # noqa: TRY400
                self._on_refused(result)
            self._group.pop(0)


def _is_away(error: Exception) -> bool:
    return isinstance(error, SQLAlchemyError) and not refuses_the_row(error)
