"""Holds of Trackstar as a whole, and warnings of deadlines that cannot be met.

Old code runs beside the new schema while a release rolls out: it neither writes the new word nor the new column.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "9c2f4d7b1e58"
down_revision = "5b1d9c3e7a20"
branch_labels = None
depends_on = None

step = "expand"
release = "0.1.0"

SENT_BEFORE = "status = 'pending' AND first_sent_at IS NOT NULL"
CHECK = "hold_reason_known"
OLD = "hold_reason IN ('credentials', 'operator', 'outage', 'unknown_connection')"
NEW = "hold_reason IN ('credentials', 'operator', 'outage', 'trackstar_outage', 'unknown_connection')"


def upgrade() -> None:
    op.add_column("cancellations", sa.Column("warned_at", UtcTimestamp(), nullable=True))
    op.create_index(
        "ix_cancellations_sent_before",
        "cancellations",
        ["first_sent_at"],
        postgresql_where=sa.text(SENT_BEFORE),
        sqlite_where=sa.text(SENT_BEFORE),
    )
    _change_check(NEW)


def downgrade() -> None:
    op.execute("UPDATE connections SET hold_reason = 'outage' WHERE hold_reason = 'trackstar_outage'")
    _change_check(OLD)
    op.drop_index("ix_cancellations_sent_before", table_name="cancellations")
    op.drop_column("cancellations", "warned_at")


def _change_check(text: str) -> None:
    # A table of some hundred rows: SQLite copies it, PostgreSQL checks it in an instant.
    with op.batch_alter_table("connections") as table:
        table.drop_constraint(op.f(f"ck_connections_{CHECK}"), type_="check")
        table.create_check_constraint(op.f(f"ck_connections_{CHECK}"), text)
