"""Moves into rows: the one statement that changes a cancellation after its claim, and the events it causes.

Knows guards and columns; does not know how a move was decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import CTE, ColumnElement, Connection, Integer, Text, case, func, null, select, update

from worker.cancellation.lifecycle import FINAL, UNSENT, Move, Status, Verdict, safe_to_refund
from worker.ledger.outbox import announce, announce_leased
from worker.ledger.sqltypes import (
    Instant,
    RecordId,
    as_rows,
    db_now,
    found_by,
    given,
    instant_or_none,
    once,
    unindexed,
)
from worker.ledger.tables import cancellations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

    from worker.ledger.outbox import Event, News

c = cancellations.c

_GIVEN = {
    "id": RecordId,
    "owner": Text(),
    "claim": Integer(),
    "status": Text(),
    "attempts": Integer(),
    "verdict": Text(),
    "evidence": Text(),
    "reason": Text(),
    "message": Text(),
    "run_at": Instant(),
    "confirm_at": Instant(),
    "order_status": Text(),
    "order_snapshot": Text(),
    "unused_fields": Text(),
}


class Fence(msgspec.Struct, frozen=True):
    """What makes a claim ours: nobody else has this owner and this claim number on this row."""

    id: str
    owner: str
    claim: int


def apply_claimed(connection: Connection, moves: Sequence[tuple[Fence, Move]]) -> tuple[set[str], list[Event]]:
    """Apply moves where the claim is still ours; return the ids that were, and events for the caller to publish."""
    moved = _apply(connection, _move_claimed(connection), moves)
    return _ids(moved), announce_leased(connection, _ends(moved))


def apply_unsent(connection: Connection, moves: Sequence[tuple[str, Move]]) -> set[str]:
    """End cancellations that nobody is sending; return the ids that were still unsent."""
    moved = _apply(connection, _move_unsent(connection), [(Fence(each, "", 0), move) for each, move in moves])
    announce(connection, _ends(moved))
    return _ids(moved)


@once
def _move_claimed(dialect: str) -> Any:
    moves = _moves(dialect)
    claimed = unindexed(c.status) == "in_flight"
    return _moving(dialect, moves, claimed & (c.lease_owner == moves.c.owner) & (c.claims == moves.c.claim))


@once
def _move_unsent(dialect: str) -> Any:
    return _moving(dialect, _moves(dialect), unindexed(c.status).in_(sorted(UNSENT)))


def _moves(dialect: str) -> CTE:
    # Named, because it is asked for twice and the snapshots are long: they are read once.
    return select(*given(dialect, _GIVEN).c).cte("moves")


def _moving(dialect: str, source: CTE, guard: ColumnElement[bool]) -> Any:
    final = source.c.status.in_(sorted(FINAL))
    return (
        update(cancellations)
        .where(found_by(dialect, c.id, source), guard)
        .values(
            status=source.c.status,
            attempts=source.c.attempts,
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            outcome_reason=source.c.reason,
            outcome_message=source.c.message,
            run_at=source.c.run_at,
            confirm_at=source.c.confirm_at,
            # An answer without an order does not wipe the last one that was seen.
            order_status=func.coalesce(source.c.order_status, c.order_status),
            order_snapshot=func.coalesce(source.c.order_snapshot, c.order_snapshot),
            unused_fields=func.coalesce(source.c.unused_fields, c.unused_fields),
            lease_owner=null(),
            lease_expires_at=null(),
            ended_at=case((final, db_now()), else_=null()),
        )
        .returning(
            c.id,
            c.connection_id,
            c.order_id,
            c.generation,
            c.status,
            c.verdict,
            c.evidence,
            c.outcome_reason.label("reason"),
            c.attempts,
            c.ended_at,
        )
    )


def _apply(connection: Connection, moving: Any, moves: Sequence[tuple[Fence, Move]]) -> Sequence[Row[Any]]:
    if not moves:
        return ()
    return connection.execute(moving, as_rows(_as_row(fence, move) for fence, move in moves)).all()


def _ids(moved: Sequence[Row[Any]]) -> set[str]:
    return {str(row.id) for row in moved}


def _ends(moved: Sequence[Row[Any]]) -> list[News]:
    return [(str(row.id), "cancellation.ended", ended_payload(row)) for row in moved if row.ended_at]


def ended_payload(row: Any) -> dict[str, Any]:
    """Say how a cancellation ended: ids, statuses and reasons, never a document or a person's data."""
    return {
        "id": str(row.id),
        "connection_id": row.connection_id,
        "order_id": row.order_id,
        "generation": row.generation,
        "status": row.status,
        "verdict": row.verdict,
        "evidence": row.evidence,
        "safe_to_refund": safe_to_refund(Status(row.status), Verdict(row.verdict)),
        "reason": row.reason,
        "attempts": row.attempts,
        "at": row.ended_at.isoformat(),
    }


def _as_row(fence: Fence, move: Move) -> dict[str, object]:
    return {
        "id": fence.id,
        "owner": fence.owner,
        "claim": fence.claim,
        "status": move.status,
        "attempts": move.attempts,
        "verdict": move.verdict,
        "evidence": move.evidence,
        "reason": move.reason,
        "message": move.message,
        "run_at": instant_or_none(move.run_at),
        "confirm_at": instant_or_none(move.confirm_at),
        "order_status": move.order.status if move.order else None,
        "order_snapshot": move.order.document if move.order else None,
        "unused_fields": move.unused_fields,
    }
