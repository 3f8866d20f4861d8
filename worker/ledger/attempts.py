"""The rows of `attempts`: one HTTP request each, kept as evidence whatever came of its claim."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import sqlalchemy as sa

from worker.ledger.dialects import (
    RecordId,
    UtcTimestamp,
    bind_rows,
    built_once_per_dialect,
    insert,
    rows_parameter,
)
from worker.ledger.schema import attempts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.dialects import postgresql, sqlite

    from worker.ledger.claims import Claim

WORKER_LOST = "worker_lost"  # the reason of a guess: its worker died, and nobody knows what was answered


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


_COLUMNS = {
    "cancellation_id": RecordId,
    "number": sa.Integer(),
    "kind": sa.Text(),
    "generation": sa.Integer(),
    "started_at": UtcTimestamp(),
    "duration_ms": sa.Integer(),
    "status": sa.Integer(),
    "origin": sa.Text(),
    "reason": sa.Text(),
    "error": sa.Text(),
    "request_id": sa.Text(),
    "replayed": sa.Boolean(),
    "retry_after": sa.Float(),
}


@built_once_per_dialect
def _keep(dialect: str) -> postgresql.Insert | sqlite.Insert:
    source = rows_parameter(dialect, _COLUMNS)
    # The condition tells SQLite that ON belongs to the INSERT and not to a join.
    new = sa.select(*source.c).where(source.c.number.is_not(None))
    statement = insert(dialect, attempts).from_select(list(_COLUMNS), new)
    key = ["cancellation_id", "number", "kind"]
    return statement.on_conflict_do_update(
        index_elements=key,
        set_={name: statement.excluded[name] for name in _COLUMNS if name not in key},
        # Written twice it stays as it is. An answer that comes after its worker was given up replaces that guess.
        where=attempts.c.reason == WORKER_LOST,
    )


def keep_attempts(db: sa.Connection, made: Iterable[tuple[Claim, AttemptRow]]) -> None:
    """Write the requests of these claims, each once."""
    rows = [_as_row(claim, attempt) for claim, attempt in made]
    if rows:
        db.execute(_keep(db), bind_rows(rows))


def _as_row(claim: Claim, attempt: AttemptRow) -> dict[str, Any]:
    return {
        "cancellation_id": claim.id,
        "number": claim.lease.token,
        "generation": claim.generation,
        **msgspec.structs.asdict(attempt),
    }
