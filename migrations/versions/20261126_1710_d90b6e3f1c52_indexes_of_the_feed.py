"""The indexes by which the feed reads events in their places, and finds those without one; built beside the workers.

Old code runs beside it: it writes them and asks nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import op

from worker.ledger.index_builds import build_indexes

if TYPE_CHECKING:
    import sqlalchemy as sa

revision = "d90b6e3f1c52"
down_revision = "c5f18a2e7d64"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

TABLE = "events"
# name → columns, condition
INDEXES: dict[str, tuple[list[str | sa.TextClause], str | None]] = {
    "ix_events_place": (["place"], "place IS NOT NULL"),
    "ix_events_without_place": (["id"], "place IS NULL"),
}


def upgrade() -> None:
    build_indexes(op, TABLE, INDEXES)


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, table_name=TABLE)
