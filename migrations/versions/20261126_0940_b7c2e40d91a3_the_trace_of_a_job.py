"""The trace that a job came with.

Old code runs beside it: the column may be null, and old workers neither write nor read it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "b7c2e40d91a3"
down_revision = "a5d8c03e71f2"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"


def upgrade() -> None:
    op.add_column("cancellations", sa.Column("traceparent", sa.String(55)))


def downgrade() -> None:
    op.drop_column("cancellations", "traceparent")
