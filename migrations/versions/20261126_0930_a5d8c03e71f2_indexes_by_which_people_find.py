"""The indexes by which people find a cancellation, built beside the workers.

Old code runs beside it: it writes them and asks nothing of them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.index_builds import build_indexes

revision = "a5d8c03e71f2"
down_revision = "a4e7b9d02c15"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

TABLE = "cancellations"
# name → columns, condition
INDEXES: dict[str, tuple[list[str | sa.TextClause], str | None]] = {
    "ix_cancellations_connection": (["connection_id", "received_at"], None),
    "ix_cancellations_batch": (["batch", "received_at"], "batch IS NOT NULL"),
    "ix_cancellations_failed": (["received_at"], "status IN ('exhausted', 'expired', 'rejected', 'withdrawn')"),
    "ix_cancellations_reference": ([sa.text("lower(reference_id)")], "reference_id IS NOT NULL"),
    "ix_cancellations_number": ([sa.text("lower(order_number)")], "order_number IS NOT NULL"),
    "ix_cancellations_old_document": (["id"], "order_snapshot IS NOT NULL OR unused_fields IS NOT NULL"),
}


def upgrade() -> None:
    build_indexes(op, TABLE, INDEXES)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, table_name=TABLE)
