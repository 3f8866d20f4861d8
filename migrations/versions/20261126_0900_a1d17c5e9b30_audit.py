"""Who did what, on what, and why: the table of acts.

Old code runs beside it and does not know it: what its commands do leaves no row.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import RowId, UtcTimestamp

revision = "a1d17c5e9b30"
down_revision = "f19c2ab7d804"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

TABLE = "audit"
INDEXES = {
    "ix_audit_at": ["at", "id"],
    "ix_audit_actor": ["actor", "at", "id"],
    "ix_audit_action": ["action", "at", "id"],
    "ix_audit_target_id": ["target_id", "at", "id"],
}


def upgrade() -> None:
    op.create_table(
        TABLE,
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("at", UtcTimestamp(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("target_kind", sa.String(32), nullable=False),
        sa.Column("target_id", sa.String(255)),
        sa.Column("reason", sa.Text()),
        sa.Column("before", sa.JSON(none_as_null=True)),
        sa.Column("after", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    for name, columns in INDEXES.items():
        op.create_index(name, TABLE, columns)


def downgrade() -> None:
    op.drop_table(TABLE)
