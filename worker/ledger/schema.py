"""The tables, with the rules in the schema. Knows names and types; does not know who reads or writes.

`documents` holds personal data; `access_token` and the secrets of endpoints are encrypted. None of them may leave the
ledger by a log or an event.
"""

from __future__ import annotations

import sqlalchemy as sa

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.status import FINAL, UNSENT, Evidence, Status, Verdict
from worker.ledger.dialects import RecordId, RowId, UtcTimestamp, partial_index

metadata = sa.MetaData(
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


HOLD_REASONS = ("credentials", "operator", "outage", "rate_limited", "trackstar_outage", "unknown_connection")

connections = sa.Table(
    "connections",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("name", sa.String(255)),
    sa.Column("owner", sa.String(255)),  # who answers for it, for people
    sa.Column("integration_name", sa.String(255)),
    sa.Column("access_token", sa.Text),  # encrypted (`vault`); null while nobody has added the connection
    sa.Column("writes_per_second", sa.Float),  # null: the setting
    sa.Column("hold_reason", sa.String(32)),
    sa.Column("held_at", UtcTimestamp),
    # When one real job may be sent to see whether the hold can end; of `rate_limited`, when it ends.
    sa.Column("probe_at", UtcTimestamp),
    sa.Column("created_at", UtcTimestamp, nullable=False),
    sa.Column("updated_at", UtcTimestamp, nullable=False),
    sa.CheckConstraint(f"hold_reason IN ({_words(HOLD_REASONS)})", name="hold_reason_known"),
    sa.CheckConstraint("(hold_reason IS NULL) = (held_at IS NULL)", name="held_has_time"),
    sa.CheckConstraint("access_token IS NOT NULL OR hold_reason IS NOT NULL", name="open_has_token"),
)
# Of those that something happens to by itself: thousands that nobody has added cost nothing.
TIMED = connections.c.probe_at.is_not(None)
partial_index("ix_connections_probe_at", connections.c.probe_at, where=TIMED)

cancellations = sa.Table(
    "cancellations",
    metadata,
    sa.Column("id", RecordId, primary_key=True),
    # The intent, as the producer stated it.
    sa.Column("connection_id", sa.String(255), sa.ForeignKey("connections.id"), nullable=False),
    sa.Column("order_id", sa.String(255), nullable=False),
    sa.Column("idempotency_key", sa.Text, nullable=False),
    sa.Column("priority", sa.String(8), nullable=False),
    sa.Column("send_by", UtcTimestamp),
    sa.Column("requested_by", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    sa.Column("requested_at", UtcTimestamp, nullable=False),
    sa.Column("received_at", UtcTimestamp, nullable=False),
    # The OMS's own numbers of the order; what Trackstar says of them corrects what the producer stated.
    sa.Column("reference_id", sa.String(255)),
    sa.Column("order_number", sa.String(255)),
    sa.Column("batch", sa.String(255)),  # what was enqueued together
    sa.Column("traceparent", sa.String(55)),  # the trace it came with, for people who follow it
    sa.Column("producer", sa.String(64)),  # on whose stream it came; null: on the one without a name, or by a session
    # Where it stands.
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("run_at", UtcTimestamp),
    sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("claims", sa.Integer, nullable=False, server_default=sa.text("0")),  # the fencing token
    sa.Column("lease_owner", sa.String(255)),
    sa.Column("lease_expires_at", UtcTimestamp),
    sa.Column("generation", sa.Integer, nullable=False, server_default=sa.text("1")),
    sa.Column("first_sent_at", UtcTimestamp),  # when the first attempt of this generation began
    sa.Column("ended_at", UtcTimestamp),
    # What we know.
    sa.Column("verdict", sa.String(16)),
    sa.Column("evidence", sa.String(32)),
    sa.Column("outcome_reason", sa.String(64)),
    sa.Column("outcome_message", sa.Text),
    sa.Column("order_status", sa.Text),
    # Written by workers of the release before, and moved into `documents`; a text here is newer than the one there.
    sa.Column("order_snapshot", sa.Text),
    sa.Column("unused_fields", sa.Text),
    sa.Column("order_created_at", UtcTimestamp),  # as the order's document says; null where none has
    sa.Column("as_of", UtcTimestamp),  # the instant of which the verdict is true; null in old rows: when it ended
    sa.Column("confirm_at", UtcTimestamp),  # the next read-back
    # Where it is not known yet: the instant by which it will be, or why a person must settle it.
    sa.Column("known_by", UtcTimestamp),
    sa.Column("needs_person", sa.String(32)),
    sa.Column("warned_at", UtcTimestamp),  # when it was announced that it cannot be sent by its send_by
    sa.CheckConstraint(f"status IN ({_words(Status)})", name="status_known"),
    sa.CheckConstraint(f"verdict IN ({_words(Verdict)})", name="verdict_known"),
    sa.CheckConstraint(f"evidence IN ({_words(Evidence)})", name="evidence_known"),
    sa.CheckConstraint(f"priority IN ({_words(PRIORITY_RANK)})", name="priority_known"),
    sa.CheckConstraint("(status = 'waiting') = (run_at IS NOT NULL)", name="waiting_has_run_at"),
    sa.CheckConstraint(f"(status IN ({_words(FINAL)})) = (ended_at IS NOT NULL)", name="final_has_ended_at"),
    sa.CheckConstraint(
        "(status IN ('queued', 'in_flight')) = (lease_owner IS NOT NULL AND lease_expires_at IS NOT NULL)",
        name="lease_while_handed_out",
    ),
    sa.CheckConstraint("ended_at IS NULL OR verdict IS NOT NULL", name="final_has_verdict"),
    sa.CheckConstraint("confirm_at IS NULL OR ended_at IS NOT NULL", name="confirm_after_end"),
    sa.CheckConstraint("attempts >= 0 AND claims >= attempts AND generation >= 1", name="counters_sane"),
    # (connection_id, idempotency_key) is unique by the id, which is made of them.
)

c = cancellations.c


def _status(*names: str) -> sa.ColumnElement[bool]:
    return c.status.in_([sa.literal_column(f"'{name}'") for name in names])


# Each index holds only the rows that someone waits for, so millions of ended ones cost nothing. A query names the
# condition as the index does, in its text: with a status for a parameter a plan that is kept cannot use the index.
PENDING = c.status == sa.literal_column("'pending'")
WAITING = c.status == sa.literal_column("'waiting'")
LEASED = _status("queued", "in_flight")
# A refusal that waits to be read (its evidence says so) is not sent again, so its send_by does not matter.
UNSENT_IN_TIME = _status(*sorted(UNSENT)) & c.send_by.is_not(None) & c.evidence.is_(None)
# What was sent before and waits for its turn again: it is given up when the retry horizon has passed.
SENT_BEFORE = PENDING & c.first_sent_at.is_not(None)
# The order of turn, as `fairness.turn_key` has it. Written as text: only so is it the expression of the index.
_ranks = " ".join(f"WHEN '{name}' THEN {rank}" for name, rank in PRIORITY_RANK.items())
RANK: sa.ColumnElement[int] = sa.literal_column(f"(CASE priority {_ranks} END)", sa.Integer())
IN_TURN = (RANK, c.send_by.asc().nulls_last(), c.requested_at)
partial_index("ix_cancellations_turn", c.connection_id, RANK, c.send_by, c.requested_at, where=PENDING)
partial_index("ix_cancellations_due", c.run_at, where=WAITING)
partial_index("ix_cancellations_leased", c.lease_expires_at, where=LEASED)
partial_index("ix_cancellations_send_by", c.send_by, where=UNSENT_IN_TIME)
partial_index("ix_cancellations_sent_before", c.first_sent_at, where=SENT_BEFORE)
# What waits for a crawl, or for a person.
UNSETTLED = c.known_by.is_not(None) | c.needs_person.is_not(None)
partial_index("ix_cancellations_unsettled", c.connection_id, c.order_id, where=UNSETTLED)
# What later crawls can prove or overturn.
WATCHED = c.verdict.in_([sa.literal_column(f"'{each}'") for each in ("accepted", "cancelled", "unknown")])
partial_index("ix_cancellations_watched", c.connection_id, c.ended_at, c.verdict, where=WATCHED)
# What a worker of an older version ended without proof, date or person: none, once it was read again.
LEFT_OPEN = sa.and_(
    *(column.is_(None) for column in (c.confirm_at, c.known_by, c.needs_person)),
    c.ended_at.is_not(None),
    c.verdict.in_([sa.literal_column(f"'{each}'") for each in ("accepted", "unknown")]),
)
partial_index("ix_cancellations_left_open", c.ended_at, where=LEFT_OPEN)
partial_index("ix_cancellations_confirm", c.confirm_at, where=c.confirm_at.is_not(None))
sa.Index("ix_cancellations_order", c.order_id)
# What people list, the newest first: all, of a connection, of a batch, what did not end as it was hoped.
sa.Index("ix_cancellations_received_at", c.received_at)
sa.Index("ix_cancellations_connection", c.connection_id, c.received_at)
partial_index("ix_cancellations_batch", c.batch, c.received_at, where=c.batch.is_not(None))
FAILED = _status(*sorted(FINAL - {Status.SUCCEEDED}))
partial_index("ix_cancellations_failed", c.received_at, where=FAILED)
# The OMS's own numbers, without case.
partial_index("ix_cancellations_reference", sa.func.lower(c.reference_id), where=c.reference_id.is_not(None))
partial_index("ix_cancellations_number", sa.func.lower(c.order_number), where=c.order_number.is_not(None))
# What is still to be moved into `documents`.
OLD_DOCUMENT = c.order_snapshot.is_not(None) | c.unused_fields.is_not(None)
partial_index("ix_cancellations_old_document", c.id, where=OLD_DOCUMENT)

# The order as Trackstar returned it last. A table of its own, so that a database role can lack it.
documents = sa.Table(
    "documents",
    metadata,
    sa.Column("cancellation_id", RecordId, sa.ForeignKey("cancellations.id"), primary_key=True),
    sa.Column("order_snapshot", sa.Text),  # the order's JSON as it came, not as we understand it
    sa.Column("unused_fields", sa.Text),
    sa.Column("kept_at", UtcTimestamp, nullable=False),
)
sa.Index("ix_documents_kept_at", documents.c.kept_at)

# What Trackstar tells of its copy of each connection's orders, in the ledger's time. A table of its own, because it
# changes often, and a connection's row is read by each claim.
freshness = sa.Table(
    "freshness",
    metadata,
    sa.Column("connection_id", sa.String(255), sa.ForeignKey("connections.id"), primary_key=True),
    sa.Column("trackstar_id", sa.String(255)),  # where it is another than ours
    sa.Column("began_at", UtcTimestamp),  # of the latest crawl that has ended
    sa.Column("ended_at", UtcTimestamp),
    sa.Column("before_began_at", UtcTimestamp),  # of the one before
    sa.Column("running_since", UtcTimestamp),
    sa.Column("frequency", sa.Float),  # seconds
    sa.Column("length", sa.Float),  # seconds
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("seen_at", UtcTimestamp),
    # How far Trackstar's clock was ahead of the ledger's, in seconds, when these instants were told.
    sa.Column("ahead", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("running_ahead", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("failed", UtcTimestamp),  # Trackstar's own instant at which the last crawl began that failed
    sa.Column("force_after", UtcTimestamp),  # a crawl is not asked for before
    sa.Column("look_at", UtcTimestamp),  # when the changes that crawls brought are read next, by whoever claims it
    sa.Column("looked_to", UtcTimestamp),  # up to when all changes are known
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("cancellation_id", RecordId, sa.ForeignKey("cancellations.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # the claim's number
    sa.Column("kind", sa.String(8), primary_key=True),  # a claim makes at most one cancel and one read
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("started_at", UtcTimestamp, nullable=False),
    sa.Column("duration_ms", sa.Integer),
    sa.Column("status", sa.Integer),  # of HTTP; null where no answer came
    sa.Column("origin", sa.String(16)),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error", sa.Text),  # bounded
    sa.Column("request_id", sa.String(255)),
    sa.Column("replayed", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("retry_after", sa.Float),
    sa.CheckConstraint("kind IN ('cancel', 'read')", name="kind_known"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", RowId, primary_key=True, autoincrement=True),
    sa.Column("cancellation_id", RecordId),  # null: about a connection or a dead letter
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),  # JSON: ids, statuses and reasons only
    sa.Column("created_at", UtcTimestamp, nullable=False),
    sa.Column("publish_at", UtcTimestamp),  # null once it is on the stream
    sa.Column("place", sa.BigInteger),  # in the feed; null until somebody reads that far
)
partial_index("ix_events_unpublished", events.c.publish_at, where=events.c.publish_at.is_not(None))
sa.Index("ix_events_cancellation_id", events.c.cancellation_id)
partial_index("ix_events_place", events.c.place, where=events.c.place.is_not(None))
partial_index("ix_events_without_place", events.c.id, where=events.c.place.is_(None))
CONTRADICTED = events.c.type == sa.literal_column("'cancellation.contradicted'")
partial_index("ix_events_contradicted", events.c.created_at, where=CONTRADICTED)

# How far each consumer of the feed has read; the one without a name is the feed's own end.
cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("consumer", sa.String(255), primary_key=True),
    sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column("moved_at", UtcTimestamp, nullable=False),
)

# What was told of each order's refund, over all its cancellations: never the same thing twice.
refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("connection_id", sa.String(255), primary_key=True),
    sa.Column("order_id", sa.String(255), primary_key=True),
    sa.Column("told", sa.String(64), nullable=False),  # in order, a space between; empty: nothing was told so far
    sa.Column("proofs", sa.Integer, nullable=False),  # how many there were: the first one has made the row
    sa.Column("changed_at", UtcTimestamp, nullable=False),
)
sa.Index("ix_refunds_changed_at", refunds.c.changed_at)

# Where events are sent to, over HTTP.
ENDPOINT_STATES = ("active", "paused")
endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("types", sa.JSON(none_as_null=True)),  # of events; null: all
    sa.Column("connections", sa.JSON(none_as_null=True)),  # null: all events, also of none
    # Fernet tokens; the old secret signs too until then.
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("old_secret", sa.Text),
    sa.Column("old_secret_until", UtcTimestamp),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("place", sa.BigInteger, nullable=False),  # in the feed: up to it `deliveries` has what was not delivered
    # How it stands, as `webhooks.rules.Standing` has it.
    sa.Column("failures", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("failing_since", UtcTimestamp),
    sa.Column("counted_at", UtcTimestamp),
    sa.Column("told", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("retry_at", UtcTimestamp),  # nothing is sent to it before
    # Who sends to it: one worker at a time, so that the order is kept.
    sa.Column("lease_owner", sa.String(255)),
    sa.Column("lease_expires_at", UtcTimestamp),
    sa.Column("created_at", UtcTimestamp, nullable=False),
    sa.CheckConstraint(f"state IN ({_words(ENDPOINT_STATES)})", name="state_known"),
    sa.CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease_has_time"),
)

# What an endpoint was not sent yet, of what the feed has up to its place.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("endpoint_id", sa.String(32), sa.ForeignKey("endpoints.id"), primary_key=True),
    sa.Column("event_number", sa.BigInteger, primary_key=True),  # the event's id in `events`
    sa.Column("subject", sa.String(32), nullable=False),  # events of one subject are sent in order
    sa.Column("due_at", UtcTimestamp),  # null: set aside, its tries are used up
    sa.Column("tries", sa.Integer, nullable=False, server_default=sa.text("0")),
)
sa.Index("ix_deliveries_subject", deliveries.c.endpoint_id, deliveries.c.subject, deliveries.c.event_number)
partial_index(
    "ix_deliveries_due", deliveries.c.endpoint_id, deliveries.c.due_at, where=deliveries.c.due_at.is_not(None)
)

# Each try, also of endpoints that are gone.
delivery_tries = sa.Table(
    "delivery_tries",
    metadata,
    sa.Column("id", RowId, primary_key=True, autoincrement=True),
    sa.Column("endpoint_id", sa.String(32), nullable=False),
    sa.Column("event_number", sa.BigInteger, nullable=False),
    sa.Column("try", sa.Integer, nullable=False),
    sa.Column("at", UtcTimestamp, nullable=False),
    sa.Column("duration_ms", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer),  # of HTTP; null where no answer came
    sa.Column("reason", sa.String(64), nullable=False),
)
sa.Index("ix_delivery_tries_endpoint", delivery_tries.c.endpoint_id, delivery_tries.c.id)

# Who has an inbox of its own, and what it may.
producers = sa.Table(
    "producers",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("connections", sa.JSON(none_as_null=True)),  # whose orders it may cancel; null: of all
    sa.Column("urgent", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("per_second", sa.Float),  # jobs that are read from its stream; null: as they come
    sa.Column("created_at", UtcTimestamp, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", RowId, primary_key=True, autoincrement=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("entry_id", sa.String(64)),  # on that source; unique, so that taking it twice keeps it once
    sa.Column("raw", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("received_at", UtcTimestamp, nullable=False),
    sa.Column("requeued_at", UtcTimestamp),  # when a person sent it again
    sa.UniqueConstraint("source", "entry_id"),
)

# What people did. Nobody changes a row. No check of words: a newer command may write one that an older does not know.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", RowId, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTimestamp, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("target_kind", sa.String(32), nullable=False),
    sa.Column("target_id", sa.String(255)),  # null: all of that kind
    sa.Column("reason", sa.Text),
    # Facts that `ledger.audit` names: no token, no document, nothing personal of an order.
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON(none_as_null=True)),
)
# Each in the order in which acts are shown, to the last column: a page is read, and nothing is sorted.
sa.Index("ix_audit_at", audit.c.at, audit.c.id)
sa.Index("ix_audit_actor", audit.c.actor, audit.c.at, audit.c.id)
sa.Index("ix_audit_action", audit.c.action, audit.c.at, audit.c.id)
sa.Index("ix_audit_target_id", audit.c.target_id, audit.c.at, audit.c.id)
