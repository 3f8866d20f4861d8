"""What was told of each order's refund; the place of an event in the feed; how far each consumer has read.

Old code runs beside it: events that it writes get their place when they are first read, as all others do.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "c5f18a2e7d64"
down_revision = "c8e15f7a3d42"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"


def upgrade() -> None:
    op.add_column("events", sa.Column("place", sa.BigInteger()))
    op.create_table(
        "refunds",
        sa.Column("connection_id", sa.String(255), nullable=False),
        sa.Column("order_id", sa.String(255), nullable=False),
        sa.Column("told", sa.String(64), nullable=False),
        sa.Column("proofs", sa.Integer(), nullable=False),
        sa.Column("changed_at", UtcTimestamp(), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", "order_id", name=op.f("pk_refunds")),
    )
    op.create_index("ix_refunds_changed_at", "refunds", ["changed_at"])
    op.create_table(
        "cursors",
        sa.Column("consumer", sa.String(255), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", UtcTimestamp(), nullable=False),
        sa.PrimaryKeyConstraint("consumer", name=op.f("pk_cursors")),
    )


def downgrade() -> None:
    op.drop_table("cursors")
    op.drop_table("refunds")
    op.drop_column("events", "place")
