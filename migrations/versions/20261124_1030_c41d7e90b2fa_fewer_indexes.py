"""Fewer indexes for the same questions: each one is written four times in the life of a cancellation.

An id is made of its connection and its key, so the primary key alone keeps the pair unique. An order is looked up by
its id, with its connection or without. Old code runs beside the new schema: it asks nothing else.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c41d7e90b2fa"
down_revision = "9c2f4d7b1e58"
branch_labels = None
depends_on = None

step = "contract"
release = "0.1.0"
unused_since = "0.1.0"

UNIQUE = "uq_cancellations_connection_id_idempotency_key"
ORDER = "ix_cancellations_order"
PENDING = "ix_cancellations_pending"
TABLE = "cancellations"


def upgrade() -> None:
    with op.batch_alter_table(TABLE) as table:
        table.drop_constraint(op.f(UNIQUE), type_="unique")
    _restore_pending()
    op.drop_index(ORDER, table_name=TABLE)
    op.create_index(ORDER, TABLE, ["order_id"])


def downgrade() -> None:
    op.drop_index(ORDER, table_name=TABLE)
    op.create_index(ORDER, TABLE, ["connection_id", "order_id"])
    with op.batch_alter_table(TABLE) as table:
        table.create_unique_constraint(op.f(UNIQUE), ["connection_id", "idempotency_key"])
    _restore_pending()


def _restore_pending() -> None:
    # SQLite has copied the table, and its copy of this index no longer runs backwards.
    if op.get_context().dialect.name == "sqlite":
        op.drop_index(PENDING, table_name=TABLE)
        columns = ["connection_id", sa.text("priority DESC"), "send_by", "requested_at"]
        op.create_index(PENDING, TABLE, columns, sqlite_where=sa.text("status = 'pending'"))
