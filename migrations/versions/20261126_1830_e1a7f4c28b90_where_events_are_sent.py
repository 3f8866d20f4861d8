"""Endpoints to which events are sent over HTTP; what each was not sent yet; and every try.

Old code runs beside it: it knows none of them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.ledger.dialects import RowId, UtcTimestamp

revision = "e1a7f4c28b90"
down_revision = "d90b6e3f1c52"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("types", sa.JSON(none_as_null=True)),
        sa.Column("connections", sa.JSON(none_as_null=True)),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text()),
        sa.Column("old_secret_until", UtcTimestamp()),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("failing_since", UtcTimestamp()),
        sa.Column("counted_at", UtcTimestamp()),
        sa.Column("told", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("retry_at", UtcTimestamp()),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_expires_at", UtcTimestamp()),
        sa.Column("created_at", UtcTimestamp(), nullable=False),
        sa.CheckConstraint("state IN ('active', 'paused')", name=op.f("ck_endpoints_state_known")),
        sa.CheckConstraint(
            "(lease_owner IS NULL) = (lease_expires_at IS NULL)", name=op.f("ck_endpoints_lease_has_time")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_endpoints")),
    )
    _create_deliveries()
    op.create_table(
        "delivery_tries",
        sa.Column("id", RowId, autoincrement=True, nullable=False),
        sa.Column("endpoint_id", sa.String(32), nullable=False),
        sa.Column("event_number", sa.BigInteger(), nullable=False),
        sa.Column("try", sa.Integer(), nullable=False),
        sa.Column("at", UtcTimestamp(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_tries")),
    )
    op.create_index("ix_delivery_tries_endpoint", "delivery_tries", ["endpoint_id", "id"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("endpoint_id", sa.String(32), nullable=False),
        sa.Column("event_number", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.String(32), nullable=False),
        sa.Column("due_at", UtcTimestamp()),
        sa.Column("tries", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.ForeignKeyConstraint(["endpoint_id"], ["endpoints.id"], name=op.f("fk_deliveries_endpoint_id")),
        sa.PrimaryKeyConstraint("endpoint_id", "event_number", name=op.f("pk_deliveries")),
    )
    op.create_index("ix_deliveries_subject", "deliveries", ["endpoint_id", "subject", "event_number"])
    tried = sa.text("due_at IS NOT NULL")
    op.create_index(
        "ix_deliveries_due", "deliveries", ["endpoint_id", "due_at"], postgresql_where=tried, sqlite_where=tried
    )


def downgrade() -> None:
    op.drop_table("delivery_tries")
    op.drop_table("deliveries")
    op.drop_table("endpoints")
