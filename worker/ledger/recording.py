"""What came of claims, written in one transaction for any number.

A record counts only where the claim is still its own; its attempts are kept in any case, for they are evidence.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec
from sqlalchemy import Boolean, Connection, Float, Integer, Text, func, null, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.cancellation.lifecycle import Confirmation, Move, Status, safe_to_refund
from worker.ledger.claims import PROBE_SECONDS, Claim
from worker.ledger.moving import apply_claimed
from worker.ledger.outbox import announce
from worker.ledger.sqltypes import Instant, RecordId, as_rows, db_now, given, instant_or_none, instant_text, now_plus
from worker.ledger.tables import attempts, cancellations, connections

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


def record(connection: Connection, records: Sequence[Record]) -> Recorded:
    """Write what came of a batch of claims, in the caller's one transaction."""
    _keep_attempts(connection, records)
    applied = apply_claimed(connection, [(r.claim.fence, r.move) for r in records if r.move])
    applied |= _confirm(connection, [r for r in records if r.confirmation])
    held = {r.claim.connection_id for r in records if r.move and r.move.hold_connection}
    answered = {r.claim.connection_id for r in records if r.claim.connection_held and _was_answered(r)}
    return Recorded(frozenset(applied), _hold_connections(connection, held), _resume(connection, answered - held))


_WORKER_LOST = "worker_lost"


def _keep_attempts(connection: Connection, records: Sequence[Record]) -> None:
    rows = [_attempt_row(r.claim, attempt) for r in records for attempt in r.attempts]
    if not rows:
        return
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
    source = given(connection, columns)
    insert = sqlite.Insert if connection.dialect.name == "sqlite" else postgresql.Insert
    statement = insert(attempts).from_select(list(columns), select(*source.c).where(source.c.number.is_not(None)))
    late = {name: statement.excluded[name] for name in columns if name not in {"cancellation_id", "number", "kind"}}
    connection.execute(
        # Twice the same is once. An answer that comes after its worker was given up replaces that guess.
        statement.on_conflict_do_update(
            index_elements=["cancellation_id", "number", "kind"],
            set_=late,
            where=attempts.c.reason == _WORKER_LOST,
        ),
        as_rows(rows),
    )


def _attempt_row(claim_: Claim, attempt: AttemptRow) -> dict[str, object]:
    return {
        "cancellation_id": claim_.fence.id,
        "number": claim_.fence.claim,
        "generation": claim_.generation,
        **msgspec.structs.asdict(attempt),
        "started_at": instant_text(attempt.started_at),
    }


def _confirm(connection: Connection, records: Sequence[Record]) -> set[str]:
    if not records:
        return set()
    source = given(
        connection,
        {
            "id": RecordId,
            "claim": Integer(),
            "verdict": Text(),
            "evidence": Text(),
            "confirm_at": Instant(),
            "order_status": Text(),
            "order_snapshot": Text(),
        },
    )
    rows = connection.execute(
        update(cancellations)
        .where(c.id == source.c.id, c.claims == source.c.claim, c.ended_at.is_not(None))
        .values(
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            confirm_at=source.c.confirm_at,
            order_status=func.coalesce(source.c.order_status, c.order_status),
            order_snapshot=func.coalesce(source.c.order_snapshot, c.order_snapshot),
        )
        .returning(c.id, c.status),
        as_rows(_confirmation_row(r) for r in records),
    ).all()
    status = {str(row.id): Status(row.status) for row in rows}
    announce(connection, [news for r in records if r.claim.fence.id in status for news in _verdict_news(r, status)])
    return set(status)


def _confirmation_row(r: Record) -> dict[str, object]:
    found = r.confirmation
    assert found is not None  # noqa: S101 - the caller chose these records
    return {
        "id": r.claim.fence.id,
        "claim": r.claim.fence.claim,
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


def _was_answered(r: Record) -> bool:
    return any(attempt.status is not None and attempt.status != 401 for attempt in r.attempts)  # noqa: PLR2004


def _hold_connections(connection: Connection, ids: set[str]) -> frozenset[str]:
    if not ids:
        return frozenset()
    rows = connection.execute(
        update(connections)
        .where(connections.c.id.in_(sorted(ids)), connections.c.hold_reason.is_(None))
        .values(hold_reason="credentials", held_at=db_now(), probe_at=now_plus(PROBE_SECONDS), updated_at=db_now())
        .returning(connections.c.id)
    )
    held = frozenset(row.id for row in rows)
    announce(
        connection,
        [(None, "connection.held", {"connection_id": name, "reason": "credentials"}) for name in sorted(held)],
    )
    return held


def _resume(connection: Connection, ids: set[str]) -> frozenset[str]:
    if not ids:
        return frozenset()
    rows = connection.execute(
        update(connections)
        .where(connections.c.id.in_(sorted(ids)), connections.c.hold_reason == "credentials")
        .values(hold_reason=null(), held_at=null(), probe_at=null(), updated_at=db_now())
        .returning(connections.c.id)
    )
    resumed = frozenset(row.id for row in rows)
    announce(connection, [(None, "connection.resumed", {"connection_id": name}) for name in sorted(resumed)])
    return resumed
