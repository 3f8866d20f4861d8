"""What is said of each record: one log line per attempt, and an alert where only a person can help.

Says ids, statuses, reasons. Never a token, a header, a document or an error's text from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from worker.cancellation.lifecycle import Status
from worker.cancellation.outcome import ALARMING_REASONS
from worker.observability import alert

if TYPE_CHECKING:
    from worker.ledger.recording import Record, Recorded

log = structlog.get_logger()


def tell(records: list[Record], recorded: Recorded) -> None:
    """Log one line per attempt, and alert a person where only a person can help."""
    for record in records:
        _log_attempts(record, applied=record.claim.fence.id in recorded.applied)
        if record.claim.fence.id in recorded.applied:
            _alert(record)
    for connection_id in sorted(recorded.held):
        alert("connection.held", connection_id=connection_id, reason="credentials")
    for connection_id in sorted(recorded.resumed):
        log.info("connection.resumed", connection_id=connection_id)


def _log_attempts(record: Record, *, applied: bool) -> None:
    claim, move, found = record.claim, record.move, record.confirmation
    for row in record.attempts:
        log.info(
            "cancellation.attempted",
            id=claim.fence.id,
            connection_id=claim.connection_id,
            order_id=claim.order_id,
            kind=row.kind,
            attempt=claim.fence.claim,
            http_status=row.status,
            origin=row.origin,
            reason=row.reason,
            duration_ms=row.duration_ms,
            request_id=row.request_id,
            status=move.status if move else None,
            verdict=move.verdict if move else (found.verdict if found else None),
            run_at=move.run_at.isoformat() if move and move.run_at else None,
            applied=applied,
        )


def _alert(record: Record) -> None:
    claim, move = record.claim, record.move
    who = {"id": claim.fence.id, "connection_id": claim.connection_id, "order_id": claim.order_id}
    if move is not None and move.status is Status.EXHAUSTED:
        alert("cancellation.exhausted", reason=move.reason, verdict=move.verdict, **who)
    if record.confirmation is not None and record.confirmation.contradicted:
        alert("cancellation.contradicted", **who)
    for row in record.attempts:
        if row.reason in ALARMING_REASONS:
            alert(f"cancellation.{row.reason}", **who)
