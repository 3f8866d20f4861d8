"""Producers with a name, and from which of them a cancellation came.

Old code runs beside it: it reads the inbox without a name only, and writes rows without a producer.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "f3b60d92c7a1"
down_revision = "e1a7f4c28b90"
branch_labels = None
depends_on = None
step = "expand"
release = "0.2.0"


def upgrade() -> None:
    op.create_table(
        "producers",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("connections", sa.JSON(none_as_null=True)),
        sa.Column("urgent", sa.Boolean(create_constraint=False), nullable=False),
        sa.Column("per_second", sa.Float()),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_producers")),
    )
    # Without a default and without a check: neither database reads or copies the table for it.
    op.add_column("cancellations", sa.Column("producer", sa.String(64)))


def downgrade() -> None:
    op.drop_column("cancellations", "producer")
    op.drop_table("producers")
