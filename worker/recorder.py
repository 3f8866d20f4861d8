"""Answers into the ledger, in group commits: whatever has been answered since the last commit goes into the next.

A slow call delays no other's record, and one answer alone is recorded at once. While the ledger is away the answers
are kept here: Trackstar has given them, so they are worth waiting for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from worker.ledger import recording
from worker.ledger.engine import refuses_the_row
from worker.observability import report_bug
from worker.pause import Pause

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from worker.ledger.recording import Record, Recorded

log = structlog.get_logger()

MAX_GROUP = 200  # rows in one transaction: enough to make its cost per row small, few enough to keep it short
# A commit begins this long after the last one began. One answer alone finds that over and is recorded at once; under
# load answers gather meanwhile, for a transaction costs as much as twenty rows.
SPACING_SECONDS = 0.025

OnRecorded = Callable[["list[Record]", "Recorded"], None]
OnRefused = Callable[["Record"], None]


class Recorder:
    """One thread that writes records in the order in which their answers came."""

    def __init__(self, ledger: Engine, on_recorded: OnRecorded, on_refused: OnRefused) -> None:
        self._ledger = ledger
        self._on_recorded = on_recorded
        self._on_refused = on_refused
        self._answers: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._giving_up = threading.Event()
        self.thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def put(self, record: Record) -> None:
        """Hand an answer over; returns at once."""
        self._answers.put(record)

    def stop(self, grace: float) -> bool:
        """Write what is left, for at most `grace` seconds; return whether all of it was written."""
        self._answers.put(None)
        self.thread.join(grace)
        self._giving_up.set()
        return not self.thread.is_alive()

    def _run(self) -> None:
        stopping, not_before = False, 0.0
        while not stopping:
            group: list[Record] = []
            answer = self._answers.get()
            if (early := not_before - time.monotonic()) > 0 and answer is not None:
                time.sleep(early)
            not_before = time.monotonic() + SPACING_SECONDS
            while answer is not None:
                group.append(answer)
                if len(group) == MAX_GROUP or self._answers.empty():
                    break
                answer = self._answers.get()
            stopping = answer is None
            if group:
                self._write_at_last(group)

    def _write_at_last(self, group: list[Record]) -> None:
        pause = Pause(stop=self._giving_up)
        while not self._giving_up.is_set():
            try:
                self._write(group)
            except SQLAlchemyError as error:
                if refuses_the_row(error):
                    self._write_one_by_one(group)
                    return
                pause.wait("recorder.ledger_away", error, answers_kept=len(group))
            else:
                pause.over("recorder.ledger_back")
                return

    def _write(self, group: list[Record]) -> None:
        with self._ledger.begin() as connection:
            recorded = recording.record(connection, group)
        try:
            self._on_recorded(group, recorded)
        except Exception:  # noqa: BLE001 - what was only to be told must not undo what was written
            report_bug("recorder.report_failed")

    def _write_one_by_one(self, group: list[Record]) -> None:
        # One row that the ledger refuses may not keep the others from being written.
        for record in group:
            try:
                self._write([record])
            except SQLAlchemyError as error:
                # Its lease ends and the rescue decides anew; the error's text may hold the row, so only its kind.
                log.error("recorder.record_failed", id=record.claim.fence.id, error=type(error).__name__)  # noqa: TRY400
                self._on_refused(record)
