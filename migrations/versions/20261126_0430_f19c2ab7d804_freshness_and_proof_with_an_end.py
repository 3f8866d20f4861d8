"""How fresh each connection's copy is; by when, or by whom, each verdict is known, and of which instant it is true.

Old code runs beside it: the new columns may be null.
What ended without proof, and nobody looks at any more, new workers read once more: it gets a date or a person.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import UtcTimestamp

revision = "f19c2ab7d804"
down_revision = "e7a4b19d5c63"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

TABLE = "cancellations"
TURN, UNSETTLED, WATCHED = "ix_cancellations_turn", "ix_cancellations_unsettled", "ix_cancellations_watched"
RANK = sa.text("(CASE priority WHEN 'urgent' THEN 0 WHEN 'normal' THEN 1 WHEN 'bulk' THEN 2 END)")
PENDING = sa.text("status = 'pending'")
IS_UNSETTLED = sa.text("known_by IS NOT NULL OR needs_person IS NOT NULL")
IS_WATCHED = sa.text("verdict IN ('accepted', 'cancelled', 'unknown')")
CONTRADICTED = "ix_events_contradicted"
IS_ONE = sa.text("type = 'cancellation.contradicted'")
CHECK = "ck_cancellations_evidence_known"
OLD = "evidence IN ('never_sent', 'read_back', 'refusal', 'replayed_response', 'response')"
NEW = (
    "evidence IN ('fresh_read_back', 'never_sent', 'person', 'read_back', 'refusal', 'replayed_response', 'response')"
)
LEFT_OPEN = "ix_cancellations_left_open"
IS_LEFT_OPEN = sa.text(
    "confirm_at IS NULL AND known_by IS NULL AND needs_person IS NULL AND ended_at IS NOT NULL"
    " AND verdict IN ('accepted', 'unknown')"
)


def upgrade() -> None:
    op.create_table(
        "freshness",
        sa.Column("connection_id", sa.String(255), nullable=False),
        sa.Column("trackstar_id", sa.String(255)),
        sa.Column("began_at", UtcTimestamp()),
        sa.Column("ended_at", UtcTimestamp()),
        sa.Column("before_began_at", UtcTimestamp()),
        sa.Column("running_since", UtcTimestamp()),
        sa.Column("frequency", sa.Float()),
        sa.Column("length", sa.Float()),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seen_at", UtcTimestamp()),
        sa.Column("ahead", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("running_ahead", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed", UtcTimestamp()),
        sa.Column("force_after", UtcTimestamp()),
        sa.Column("look_at", UtcTimestamp()),
        sa.Column("looked_to", UtcTimestamp()),
        sa.ForeignKeyConstraint(["connection_id"], ["connections.id"], name=op.f("fk_freshness_connection_id")),
        sa.PrimaryKeyConstraint("connection_id", name=op.f("pk_freshness")),
    )
    op.add_column(TABLE, sa.Column("as_of", UtcTimestamp()))
    op.add_column(TABLE, sa.Column("known_by", UtcTimestamp()))
    op.add_column(TABLE, sa.Column("needs_person", sa.String(32)))
    _change_check(NEW)
    _index(UNSETTLED, ["connection_id", "order_id"], IS_UNSETTLED)
    _index(WATCHED, ["connection_id", "ended_at", "verdict"], IS_WATCHED)
    op.create_index(CONTRADICTED, "events", ["created_at"], postgresql_where=IS_ONE, sqlite_where=IS_ONE)
    _index(LEFT_OPEN, ["ended_at"], IS_LEFT_OPEN)


def downgrade() -> None:
    op.drop_index(CONTRADICTED, table_name="events")
    op.drop_index(LEFT_OPEN, table_name=TABLE)
    op.drop_index(WATCHED, table_name=TABLE)
    op.drop_index(UNSETTLED, table_name=TABLE)
    op.execute(
        f"UPDATE {TABLE} SET evidence = 'read_back' WHERE evidence IN ('fresh_read_back', 'person')"  # noqa: S608
    )
    _change_check(OLD)
    for column in ("needs_person", "known_by", "as_of"):
        op.drop_column(TABLE, column)
    op.drop_table("freshness")


def _index(name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, TABLE, columns, postgresql_where=where, sqlite_where=where)


def _change_check(text: str) -> None:
    # PostgreSQL reads each row once, a second for two million. SQLite copies the table, without the index of an
    # expression.
    sqlite = op.get_context().dialect.name == "sqlite"
    if sqlite:
        op.drop_index(TURN, table_name=TABLE)
    with op.batch_alter_table(TABLE) as table:
        table.drop_constraint(op.f(CHECK), type_="check")
        table.create_check_constraint(op.f(CHECK), text)
    if sqlite:
        columns = ["connection_id", RANK, "send_by", "requested_at"]
        op.create_index(TURN, TABLE, columns, postgresql_where=PENDING, sqlite_where=PENDING)
