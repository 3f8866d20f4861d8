"""Who answers for a connection, and when an order was created, where an answer has said it.

Old code runs beside it: the new columns may be null.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "a83d51c7e2f6"
down_revision = "a1d17c5e9b30"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("connections", sa.Column("owner", sa.String(255)))
    op.add_column("cancellations", sa.Column("order_created_at", UtcTimestamp()))


def downgrade() -> None:
    op.drop_column("cancellations", "order_created_at")
    op.drop_column("connections", "owner")
