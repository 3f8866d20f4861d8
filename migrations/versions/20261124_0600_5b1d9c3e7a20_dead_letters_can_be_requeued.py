"""Dead letters can be requeued.

Old code runs beside the new schema while a release rolls out: a column that may be null disturbs none of it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "5b1d9c3e7a20"
down_revision = "0f5266a5aa61"
branch_labels = None
depends_on = None

step = "expand"
release = "0.1.0"


def upgrade() -> None:
    op.add_column("dead_letters", sa.Column("requeued_at", UtcTimestamp(), nullable=True))


def downgrade() -> None:
    op.drop_column("dead_letters", "requeued_at")
