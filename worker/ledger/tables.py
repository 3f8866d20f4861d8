"""The tables, with the rules in the schema. Knows names and types; does not know who reads or writes.

`order_snapshot` holds personal data; `access_token` is encrypted. Neither may leave the ledger by a log or an event.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

from worker.cancellation.lifecycle import FINAL, UNSENT, Evidence, Status, Verdict
from worker.ledger.sqltypes import Instant, RecordId, RowId

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _words(names: object) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))  # type: ignore[call-overload]


HOLD_REASONS = ("credentials", "operator", "outage", "trackstar_outage", "unknown_connection")

connections = Table(
    "connections",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("name", String(255)),
    Column("integration_name", String(255)),
    Column("access_token", Text),  # a Fernet token; null while nobody has added the connection
    Column("writes_per_second", Float),  # null: the setting
    Column("hold_reason", String(32)),
    Column("held_at", Instant),
    Column("probe_at", Instant),  # when one real job may be sent to see whether the hold can end
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    CheckConstraint(f"hold_reason IN ({_words(HOLD_REASONS)})", name="hold_reason_known"),
    CheckConstraint("(hold_reason IS NULL) = (held_at IS NULL)", name="held_has_time"),
    CheckConstraint("access_token IS NOT NULL OR hold_reason IS NOT NULL", name="open_has_token"),
)

cancellations = Table(
    "cancellations",
    metadata,
    Column("id", RecordId, primary_key=True),
    # The intent, as the producer stated it.
    Column("connection_id", String(255), ForeignKey("connections.id"), nullable=False),
    Column("order_id", String(255), nullable=False),
    Column("idempotency_key", Text, nullable=False),
    Column("priority", String(8), nullable=False),
    Column("send_by", Instant),
    Column("requested_by", Text),
    Column("reason", Text),
    Column("metadata", JSON(none_as_null=True)),
    Column("requested_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    # Where it stands.
    Column("status", String(16), nullable=False),
    Column("run_at", Instant),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("claims", Integer, nullable=False, server_default=text("0")),  # rises with each claim: the fence
    Column("lease_owner", String(255)),
    Column("lease_expires_at", Instant),
    Column("generation", Integer, nullable=False, server_default=text("1")),
    Column("first_sent_at", Instant),  # when the first attempt of this generation began
    Column("ended_at", Instant),
    # What we know.
    Column("verdict", String(16)),
    Column("evidence", String(32)),
    Column("outcome_reason", String(64)),
    Column("outcome_message", Text),
    Column("order_status", Text),
    Column("order_snapshot", Text),  # the order's JSON as it came, not as we understand it
    Column("unused_fields", Text),
    Column("confirm_at", Instant),  # the next read-back
    Column("warned_at", Instant),  # when it was announced that it cannot be sent by its send_by
    CheckConstraint(f"status IN ({_words(Status)})", name="status_known"),
    CheckConstraint(f"verdict IN ({_words(Verdict)})", name="verdict_known"),
    CheckConstraint(f"evidence IN ({_words(Evidence)})", name="evidence_known"),
    CheckConstraint("priority IN ('urgent', 'normal', 'bulk')", name="priority_known"),
    CheckConstraint("(status = 'waiting') = (run_at IS NOT NULL)", name="waiting_has_run_at"),
    CheckConstraint(f"(status IN ({_words(FINAL)})) = (ended_at IS NOT NULL)", name="final_has_ended_at"),
    CheckConstraint(
        "(status IN ('queued', 'in_flight')) = (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
        name="lease_while_handed_out",
    ),
    CheckConstraint("ended_at IS NULL OR verdict IS NOT NULL", name="final_has_verdict"),
    CheckConstraint("confirm_at IS NULL OR ended_at IS NOT NULL", name="confirm_after_end"),
    CheckConstraint("attempts >= 0 AND claims >= attempts AND generation >= 1", name="counters_sane"),
    # (connection_id, idempotency_key) is unique by the id, which is made of them.
)

c = cancellations.c


def _status(*names: str) -> ColumnElement[bool]:
    return c.status.in_([literal_column(f"'{name}'") for name in names])


# Each index holds only the rows that someone waits for, so millions of ended ones cost nothing. A query names the
# condition as the index does, in its text: with a status for a parameter a plan that is kept cannot use the index.
PENDING = c.status == literal_column("'pending'")
WAITING = c.status == literal_column("'waiting'")
LEASED = _status("queued", "in_flight")
# A refusal that waits to be read (its evidence says so) is not sent again, so its send_by does not matter.
UNSENT_IN_TIME = _status(*sorted(UNSENT)) & c.send_by.is_not(None) & c.evidence.is_(None)
# What was sent before and waits for its turn again: it is given up when the retry horizon has passed.
SENT_BEFORE = PENDING & c.first_sent_at.is_not(None)
Index(
    "ix_cancellations_pending",
    c.connection_id,
    c.priority.desc(),  # urgent, normal, bulk: the alphabet happens to run backwards
    c.send_by,
    c.requested_at,
    postgresql_where=PENDING,
    sqlite_where=PENDING,
)
Index("ix_cancellations_due", c.run_at, postgresql_where=WAITING, sqlite_where=WAITING)
Index("ix_cancellations_leased", c.lease_expires_at, postgresql_where=LEASED, sqlite_where=LEASED)
Index("ix_cancellations_send_by", c.send_by, postgresql_where=UNSENT_IN_TIME, sqlite_where=UNSENT_IN_TIME)
Index("ix_cancellations_sent_before", c.first_sent_at, postgresql_where=SENT_BEFORE, sqlite_where=SENT_BEFORE)
_unproven = c.confirm_at.is_not(None)
Index("ix_cancellations_confirm", c.confirm_at, postgresql_where=_unproven, sqlite_where=_unproven)
Index("ix_cancellations_order", c.order_id)
Index("ix_cancellations_received_at", c.received_at)

attempts = Table(
    "attempts",
    metadata,
    Column("cancellation_id", RecordId, ForeignKey("cancellations.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # the claim's number
    Column("kind", String(8), primary_key=True),  # a claim makes at most one cancel and one read
    Column("generation", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("duration_ms", Integer),
    Column("status", Integer),  # of HTTP; null where no answer came
    Column("origin", String(16)),
    Column("reason", String(64), nullable=False),
    Column("error", Text),  # bounded
    Column("request_id", String(255)),
    Column("replayed", Boolean(create_constraint=False), nullable=False),
    Column("retry_after", Float),
    CheckConstraint("kind IN ('cancel', 'read')", name="kind_known"),
)

events = Table(
    "events",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("cancellation_id", RecordId),  # null: about a connection or a dead letter
    Column("type", String(64), nullable=False),
    Column("payload", Text, nullable=False),  # JSON: ids, statuses and reasons only
    Column("created_at", Instant, nullable=False),
    Column("publish_at", Instant),  # null once it is on the stream
)
_unpublished = events.c.publish_at.is_not(None)
Index("ix_events_unpublished", events.c.publish_at, postgresql_where=_unpublished, sqlite_where=_unpublished)
Index("ix_events_cancellation_id", events.c.cancellation_id)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("source", String(64), nullable=False),
    Column("entry_id", String(64)),  # on that source; unique, so that taking it twice keeps it once
    Column("raw", LargeBinary, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("error", Text, nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("requeued_at", Instant),  # when a person sent it again
    UniqueConstraint("source", "entry_id"),
)
