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
    from worker.cancellation.lifecycle import Move
    from worker.ledger.agenda import Overdue
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
    # An end is told as the beginning was: whoever was called out hears that it is over.
    for connection_id in sorted(recorded.resumed):
        alert("connection.resumed", connection_id=connection_id)
    if recorded.trackstar_resumed:
        alert("trackstar.resumed")


def tell_holds(held: frozenset[str] | int) -> None:
    """Alert once per hold: connections that are down, or how many wait because Trackstar is."""
    if isinstance(held, int):
        if held:
            alert("trackstar.held", connections=held)
        return
    for connection_id in sorted(held):
        alert("connection.held", connection_id=connection_id, reason="outage")


def tell_expired(ended: list[tuple[Overdue, Move]]) -> None:
    """Log what could not be sent in time, and alert where that leaves an order in doubt."""
    for row, move in ended:
        event = "cancellation.exhausted" if move.status is Status.EXHAUSTED else "cancellation.expired"
        log.info(
            event,
            id=row.id,
            connection_id=row.connection_id,
            order_id=row.order_id,
            verdict=move.verdict,
        )
        if move.status is Status.EXHAUSTED:
            who = {"id": row.id, "connection_id": row.connection_id, "order_id": row.order_id}
            alert("cancellation.exhausted", reason=move.reason, verdict=move.verdict, **who)


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
