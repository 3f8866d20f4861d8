"""What is said of each result: one log line per attempt, and an alert where only a person can help.

Has a thread of its own, so that a log that blocks delays no record. Says ids, statuses, reasons. Never a token, a
header, a document or an error's text from outside.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from worker.cancellation.outcome import ALARMING_REASONS
from worker.cancellation.status import Status
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.runtime.loop import NEVER, Loop
from worker.telemetry.sentry import alert

if TYPE_CHECKING:
    from worker.cancellation.lifecycle import Transition
    from worker.ledger.deadlines import Lapsed
    from worker.ledger.results import CommitSummary, Result

log = structlog.get_logger()

MAX_WAITING = 10_000  # groups of results; beyond that the log is behind for good


class Reporter:
    """One thread that tells of what was recorded."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[list[Result], CommitSummary]] = deque(maxlen=MAX_WAITING)
        self.loop = Loop("reporter", self._tick, expected=(), drain=self._tick)

    def put(self, results: list[Result], summary: CommitSummary) -> None:
        """Tell of these; returns at once."""
        self._waiting.append((results, summary))
        self.loop.wake()

    def _tick(self) -> float:
        while self._waiting:
            log_results(*self._waiting.popleft())
        return NEVER


def log_results(results: list[Result], summary: CommitSummary) -> None:
    """Log one line per attempt, and alert a person where only a person can help."""
    for result in results:
        applied = result.claim.id in summary.applied
        _log_attempts(result, applied=applied)
        if applied:
            _alert(result)
    for connection_id in sorted(summary.held):
        alert("connection.held", connection_id=connection_id, reason="credentials")
    for connection_id in sorted(summary.paused):
        alert("connection.held", connection_id=connection_id, reason="rate_limited")
    alert_on_resumed(summary.resumed)
    if summary.trackstar_resumed:
        alert("trackstar.resumed")


def alert_on_resumed(resumed: frozenset[str]) -> None:
    """Tell an end as the beginning was told: whoever was called out hears that it is over."""
    for connection_id in sorted(resumed):
        alert("connection.resumed", connection_id=connection_id)


def alert_on_holds(held: frozenset[str] | int) -> None:
    """Alert once per hold: connections that are down, or how many wait because Trackstar is."""
    if isinstance(held, int):
        if held:
            alert("trackstar.held", connections=held)
        return
    for connection_id in sorted(held):
        alert("connection.held", connection_id=connection_id, reason="outage")


def log_expired(ended: list[tuple[Lapsed, Transition]]) -> None:
    """Log what could not be sent in time, and alert where that leaves an order in doubt."""
    for row, transition in ended:
        if transition.status is Status.EXHAUSTED:
            alert("cancellation.exhausted", reason=transition.reason, verdict=transition.verdict, **row.named)
        else:
            log.info("cancellation.expired", verdict=transition.verdict, **row.named)


def _log_attempts(result: Result, *, applied: bool) -> None:
    claim = result.claim
    transition = result.transition if isinstance(result, AttemptResult) else None
    found = result.confirmation if isinstance(result, ConfirmResult) else result.transition
    named = claim.named
    for row in result.attempts:
        log.info(
            "cancellation.attempted",
            **named,
            kind=row.kind,
            attempt=claim.lease.token,
            http_status=row.status,
            origin=row.origin,
            reason=row.reason,
            duration_ms=row.duration_ms,
            request_id=row.request_id,
            status=transition.status if transition else None,
            verdict=found.verdict,
            run_at=transition.run_at.isoformat() if transition and transition.run_at else None,
            applied=applied,
        )


def _alert(result: Result) -> None:
    claim = result.claim
    who = claim.named
    found = result.confirmation if isinstance(result, ConfirmResult) else result.transition
    known = result.claim.known if isinstance(result, ConfirmResult) else None
    if found.needs_person and not (known and known.needs_person):
        alert("cancellation.needs_person", reason=found.needs_person, **who)
    if isinstance(result, ConfirmResult):
        if result.confirmation.contradicted:
            alert("cancellation.contradicted", **who)
    elif result.transition.status is Status.EXHAUSTED:
        alert("cancellation.exhausted", reason=result.transition.reason, verdict=result.transition.verdict, **who)
    for row in result.attempts:
        if row.reason in ALARMING_REASONS:
            alert(f"cancellation.{row.reason}", **who)
