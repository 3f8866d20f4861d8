"""What became of tries of webhooks, and how a worker leaves the endpoints that it holds.

Knows rows; does not know HTTP, or what follows from an answer.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.delivery import Standing
from worker.ledger.deliveries import Due
from worker.ledger.dialects import RowId, bind_rows, built_once_per_dialect, db_now, now_plus_parameter, rows_parameter
from worker.ledger.schema import deliveries, delivery_tries, endpoints

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

d, p = deliveries.c, endpoints.c


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a try, and what follows."""

    due: Due
    at: datetime
    duration_ms: int
    status: int | None
    reason: str
    delivered: bool
    wait: float | None = None  # seconds until the next try; None: delivered, or set aside


def note(db: sa.Connection, notes: Sequence[Note]) -> None:
    """Keep what became of tries: what is delivered is no row any more, the rest has its next time or none."""
    if delivered := [each.due for each in notes if each.delivered]:
        drop(db, delivered)
    _note_failures(db, [each for each in notes if not each.delivered])
    rows = [
        {
            "endpoint_id": each.due.endpoint_id,
            "event_number": each.due.number,
            "try": each.due.tries + 1,
            "duration_ms": each.duration_ms,
            "at": each.at,
            "status": each.status,
            "reason": each.reason,
        }
        for each in notes
    ]
    if rows:
        db.execute(sa.insert(delivery_tries), rows)


def _note_failures(db: sa.Connection, notes: Sequence[Note]) -> None:
    # Only where nobody has sent it again, or had it sent again, meanwhile.
    this = (d.endpoint_id == sa.bindparam("of"), d.event_number == sa.bindparam("is"), d.tries == sa.bindparam("had"))
    for again in (True, False):
        later = now_plus_parameter("wait") if again else sa.null()
        rows = [
            {"of": each.due.endpoint_id, "is": each.due.number, "had": each.due.tries, "wait": each.wait or 0.0}
            for each in notes
            if (each.wait is not None) is again
        ]
        if rows:
            db.execute(sa.update(deliveries).where(*this).values(tries=d.tries + 1, due_at=later), rows)


@built_once_per_dialect
def _drop(dialect: str) -> Any:
    asked = rows_parameter(dialect, {"endpoint_id": sa.Text(), "event_number": RowId})
    pairs = sa.select(asked.c.endpoint_id, asked.c.event_number)
    return sa.delete(deliveries).where(sa.tuple_(d.endpoint_id, d.event_number).in_(pairs))


def drop(db: sa.Connection, done: Iterable[Due]) -> None:
    """Delete deliveries that are made, or whose events are gone."""
    db.execute(_drop(db), bind_rows({"endpoint_id": each.endpoint_id, "event_number": each.number} for each in done))


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker leaves an endpoint at the end of a turn."""

    id: str
    standing: Standing
    gap: float | None = None  # seconds for which it is left alone
    keep: bool  # its lease
    pause: bool = False


@built_once_per_dialect
def _leave(_dialect: str) -> Any:
    held = (p.id == sa.bindparam("of"), p.lease_owner == sa.bindparam("owner"))
    return (
        sa.update(endpoints)
        .where(*held)
        .values(
            failures=sa.bindparam("failed"),
            failing_since=sa.bindparam("since"),
            counted_at=sa.bindparam("counted"),
            told=sa.bindparam("level"),
            # Of no seconds, none.
            retry_at=now_plus_parameter("gap"),
            lease_owner=sa.bindparam("keeper"),
            lease_expires_at=now_plus_parameter("lease_seconds"),
            state=sa.case((sa.bindparam("pause", type_=sa.Integer()) == 1, "paused"), else_=p.state),
        )
    )


def leave(db: sa.Connection, owner: str, turns: Sequence[Turn], lease_seconds: float) -> None:
    """Keep how endpoints stand; renew or end the leases of this worker."""
    rows = [
        {
            "of": each.id,
            "owner": owner,
            "failed": each.standing.failures,
            "since": each.standing.since,
            "counted": each.standing.counted_at,
            "level": each.standing.told,
            "gap": each.gap,
            "keeper": owner if each.keep else None,
            "lease_seconds": lease_seconds if each.keep else None,
            "pause": int(each.pause),
        }
        for each in turns
    ]
    if rows:
        db.execute(_leave(db), rows)


def release(db: sa.Connection, owner: str, ids: Collection[str] | None = None) -> None:
    """End the leases of a worker on these endpoints; None: on all."""
    which = [p.lease_owner == owner, *([] if ids is None else [p.id.in_(ids)])]
    db.execute(sa.update(endpoints).where(*which).values(lease_owner=sa.null(), lease_expires_at=sa.null()))


def renew(db: sa.Connection, owner: str, lease_seconds: float) -> None:
    """Let all leases of a worker last so long from now on."""
    later = now_plus_parameter("lease_seconds")
    held = sa.update(endpoints).where(p.lease_owner == owner).values(lease_expires_at=later)
    db.execute(held, {"lease_seconds": lease_seconds})


def bring_forward(db: sa.Connection, endpoint_id: str, *, anew: bool = False) -> int:
    """Let all that waits for a later try be due now; `anew`: also what is set aside, and with all its tries."""
    waits = d.endpoint_id == endpoint_id
    changes: dict[str, Any] = {"due_at": db_now(), **({"tries": 0} if anew else {})}
    which = waits if anew else waits & (d.due_at > db_now())
    return db.execute(sa.update(deliveries).where(which).values(**changes)).rowcount
