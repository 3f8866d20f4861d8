"""The peers' two tables: what an application would have, with fewer columns, checks and indexes than this worker's."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, ForeignKey, Integer, MetaData, String, Table, Text, Uuid

metadata = MetaData()

cancellations = Table(
    "cancellations",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("connection_id", String(255), nullable=False),
    Column("order_id", String(255), nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("claimed_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("order_status", Text),
    Column("order_snapshot", Text),
)

attempts = Table(
    "attempts",
    metadata,
    Column("cancellation_id", Uuid(as_uuid=False), ForeignKey("cancellations.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("request_id", String(255)),
)
