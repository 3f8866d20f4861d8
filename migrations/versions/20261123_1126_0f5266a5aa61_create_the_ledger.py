"""Create the ledger.

Old code runs beside the new schema while a release rolls out: add, backfill and enforce in separate revisions.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import RecordId, RowId, UtcTimestamp

revision = "0f5266a5aa61"
down_revision = None
branch_labels = None
depends_on = None

step = "expand"
release = "0.1.0"


def upgrade() -> None:
    op.create_table(
        "connections",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("integration_name", sa.String(length=255), nullable=True),
        sa.Column("access_token", sa.Text(), nullable=True),
        sa.Column("writes_per_second", sa.Float(), nullable=True),
        sa.Column("hold_reason", sa.String(length=32), nullable=True),
        sa.Column("held_at", UtcTimestamp(), nullable=True),
        sa.Column("probe_at", UtcTimestamp(), nullable=True),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.Column("updated_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint(
            "hold_reason IN ('credentials', 'operator', 'outage', 'unknown_connection')",
            name=op.f("ck_connections_hold_reason_known"),
        ),
        sa.CheckConstraint("(hold_reason IS NULL) = (held_at IS NULL)", name=op.f("ck_connections_held_has_time")),
        sa.CheckConstraint(
            "access_token IS NOT NULL OR hold_reason IS NOT NULL", name=op.f("ck_connections_open_has_token")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_connections")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("entry_id", sa.String(length=64), nullable=True),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("received_at", UtcTimestamp(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("source", "entry_id", name=op.f("uq_dead_letters_source_entry_id")),
    )
    op.create_table(
        "events",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("cancellation_id", RecordId, nullable=True),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.Column("publish_at", UtcTimestamp(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("ix_events_cancellation_id", ["cancellation_id"], unique=False)
        batch_op.create_index(
            "ix_events_unpublished",
            ["publish_at"],
            unique=False,
            postgresql_where=sa.text("publish_at IS NOT NULL"),
            sqlite_where=sa.text("publish_at IS NOT NULL"),
        )

    op.create_table(
        "cancellations",
        sa.Column("id", RecordId, nullable=False),
        sa.Column("connection_id", sa.String(length=255), nullable=False),
        sa.Column("order_id", sa.String(length=255), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("priority", sa.String(length=8), nullable=False),
        sa.Column("send_by", UtcTimestamp(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("requested_at", UtcTimestamp(), nullable=False),
        sa.Column("received_at", UtcTimestamp(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("run_at", UtcTimestamp(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("claims", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_expires_at", UtcTimestamp(), nullable=True),
        sa.Column("generation", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("first_sent_at", UtcTimestamp(), nullable=True),
        sa.Column("ended_at", UtcTimestamp(), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("evidence", sa.String(length=32), nullable=True),
        sa.Column("outcome_reason", sa.String(length=64), nullable=True),
        sa.Column("outcome_message", sa.Text(), nullable=True),
        sa.Column("order_status", sa.Text(), nullable=True),
        sa.Column("order_snapshot", sa.Text(), nullable=True),
        sa.Column("unused_fields", sa.Text(), nullable=True),
        sa.Column("confirm_at", UtcTimestamp(), nullable=True),
        sa.CheckConstraint(
            "(status = 'waiting') = (run_at IS NOT NULL)", name=op.f("ck_cancellations_waiting_has_run_at")
        ),
        sa.CheckConstraint(
            "(status IN ('exhausted', 'expired', 'rejected', 'succeeded', 'withdrawn')) = (ended_at IS NOT NULL)",
            name=op.f("ck_cancellations_final_has_ended_at"),
        ),
        sa.CheckConstraint(
            "(status IN ('queued', 'in_flight')) = (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
            name=op.f("ck_cancellations_lease_while_handed_out"),
        ),
        sa.CheckConstraint(
            "evidence IN ('never_sent', 'read_back', 'refusal', 'replayed_response', 'response')",
            name=op.f("ck_cancellations_evidence_known"),
        ),
        sa.CheckConstraint("priority IN ('urgent', 'normal', 'bulk')", name=op.f("ck_cancellations_priority_known")),
        sa.CheckConstraint(
            "status IN ('exhausted', 'expired', 'in_flight', 'pending', 'queued', 'rejected', 'succeeded', "
            "'waiting', 'withdrawn')",
            name=op.f("ck_cancellations_status_known"),
        ),
        sa.CheckConstraint(
            "verdict IN ('accepted', 'cancelled', 'not_cancelled', 'unknown')",
            name=op.f("ck_cancellations_verdict_known"),
        ),
        sa.CheckConstraint(
            "attempts >= 0 AND claims >= attempts AND generation >= 1", name=op.f("ck_cancellations_counters_sane")
        ),
        sa.CheckConstraint(
            "confirm_at IS NULL OR ended_at IS NOT NULL", name=op.f("ck_cancellations_confirm_after_end")
        ),
        sa.CheckConstraint("ended_at IS NULL OR verdict IS NOT NULL", name=op.f("ck_cancellations_final_has_verdict")),
        sa.ForeignKeyConstraint(["connection_id"], ["connections.id"], name=op.f("fk_cancellations_connection_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cancellations")),
        sa.UniqueConstraint(
            "connection_id", "idempotency_key", name=op.f("uq_cancellations_connection_id_idempotency_key")
        ),
    )
    with op.batch_alter_table("cancellations", schema=None) as batch_op:
        batch_op.create_index(
            "ix_cancellations_confirm",
            ["confirm_at"],
            unique=False,
            postgresql_where=sa.text("confirm_at IS NOT NULL"),
            sqlite_where=sa.text("confirm_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_cancellations_due",
            ["run_at"],
            unique=False,
            postgresql_where=sa.text("status = 'waiting'"),
            sqlite_where=sa.text("status = 'waiting'"),
        )
        batch_op.create_index(
            "ix_cancellations_leased",
            ["lease_expires_at"],
            unique=False,
            postgresql_where=sa.text("status IN ('queued', 'in_flight')"),
            sqlite_where=sa.text("status IN ('queued', 'in_flight')"),
        )
        batch_op.create_index("ix_cancellations_order", ["connection_id", "order_id"], unique=False)
        batch_op.create_index(
            "ix_cancellations_pending",
            ["connection_id", sa.literal_column("priority DESC"), "send_by", "requested_at"],
            unique=False,
            postgresql_where=sa.text("status = 'pending'"),
            sqlite_where=sa.text("status = 'pending'"),
        )
        batch_op.create_index("ix_cancellations_received_at", ["received_at"], unique=False)
        batch_op.create_index(
            "ix_cancellations_send_by",
            ["send_by"],
            unique=False,
            postgresql_where=sa.text(
                "status IN ('pending', 'queued', 'waiting') AND send_by IS NOT NULL AND evidence IS NULL"
            ),
            sqlite_where=sa.text(
                "status IN ('pending', 'queued', 'waiting') AND send_by IS NOT NULL AND evidence IS NULL"
            ),
        )

    op.create_table(
        "attempts",
        sa.Column("cancellation_id", RecordId, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcTimestamp(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("origin", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("request_id", sa.String(length=255), nullable=True),
        sa.Column("replayed", sa.Boolean(), nullable=False),
        sa.Column("retry_after", sa.Float(), nullable=True),
        sa.CheckConstraint("kind IN ('cancel', 'read')", name=op.f("ck_attempts_kind_known")),
        sa.ForeignKeyConstraint(["cancellation_id"], ["cancellations.id"], name=op.f("fk_attempts_cancellation_id")),
        sa.PrimaryKeyConstraint("cancellation_id", "number", "kind", name=op.f("pk_attempts")),
    )


def downgrade() -> None:
    op.drop_table("attempts")
    with op.batch_alter_table("cancellations", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_cancellations_send_by",
            postgresql_where=sa.text(
                "status IN ('pending', 'queued', 'waiting') AND send_by IS NOT NULL AND evidence IS NULL"
            ),
            sqlite_where=sa.text(
                "status IN ('pending', 'queued', 'waiting') AND send_by IS NOT NULL AND evidence IS NULL"
            ),
        )
        batch_op.drop_index("ix_cancellations_received_at")
        batch_op.drop_index(
            "ix_cancellations_pending",
            postgresql_where=sa.text("status = 'pending'"),
            sqlite_where=sa.text("status = 'pending'"),
        )
        batch_op.drop_index("ix_cancellations_order")
        batch_op.drop_index(
            "ix_cancellations_leased",
            postgresql_where=sa.text("status IN ('queued', 'in_flight')"),
            sqlite_where=sa.text("status IN ('queued', 'in_flight')"),
        )
        batch_op.drop_index(
            "ix_cancellations_due",
            postgresql_where=sa.text("status = 'waiting'"),
            sqlite_where=sa.text("status = 'waiting'"),
        )
        batch_op.drop_index(
            "ix_cancellations_confirm",
            postgresql_where=sa.text("confirm_at IS NOT NULL"),
            sqlite_where=sa.text("confirm_at IS NOT NULL"),
        )

    op.drop_table("cancellations")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_events_unpublished",
            postgresql_where=sa.text("publish_at IS NOT NULL"),
            sqlite_where=sa.text("publish_at IS NOT NULL"),
        )
        batch_op.drop_index("ix_events_cancellation_id")

    op.drop_table("events")
    op.drop_table("dead_letters")
    op.drop_table("connections")
