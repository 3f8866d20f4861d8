"""Three views for dashboards and reports, without personal data (docs/data.md).

Old code runs beside it: it knows no views. On PostgreSQL to make one takes no lock that anybody waits for; but while
it is there, no column that it names can be dropped or changed, and SQLite copies no table below it. A later revision
that does either drops the views first and makes them again: with the same columns, and new ones at the end.
"""

from __future__ import annotations

from alembic import op

from worker.ledger.dialects import is_sqlite

revision = "c8e15f7a3d42"
down_revision = "b7c2e40d91a3"
branch_labels = None
depends_on = None

step = "expand"
release = "0.2.0"

SECONDS = "CAST(extract(epoch FROM {later} - {earlier}) AS double precision)"
SECONDS_ON_SQLITE = "(julianday({later}) - julianday({earlier})) * 86400.0"

# A verdict is told only after the end: that of a live row is its memory. Clocks differ, so no time is negative.
OUTCOMES = """
CREATE VIEW cancellation_outcomes_v1 AS
SELECT
    c.id AS cancellation_id,
    c.connection_id,
    k.name AS connection_name,
    k.integration_name AS integration,
    c.priority,
    c.status,
    CASE WHEN c.ended_at IS NOT NULL THEN c.verdict END AS verdict,
    CASE WHEN c.ended_at IS NOT NULL THEN c.evidence END AS evidence,
    c.outcome_reason AS reason,
    c.needs_person,
    c.requested_at,
    c.received_at,
    c.send_by,
    c.first_sent_at,
    c.ended_at,
    CASE WHEN c.ended_at IS NOT NULL THEN coalesce(c.as_of, c.ended_at) END AS as_of,
    c.known_by,
    c.attempts,
    c.generation,
    CASE WHEN c.ended_at > c.requested_at THEN {to_end} WHEN c.ended_at IS NOT NULL THEN 0 END AS seconds_until_ended,
    CASE
        WHEN c.ended_at IS NULL OR c.verdict NOT IN ('cancelled', 'not_cancelled') THEN NULL
        WHEN coalesce(c.as_of, c.ended_at) > c.requested_at THEN {to_proof}
        ELSE 0
    END AS seconds_until_proven
FROM cancellations AS c
JOIN connections AS k ON k.id = c.connection_id
"""
ATTEMPTS = """
CREATE VIEW attempts_v1 AS
SELECT
    a.cancellation_id,
    c.connection_id,
    k.name AS connection_name,
    c.received_at,
    a.number,
    a.kind,
    a.generation,
    a.started_at,
    CAST(a.duration_ms AS double precision) / 1000 AS duration_seconds,
    a.status AS http_status,
    a.origin,
    a.reason,
    a.replayed,
    a.retry_after AS retry_after_seconds
FROM attempts AS a
JOIN cancellations AS c ON c.id = a.cancellation_id
JOIN connections AS k ON k.id = c.connection_id
"""
CONNECTIONS = """
CREATE VIEW connections_v1 AS
SELECT
    k.id AS connection_id,
    k.name,
    k.integration_name AS integration,
    k.access_token IS NOT NULL AS has_token,
    k.writes_per_second,
    k.hold_reason,
    k.held_at,
    k.probe_at,
    f.status AS crawl_status,
    f.began_at AS crawl_began_at,
    f.ended_at AS crawl_ended_at,
    f.running_since AS crawl_running_since,
    f.frequency AS crawl_period_seconds,
    f.seen_at AS crawl_seen_at,
    k.created_at,
    k.updated_at
FROM connections AS k
LEFT JOIN freshness AS f ON f.connection_id = k.id
"""
NAMES = ("cancellation_outcomes_v1", "attempts_v1", "connections_v1")


def upgrade() -> None:
    seconds = SECONDS_ON_SQLITE if is_sqlite(op.get_context().dialect.name) else SECONDS
    to_end = seconds.format(earlier="c.requested_at", later="c.ended_at")
    to_proof = seconds.format(earlier="c.requested_at", later="coalesce(c.as_of, c.ended_at)")
    for view in (OUTCOMES.format(to_end=to_end, to_proof=to_proof), ATTEMPTS, CONNECTIONS):
        op.execute(view)


def downgrade() -> None:
    for name in NAMES:
        op.execute(f"DROP VIEW {name}")
