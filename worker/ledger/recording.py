"""What came of claims, written in one transaction for any number.

A record counts only where the claim is still its own; its attempts are kept in any case, for they are evidence.
"""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from sqlalchemy import Boolean, Connection, Float, Integer, Text, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.cancellation.lifecycle import Confirmation, Move, Status, safe_to_refund
from worker.ledger import holds
from worker.ledger.claims import Claim
from worker.ledger.moving import Fence, apply_claimed
from worker.ledger.outbox import Event, announce
from worker.ledger.sqltypes import Instant, RecordId, as_rows, given, instant_or_none, instant_text, once
from worker.ledger.tables import attempts, cancellations

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c


class AttemptRow(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request as evidence."""

    kind: Literal["cancel", "read"]
    started_at: datetime
    reason: str
    duration_ms: int | None = None
    status: int | None = None
    origin: str | None = None
    error: str | None = None
    request_id: str | None = None
    replayed: bool = False
    retry_after: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one claim."""

    claim: Claim
    attempts: tuple[AttemptRow, ...]
    move: Move | None = None  # of a claimed cancellation
    confirmation: Confirmation | None = None  # of an ended one that was read back


class Recorded(msgspec.Struct, frozen=True):
    """What a batch of records changed."""

    applied: frozenset[str]  # the others were no longer ours
    held: frozenset[str]  # connections that this batch set aside
    resumed: frozenset[str]  # connections that a probe opened again
    trackstar_resumed: bool = False  # a probe showed that Trackstar as a whole is back
    events: tuple[Event, ...] = ()  # of cancellations that ended, for the caller to publish


def record(connection: Connection, records: Sequence[Record]) -> Recorded:
    """Write what came of a batch of claims, in the caller's one transaction."""
    records = _one_of_each_claim(records)
    _keep_attempts(connection, records)
    applied, ends = apply_claimed(connection, [(r.claim.fence, r.move) for r in records if r.move])
    applied |= _confirm(connection, [r for r in records if r.confirmation])
    no_access = {r.claim.connection_id for r in records if r.move and r.move.hold_connection}
    held = holds.hold(connection, no_access, holds.CREDENTIALS)
    return Recorded(frozenset(applied), held, *_end_holds(connection, records, no_access), tuple(ends))


_WORKER_LOST = "worker_lost"


def _one_of_each_claim(records: Sequence[Record]) -> list[Record]:
    """Keep one record of a claim: a worker that rescued its own claim may have the answer in the same batch."""
    kept: dict[Fence, Record] = {}
    for r in records:
        known = kept.get(r.claim.fence)
        if known is None or any(attempt.reason == _WORKER_LOST for attempt in known.attempts):
            kept[r.claim.fence] = r
    return list(kept.values())


@once
def _keep(dialect: str) -> Any:
    columns = {
        "cancellation_id": RecordId,
        "number": Integer(),
        "kind": Text(),
        "generation": Integer(),
        "started_at": Instant(),
        "duration_ms": Integer(),
        "status": Integer(),
        "origin": Text(),
        "reason": Text(),
        "error": Text(),
        "request_id": Text(),
        "replayed": Boolean(),
        "retry_after": Float(),
    }
    source = given(dialect, columns)
    insert = sqlite.Insert if dialect == "sqlite" else postgresql.Insert
    statement = insert(attempts).from_select(list(columns), select(*source.c).where(source.c.number.is_not(None)))
    late = {name: statement.excluded[name] for name in columns if name not in {"cancellation_id", "number", "kind"}}
    # Twice the same is once. An answer that comes after its worker was given up replaces that guess.
    return statement.on_conflict_do_update(
        index_elements=["cancellation_id", "number", "kind"],
        set_=late,
        where=attempts.c.reason == _WORKER_LOST,
    )


def _keep_attempts(connection: Connection, records: Sequence[Record]) -> None:
    rows = [_attempt_row(r.claim, attempt) for r in records for attempt in r.attempts]
    if rows:
        connection.execute(_keep(connection), as_rows(rows))


def _attempt_row(claim_: Claim, attempt: AttemptRow) -> dict[str, object]:
    return {
        "cancellation_id": claim_.fence.id,
        "number": claim_.fence.claim,
        "generation": claim_.generation,
        **msgspec.structs.asdict(attempt),
        "started_at": instant_text(attempt.started_at),
    }


@once
def _confirming(dialect: str) -> Any:
    source = given(
        dialect,
        {
            "id": RecordId,
            "claim": Integer(),
            "known": Text(),
            "verdict": Text(),
            "evidence": Text(),
            "confirm_at": Instant(),
            "order_status": Text(),
            "order_snapshot": Text(),
        },
    )
    return (
        update(cancellations)
        .where(
            c.id == source.c.id,
            c.claims == source.c.claim,
            c.ended_at.is_not(None),
            c.verdict == source.c.known,  # written twice, it was told the first time
        )
        .values(
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            confirm_at=source.c.confirm_at,
            order_status=func.coalesce(source.c.order_status, c.order_status),
            order_snapshot=func.coalesce(source.c.order_snapshot, c.order_snapshot),
        )
        .returning(c.id, c.claims, c.status)
    )


def _confirm(connection: Connection, records: Sequence[Record]) -> set[str]:
    if not records:
        return set()
    rows = connection.execute(_confirming(connection), as_rows(_confirmation_row(r) for r in records)).all()
    status = {str(row.id): Status(row.status) for row in rows}
    current = {(str(row.id), row.claims) for row in rows}
    news = (
        each
        for r in records
        if (r.claim.fence.id, r.claim.fence.claim) in current
        for each in _verdict_news(r, status)
    )
    announce(connection, list(news))
    return set(status)


def _confirmation_row(r: Record) -> dict[str, object]:
    found = r.confirmation
    assert found is not None  # noqa: S101 - the caller chose these records
    return {
        "id": r.claim.fence.id,
        "claim": r.claim.fence.claim,
        "known": r.claim.state.verdict,
        "verdict": found.verdict,
        "evidence": found.evidence,
        "confirm_at": instant_or_none(found.confirm_at),
        "order_status": found.order.status if found.order else None,
        "order_snapshot": found.order.document if found.order else None,
    }


def _verdict_news(r: Record, status: dict[str, Status]) -> list[tuple[str, str, dict[str, object]]]:
    found = r.confirmation
    if found is None or found.verdict == r.claim.state.verdict:
        return []
    kind = "cancellation.contradicted" if found.contradicted else "cancellation.verdict_raised"
    payload = {
        "id": r.claim.fence.id,
        "connection_id": r.claim.connection_id,
        "order_id": r.claim.order_id,
        "generation": r.claim.generation,
        "status": status[r.claim.fence.id],
        "verdict": found.verdict,
        "evidence": found.evidence,
        "safe_to_refund": safe_to_refund(status[r.claim.fence.id], found.verdict),
    }
    return [(r.claim.fence.id, kind, payload)]


def _end_holds(connection: Connection, records: Sequence[Record], no_access: set[str]) -> tuple[frozenset[str], bool]:
    """End the holds whose probes were answered: access by any answer but 401, an outage by one that is no failure."""
    ended: set[str] = set()
    all_ended = 0
    for reason in holds.PROBED:
        answered = {r.claim.connection_id for r in records if r.claim.hold_reason == reason and _answers(r, reason)}
        if reason == holds.TRACKSTAR_OUTAGE and answered:
            all_ended += holds.resume_all(connection)
        else:
            ended |= holds.resume(connection, answered - no_access, {reason})
    return frozenset(ended), all_ended > 0


def _answers(r: Record, reason: str) -> bool:
    statuses = [attempt.status for attempt in r.attempts if attempt.status is not None]
    if reason == holds.CREDENTIALS:
        return any(status != HTTPStatus.UNAUTHORIZED for status in statuses)
    return any(
        status < HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.NOT_IMPLEMENTED for status in statuses
    )
