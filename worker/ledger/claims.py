"""Claims and their records: who may attempt, and what came of it. One statement, one transaction for any number.

A claim is a lease by the database's clock. A record counts only where the claim is still its own; its attempts are
kept in any case, for they are evidence.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from sqlalchemy import Boolean, Connection, Float, Integer, Text, func, null, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from worker.cancellation.lifecycle import Confirmation, Evidence, Move, State, Status, Verdict, safe_to_refund
from worker.ledger.moving import Fence, apply_claimed
from worker.ledger.outbox import announce
from worker.ledger.sqltypes import (
    Instant,
    RecordId,
    as_rows,
    db_now,
    given,
    instant_or_none,
    instant_text,
    now_plus,
    picked,
)
from worker.ledger.tables import attempts, cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

c = cancellations.c

# How long a connection with wrong credentials rests before one real job tries again.
PROBE_SECONDS = 30


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right to attempt one cancellation, and all that an attempt must know."""

    fence: Fence
    connection_id: str
    order_id: str
    generation: int
    state: State
    claimed_at: datetime  # the ledger's time
    sealed_token: str | None
    connection_held: bool  # this attempt is a probe
    ended_at: datetime | None = None  # set where only a read-back is due

    @property
    def idempotency_key(self) -> str:
        """One key per intent; a replay is a new intent."""
        return self.fence.id if self.generation == 1 else f"{self.fence.id}-{self.generation}"


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


_token = select(connections.c.access_token).where(connections.c.id == c.connection_id).scalar_subquery()
_hold = select(connections.c.hold_reason).where(connections.c.id == c.connection_id).scalar_subquery()
_CLAIM_COLUMNS = (
    c.id,
    c.connection_id,
    c.order_id,
    c.generation,
    c.claims,
    c.attempts,
    c.first_sent_at,
    c.send_by,
    c.verdict,
    c.evidence,
    c.outcome_reason,
    c.outcome_message,
    c.lease_owner,
    c.ended_at,
    db_now().label("claimed_at"),
    _token.label("sealed_token"),
    _hold.label("hold_reason"),
)


def claim(connection: Connection, ids: Iterable[str], owner: str, lease_seconds: float) -> list[Claim]:
    """Claim what is queued among `ids`. What is not ours any more is left out silently.

    The claim number rises here, before the call: a crash after this line is known to be in doubt.
    """
    source = given(connection, {"id": RecordId})
    ours = (
        select(c.id)
        .where(
            c.id.in_(select(source.c.id)),
            c.status == "queued",
            # A cancel that is worthless by now is not sent; a refusal that must be read is read at any time.
            or_(c.send_by.is_(None), c.send_by > db_now(), c.evidence.is_not(None)),
        )
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        update(cancellations)
        .where(c.id.in_(ours.scalar_subquery()), c.status == "queued")
        .values(
            status="in_flight",
            lease_owner=owner,
            lease_expires_at=now_plus(lease_seconds),
            claims=c.claims + 1,
            first_sent_at=func.coalesce(c.first_sent_at, db_now()),
        )
        .returning(*_CLAIM_COLUMNS),
        as_rows({"id": record_id} for record_id in ids),
    )
    return [_as_claim(row) for row in rows]


def take_over(connection: Connection, owner: str, lease_seconds: float, limit: int) -> list[Claim]:
    """Take claims whose lease has ended: their worker is dead, or paused and too late."""
    lost = (
        select(c.id)
        .where(c.status.in_(["queued", "in_flight"]), c.lease_expires_at <= db_now(), c.status == "in_flight")
        .order_by(c.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        update(cancellations)
        .where(c.id.in_(picked(lost)), c.status == "in_flight")
        .values(lease_owner=owner, lease_expires_at=now_plus(lease_seconds))
        .returning(*_CLAIM_COLUMNS)
    )
    return [_as_claim(row) for row in rows]


def claim_read_backs(connection: Connection, lease_seconds: float, limit: int) -> list[Claim]:
    """Claim ended cancellations whose read-back is due, by moving it past the time that reading takes."""
    due = (
        select(c.id)
        .where(c.confirm_at <= db_now())
        .where(_hold.is_(None))
        .order_by(c.confirm_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(
        update(cancellations)
        .where(c.id.in_(picked(due)), c.confirm_at.is_not(None))
        .values(confirm_at=now_plus(lease_seconds), claims=c.claims + 1)
        .returning(*_CLAIM_COLUMNS)
    )
    return [_as_claim(row) for row in rows]


def _as_claim(row: Any) -> Claim:
    return Claim(
        fence=Fence(str(row.id), row.lease_owner or "", row.claims),
        connection_id=row.connection_id,
        order_id=row.order_id,
        generation=row.generation,
        state=State(
            attempts=row.attempts,
            first_sent_at=row.first_sent_at or row.claimed_at,
            send_by=row.send_by,
            verdict=Verdict(row.verdict) if row.verdict else None,
            evidence=Evidence(row.evidence) if row.evidence else None,
            reason=row.outcome_reason,
            message=row.outcome_message,
        ),
        claimed_at=row.claimed_at,
        sealed_token=row.sealed_token,
        connection_held=row.hold_reason is not None,
        ended_at=row.ended_at,
    )


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
