"""Which ended cancellations are looked at again, and when: by crawls that came, or that do not come.

Knows rows; what is written of them, `confirmations` writes, and what a read proves, `cancellation.proof` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from worker.cancellation.proof import PASSING, Confirmation
from worker.cancellation.status import Status
from worker.ledger.claims import CLAIM_COLUMNS, ConfirmClaim, confirm_claim
from worker.ledger.confirmations import apply_confirmations
from worker.ledger.dialects import (
    bind_rows,
    built_once_per_dialect,
    db_now,
    hidden_from_planner,
    id_in_chosen,
    rows_parameter,
)
from worker.ledger.schema import LEFT_OPEN, UNSETTLED, WATCHED, cancellations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.cancellation.proof import Prospect, Unproven
    from worker.ledger.confirmations import Found

c = cancellations.c

_BEFORE_ALL_IDS = "00000000-0000-0000-0000-000000000000"
_ID_LENGTH = len(_BEFORE_ALL_IDS)
_WAITS_FOR_A_CRAWL = UNSETTLED & (
    c.known_by.is_not(None) | c.needs_person.in_([each.value for each in sorted(PASSING)])
)


def revise(
    db: sa.Connection, connection_id: str, foresee: Callable[[Unproven], Prospect], limit: int, after: str = ""
) -> str | None:
    """Say anew by when, or by whom, what waits for a crawl is known: what is known of the crawls has changed.

    Goes through them by order, and by id where an order has several, `limit` after `after`; returns where to go on,
    or None at the end.
    """
    record_id, order_id = after[:_ID_LENGTH] or _BEFORE_ALL_IDS, after[_ID_LENGTH:]
    rows = db.execute(
        sa.select(*CLAIM_COLUMNS, c.confirm_at)
        .where(c.connection_id == connection_id, c.ended_at.is_not(None), _WAITS_FOR_A_CRAWL)
        .where(c.order_id >= order_id, (c.order_id > order_id) | (c.id > record_id))
        .order_by(c.order_id, c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    revised = [_revised(row, foresee) for row in rows]
    apply_confirmations(db, [each for each in revised if _differs(*each)])
    return f"{rows[-1].id}{rows[-1].order_id}" if len(rows) == limit else None


def _differs(claim: ConfirmClaim, found: Confirmation) -> bool:
    return (claim.known.known_by, claim.known.needs_person) != (found.known_by, found.needs_person)


def _revised(row: Any, foresee: Callable[[Unproven], Prospect]) -> Found:
    claim = confirm_claim(row)
    then = foresee(claim.known)
    return claim, Confirmation(
        verdict=claim.verdict,
        evidence=claim.known.evidence,
        confirm_at=row.confirm_at or then.confirm_at,
        known_by=then.known_by,
        needs_person=then.needs_person,
    )


@built_once_per_dialect
def _watched_of(dialect: str) -> sa.Select[Any]:
    asked = rows_parameter(dialect, {"order_id": sa.Text()})
    return sa.select(*CLAIM_COLUMNS).where(
        c.connection_id == sa.bindparam("connection_id", type_=sa.Text()),
        c.order_id.in_(sa.select(asked.c.order_id)),
        c.ended_at.is_not(None),
        WATCHED,
    )


def watched_orders(db: sa.Connection, connection_id: str, order_ids: Collection[str]) -> list[ConfirmClaim]:
    """Return the ended cancellations of these orders whose verdict a later crawl can prove or overturn."""
    asked = bind_rows({"order_id": each} for each in order_ids)
    return [confirm_claim(row) for row in db.execute(_watched_of(db), {**asked, "connection_id": connection_id})]


def read_soon(db: sa.Connection, connection_id: str, limit: int) -> int:
    """Let what waits for a crawl of this connection be read now; return how many."""
    return _bring_forward(db, c.confirm_at, c.ended_at.is_not(None), connection_id, limit)


def send_soon(db: sa.Connection, connection_id: str, limit: int) -> int:
    """Let what waits for its order to appear be sent now; return how many."""
    waiting = hidden_from_planner(c.status) == Status.WAITING.value  # else it might go through all that wait
    return _bring_forward(db, c.run_at, waiting, connection_id, limit)


def _bring_forward(
    db: sa.Connection, when: sa.Column[Any], which: sa.ColumnElement[bool], connection_id: str, limit: int
) -> int:
    later = when.is_(None) | (when > db_now())
    chosen = sa.select(c.id).where(c.connection_id == connection_id, which, _WAITS_FOR_A_CRAWL, later).limit(limit)
    moved = db.execute(
        sa.update(cancellations)
        .where(id_in_chosen(db.dialect.name, c.id, chosen.with_for_update(skip_locked=True)))
        .values({when.name: db_now()})
        .returning(c.id)  # SQLite does not count what a statement with a CTE changes
    )
    return len(moved.all())


def adopt(db: sa.Connection) -> int:
    """Let what a worker of an older version ended without proof, date or person be read now; return how many."""
    return db.execute(sa.update(cancellations).where(LEFT_OPEN).values(confirm_at=db_now())).rowcount
