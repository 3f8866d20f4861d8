"""The order of turn rests on a number: urgent, normal, bulk happened to run backwards in the alphabet.

An expression and no column, so a row that anybody writes has its rank. The index of the release before goes with this
one: beside it, that release's workers sort what is pending of a connection, until they are replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "d3f0c8a1b6e4"
down_revision = "c41d7e90b2fa"
branch_labels = None
depends_on = None

step = "contract"
release = "0.2.0"
unused_since = "0.2.0"

BEFORE, AFTER = "ix_cancellations_pending", "ix_cancellations_turn"
TABLE = "cancellations"
PENDING = sa.text("status = 'pending'")
RANK = sa.text("(CASE priority WHEN 'urgent' THEN 0 WHEN 'normal' THEN 1 WHEN 'bulk' THEN 2 END)")


def upgrade() -> None:
    columns = ["connection_id", RANK, "send_by", "requested_at"]
    op.create_index(AFTER, TABLE, columns, postgresql_where=PENDING, sqlite_where=PENDING)
    op.drop_index(BEFORE, table_name=TABLE)


def downgrade() -> None:
    columns = ["connection_id", sa.text("priority DESC"), "send_by", "requested_at"]
    op.create_index(BEFORE, TABLE, columns, postgresql_where=PENDING, sqlite_where=PENDING)
    op.drop_index(AFTER, table_name=TABLE)
