"""The OMS's own numbers, batches, an order's age; and the order's document in a table of its own.

Old code runs beside it: the new columns may be null, and what old workers write into the old columns new ones read,
and move into the new table bit by bit. The old columns go with a later release.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import RecordId, UtcTimestamp

revision = "a4e7b9d02c15"
down_revision = "a83d51c7e2f6"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

TABLE = "cancellations"
TEXTS = ("reference_id", "order_number", "batch")
AGE = "order_created_at"
KEPT = "(SELECT {} FROM documents WHERE cancellation_id = cancellations.id)"
BACK = f"""
    UPDATE cancellations SET
        order_snapshot = coalesce(order_snapshot, {KEPT.format("documents.order_snapshot")}),
        unused_fields = coalesce({KEPT.format("documents.unused_fields")}, unused_fields)
    WHERE id IN (SELECT cancellation_id FROM documents)
"""  # noqa: S608


def upgrade() -> None:
    # The stronger lock comes first: a foreign key's, made stronger later, could meet a worker's half way.
    for column in TEXTS:
        op.add_column(TABLE, sa.Column(column, sa.String(255)))
    op.add_column(TABLE, sa.Column(AGE, UtcTimestamp()))
    op.create_table(
        "documents",
        sa.Column("cancellation_id", RecordId, nullable=False),
        sa.Column("order_snapshot", sa.Text()),
        sa.Column("unused_fields", sa.Text()),
        sa.Column("kept_at", UtcTimestamp(), nullable=False),
        sa.ForeignKeyConstraint(["cancellation_id"], ["cancellations.id"], name=op.f("fk_documents_cancellation_id")),
        sa.PrimaryKeyConstraint("cancellation_id", name=op.f("pk_documents")),
    )
    op.create_index("ix_documents_kept_at", "documents", ["kept_at"])


def downgrade() -> None:
    op.execute(BACK)
    for column in (*TEXTS, AGE):
        op.drop_column(TABLE, column)
    op.drop_table("documents")
