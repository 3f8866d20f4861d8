"""Who answers for a connection.

Old code runs beside it: the new column may be null.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a83d51c7e2f6"
down_revision = "a1d17c5e9b30"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"


def upgrade() -> None:
    op.add_column("connections", sa.Column("owner", sa.String(255)))


def downgrade() -> None:
    op.drop_column("connections", "owner")
