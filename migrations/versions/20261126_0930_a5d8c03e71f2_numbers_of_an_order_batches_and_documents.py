"""What people find a cancel by: the OMS's own numbers, batches; and the order's document in a table of its own.

Old code runs beside it: the new columns may be null, and what old workers write into the old columns new ones read,
and move into the new table bit by bit. The old columns go with a later release.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import RecordId, UtcTimestamp

revision = "a5d8c03e71f2"
down_revision = "a83d51c7e2f6"
branch_labels = None
depends_on = None

TABLE = "cancellations"
COLUMNS = ("reference_id", "order_number", "batch")
# name → columns, condition
INDEXES: dict[str, tuple[list[str | sa.TextClause], str | None]] = {
    "ix_cancellations_connection": (["connection_id", "received_at"], None),
    "ix_cancellations_batch": (["batch", "received_at"], "batch IS NOT NULL"),
    "ix_cancellations_failed": (["received_at"], "status IN ('exhausted', 'expired', 'rejected', 'withdrawn')"),
    "ix_cancellations_reference": ([sa.text("lower(reference_id)")], "reference_id IS NOT NULL"),
    "ix_cancellations_number": ([sa.text("lower(order_number)")], "order_number IS NOT NULL"),
    "ix_cancellations_old_document": (["id"], "order_snapshot IS NOT NULL OR unused_fields IS NOT NULL"),
}
KEPT = "(SELECT {} FROM documents WHERE cancellation_id = cancellations.id)"
BACK = f"""
    UPDATE cancellations SET
        order_snapshot = coalesce(order_snapshot, {KEPT.format("documents.order_snapshot")}),
        unused_fields = coalesce({KEPT.format("documents.unused_fields")}, unused_fields)
    WHERE id IN (SELECT cancellation_id FROM documents)
"""  # noqa: S608


def upgrade() -> None:
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
    for column in COLUMNS:
        op.add_column(TABLE, sa.Column(column, sa.String(255)))
    for name, (columns, condition) in INDEXES.items():
        where = sa.text(condition) if condition else None
        op.create_index(name, TABLE, columns, postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    op.execute(BACK)
    for name in INDEXES:
        op.drop_index(name, table_name=TABLE)
    for column in COLUMNS:
        op.drop_column(TABLE, column)
    op.drop_table("documents")
