"""What came of claims, written in one transaction for any number.

A result counts only where its claim is still its own; its attempts are kept in any case, for they are evidence.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.lifecycle import Confirmation, Status, Transition, safe_to_refund
from worker.ledger import holds
from worker.ledger.attempts import WORKER_LOST, AttemptRow, keep_attempts
from worker.ledger.claims import AttemptClaim, ConfirmClaim
from worker.ledger.dialects import (
    RecordId,
    UtcTimestamp,
    bind_rows,
    built_once_per_dialect,
    rows_parameter,
)
from worker.ledger.outbox import Event, NewEvent, add_events
from worker.ledger.schema import cancellations
from worker.ledger.transitions import apply_claimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.dml import ReturningUpdate

    from worker.ledger.claims import Lease

c = cancellations.c


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the claim of a cancellation: the requests that were made, and the transition that follows."""

    claim: AttemptClaim
    attempts: tuple[AttemptRow, ...]
    transition: Transition


class ConfirmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the claim of an ended cancellation that was read back."""

    claim: ConfirmClaim
    attempts: tuple[AttemptRow, ...]
    confirmation: Confirmation


Result = AttemptResult | ConfirmResult


class CommitSummary(msgspec.Struct, frozen=True):
    """What a batch of results changed."""

    applied: frozenset[str]  # the others were no longer ours
    held: frozenset[str]  # connections that this batch set aside, for their credentials
    resumed: frozenset[str]  # connections that a probe opened again
    trackstar_resumed: bool = False  # a probe showed that Trackstar as a whole is back
    events: tuple[Event, ...] = ()  # of cancellations that ended, for the caller to publish
    paused: frozenset[str] = frozenset()  # connections that this batch set aside because the server asked for it

    @property
    def changed_holds(self) -> bool:
        return bool(self.held or self.paused or self.resumed or self.trackstar_resumed)


def commit_results(db: sa.Connection, results: Sequence[Result]) -> CommitSummary:
    """Write what came of a batch of claims, in the caller's one transaction."""
    results = _one_of_each_claim(results)
    keep_attempts(db, ((r.claim, attempt) for r in results for attempt in r.attempts))
    attempted = [r for r in results if isinstance(r, AttemptResult)]
    applied, ends = apply_claimed(db, [(r.claim.lease, r.transition) for r in attempted])
    applied |= _confirm(db, [r for r in results if isinstance(r, ConfirmResult)])
    no_access = {r.claim.connection_id for r in attempted if r.transition.hold_connection}
    held = holds.hold(db, no_access, holds.CREDENTIALS)
    ended = _end_holds(db, results, no_access)
    return CommitSummary(frozenset(applied), held, *ended, tuple(ends), _pause_connections(db, attempted))


def _pause_connections(db: sa.Connection, results: Sequence[AttemptResult]) -> frozenset[str]:
    """Hold the connections whose server asked for a long pause, each for the longest that it asked for."""
    seconds: dict[str, float] = {}
    for r in results:
        if r.transition.pause_connection is not None:
            name = r.claim.connection_id
            seconds[name] = max(seconds.get(name, 0.0), r.transition.pause_connection)
    return holds.pause(db, seconds) if seconds else frozenset()


def _one_of_each_claim(results: Sequence[Result]) -> list[Result]:
    """Keep one result of a claim: a worker that rescued its own claim may have the answer in the same batch."""
    kept: dict[Lease, Result] = {}
    for r in results:
        known = kept.get(r.claim.lease)
        if known is None or any(attempt.reason == WORKER_LOST for attempt in known.attempts):
            kept[r.claim.lease] = r
    return list(kept.values())


@built_once_per_dialect
def _confirming(dialect: str) -> ReturningUpdate[Any]:
    source = rows_parameter(
        dialect,
        {
            "id": RecordId,
            "token": sa.Integer(),
            "known": sa.Text(),
            "verdict": sa.Text(),
            "evidence": sa.Text(),
            "confirm_at": UtcTimestamp(),
            "order_status": sa.Text(),
            "order_snapshot": sa.Text(),
        },
    )
    return (
        sa.update(cancellations)
        .where(
            c.id == source.c.id,
            c.claims == source.c.token,
            c.ended_at.is_not(None),
            c.verdict == source.c.known,  # written twice, it was told the first time
        )
        .values(
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            confirm_at=source.c.confirm_at,
            order_status=sa.func.coalesce(source.c.order_status, c.order_status),
            order_snapshot=sa.func.coalesce(source.c.order_snapshot, c.order_snapshot),
        )
        .returning(c.id, c.claims, c.status)
    )


def _confirm(db: sa.Connection, results: Sequence[ConfirmResult]) -> set[str]:
    if not results:
        return set()
    rows = db.execute(_confirming(db), bind_rows(_confirmation_row(r) for r in results)).all()
    status = {str(row.id): Status(row.status) for row in rows}
    current = {(str(row.id), row.claims) for row in rows}
    changed = [r for r in results if (r.claim.id, r.claim.lease.token) in current]
    add_events(
        db, [_verdict_event(r, status[r.claim.id]) for r in changed if r.confirmation.verdict != r.claim.verdict]
    )
    return set(status)


def _confirmation_row(r: ConfirmResult) -> dict[str, object]:
    found = r.confirmation
    return {
        "id": r.claim.id,
        "token": r.claim.lease.token,
        "known": r.claim.verdict,
        "verdict": found.verdict,
        "evidence": found.evidence,
        "confirm_at": found.confirm_at,
        "order_status": found.order.status if found.order else None,
        "order_snapshot": found.order.document if found.order else None,
    }


def _verdict_event(r: ConfirmResult, status: Status) -> NewEvent:
    found = r.confirmation
    kind = "cancellation.contradicted" if found.contradicted else "cancellation.verdict_raised"
    payload = {
        "id": r.claim.id,
        "connection_id": r.claim.connection_id,
        "order_id": r.claim.order_id,
        "generation": r.claim.generation,
        "status": status,
        "verdict": found.verdict,
        "evidence": found.evidence,
        "safe_to_refund": safe_to_refund(status, found.verdict),
    }
    return r.claim.id, kind, payload


def _end_holds(db: sa.Connection, results: Sequence[Result], no_access: set[str]) -> tuple[frozenset[str], bool]:
    """End the holds whose probes were answered: access by any answer but 401, an outage by one that is no failure."""
    ended: set[str] = set()
    all_ended = 0
    for reason in holds.PROBED:
        answered = {r.claim.connection_id for r in results if r.claim.hold_reason == reason and _answers(r, reason)}
        if reason == holds.TRACKSTAR_OUTAGE and answered:
            all_ended += holds.resume_all(db)
        else:
            ended |= holds.resume(db, answered - no_access, {reason})
    return frozenset(ended), all_ended > 0


def _answers(r: Result, reason: str) -> bool:
    statuses = [attempt.status for attempt in r.attempts if attempt.status is not None]
    if reason == holds.CREDENTIALS:
        return any(status != HTTPStatus.UNAUTHORIZED for status in statuses)
    return any(
        status < HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.NOT_IMPLEMENTED for status in statuses
    )
