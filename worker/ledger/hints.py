"""What a hint moves: the next read, or the next try, of an order or of a connection. Knows rows; believes nothing."""

from __future__ import annotations

import sqlalchemy as sa

from worker.cancellation.lifecycle import NOT_FOUND_YET
from worker.cancellation.status import Status
from worker.ledger import confirmations, freshness
from worker.ledger.dialects import db_now, now_plus
from worker.ledger.schema import WATCHED, cancellations

c = cancellations.c

BETWEEN_READS_SECONDS = 10.0  # of one order: a flood of hints is no flood of reads
ROWS = 1_000


def look_again(db: sa.Connection, connection_id: str, order_id: str | None = None) -> int:
    """Move the next read of an order, or of all that waits on a connection, to now; return how many were moved."""
    if order_id is None:
        freshness.look_now(db, connection_id)
        return confirmations.read_soon(db, connection_id, ROWS) + confirmations.send_soon(db, connection_id, ROWS)
    mine = (c.connection_id == connection_id) & (c.order_id == order_id)
    # What was read a moment ago is read a little later: both moments are soon.
    just_read = sa.func.coalesce(c.as_of, c.ended_at) > now_plus(sa.text(str(-BETWEEN_READS_SECONDS)))
    soon = sa.case((just_read, now_plus(sa.text(str(BETWEEN_READS_SECONDS)))), else_=db_now())
    later = c.confirm_at.is_(None) | (c.confirm_at > soon)
    read = sa.update(cancellations).where(mine, c.ended_at.is_not(None), WATCHED, later).values(confirm_at=soon)
    sent = (
        sa.update(cancellations)
        .where(mine, c.status == Status.WAITING, c.outcome_reason == NOT_FOUND_YET)
        .values(run_at=db_now())
    )
    return db.execute(read).rowcount + db.execute(sent).rowcount
