"""A hold for a long pause that the server asks for, with its end in `probe_at`; and an index of all that holds end.

Old code runs beside the new schema while a release rolls out: it does not write the new word, and takes a connection
that is held by it for one that nobody may probe yet. A new worker ends such a hold in time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "e7a4b19d5c63"
down_revision = "d3f0c8a1b6e4"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

INDEX = "ix_connections_probe_at"
TIMED = sa.text("probe_at IS NOT NULL")
CHECK = "hold_reason_known"
OLD = "hold_reason IN ('credentials', 'operator', 'outage', 'trackstar_outage', 'unknown_connection')"
NEW = "hold_reason IN ('credentials', 'operator', 'outage', 'rate_limited', 'trackstar_outage', 'unknown_connection')"


def upgrade() -> None:
    _change_check(NEW)
    op.create_index(INDEX, "connections", ["probe_at"], postgresql_where=TIMED, sqlite_where=TIMED)


def downgrade() -> None:
    op.drop_index(INDEX, table_name="connections")
    op.execute(
        "UPDATE connections SET hold_reason = NULL, held_at = NULL, probe_at = NULL WHERE hold_reason = 'rate_limited'"
    )
    _change_check(OLD)


def _change_check(text: str) -> None:
    # SQLite copies the table, PostgreSQL checks it: an instant for some hundred rows, a second for a million.
    with op.batch_alter_table("connections") as table:
        table.drop_constraint(op.f(f"ck_connections_{CHECK}"), type_="check")
        table.create_check_constraint(op.f(f"ck_connections_{CHECK}"), text)
