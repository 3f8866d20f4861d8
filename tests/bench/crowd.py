"""A ledger as it is after a year: what ended, what waits, and what a person must look at. Knows rows, not who asks.

Row n is the n-th of so many, received evenly over DAYS; what is rare, and how rare, stands in the statements.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.ledgers import CONNECTIONS
from bench.report import console

if TYPE_CHECKING:
    from sqlalchemy import Engine

DAYS = 400
OTHERS = 200  # connections beside the bench's own; the last of them has ten rows, every other one nine thousand
BATCH = 2_000  # rows of one batch; of one row in four
WAITING = 20_000
WAITING_BATCH = "waits.csv-0123456789ab"

_CONNECTIONS = """
INSERT INTO connections (id, name, owner, integration_name, access_token, hold_reason, held_at, created_at, updated_at)
SELECT 'c-' || n, 'Customer ' || n, 'team-' || n % 7, 'system-' || n % 9, CASE WHEN n > 0 THEN 'encrypted' END,
  CASE WHEN n = 0 THEN 'operator' END, CASE WHEN n = 0 THEN now() END, now(), now()
FROM generate_series(0, :others) AS n
"""
# Nothing is left open that a worker would begin to read again: it would be measured too.
_ENDED = """
INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_by, metadata,
  requested_at, received_at, reference_id, order_number, batch, status, attempts, claims, first_sent_at, ended_at,
  verdict, evidence, outcome_reason, order_status, order_created_at, as_of, needs_person)
SELECT gen_random_uuid(),
  CASE WHEN n % 10 = 0 THEN 'shop-' || n / 10 % :connections
       WHEN n % 200003 = 1 THEN 'c-' || :others ELSE 'c-' || 1 + n % (:others - 1) END,
  'order-' || n, 'order-' || n, (ARRAY['normal', 'normal', 'bulk', 'urgent'])[1 + n % 4],
  CASE WHEN n % 1009 = 0 THEN 'anna' ELSE 'oms' END,
  CASE n % 20 WHEN 3 THEN json_build_object('channel', 'web', 'ticket', 'T-' || n)
              WHEN 13 THEN json_build_object('channel', 'app', 'ticket', 'T-' || n) END,
  at, at, 'REF-' || n, '#' || n, CASE WHEN n / :batch % 4 = 0 THEN 'file-' || n / :batch || '.csv-0123456789ab' END,
  status, 1, 1, at + interval '1 s', at + interval '2 s',
  CASE status WHEN 'exhausted' THEN 'unknown' WHEN 'succeeded' THEN 'cancelled' ELSE 'not_cancelled' END,
  CASE WHEN status = 'exhausted' THEN NULL WHEN n % 50021 = 0 THEN 'person'
       WHEN status = 'succeeded' THEN 'response' ELSE 'fresh_read_back' END,
  CASE WHEN n % 100003 = 0 THEN 'not_supported' WHEN status = 'succeeded' THEN 'cancelled' ELSE 'already_shipped' END,
  CASE status WHEN 'succeeded' THEN 'cancelled' ELSE 'fulfilled' END, at - n % 5000 * interval '1 min',
  at + interval '2 s', CASE WHEN status = 'exhausted' THEN 'unreadable' END
FROM (SELECT n, now() - (:count - n + 1) * (:days * interval '1 day' / :count) AS at,
        CASE WHEN n % 20011 = 0 THEN 'exhausted' WHEN n % 5003 = 0 THEN 'withdrawn' WHEN n % 20 = 7 THEN 'rejected'
             ELSE 'succeeded' END AS status
      FROM generate_series(1, :count) AS n) AS made
"""
# Half of them wait for their time, half for their connection, which an operator holds.
_WAITING = """
INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status,
  run_at, attempts, claims, reference_id, order_number, batch)
SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN 'c-' || 1 + n % (:others - 1) ELSE 'c-0' END, 'waiting-' || n,
  'waiting-' || n, 'normal', at, at, CASE WHEN n % 2 = 0 THEN 'waiting' ELSE 'pending' END,
  CASE WHEN n % 2 = 0 THEN now() + interval '12 hours' + n * interval '1 millisecond' END, n % 2, n % 2,
  'W-' || n, '#W' || n, :name
FROM (SELECT n, now() - n * interval '1 s' AS at FROM generate_series(1, :count) AS n) AS made
"""
_ATTEMPTS = """
INSERT INTO attempts (cancellation_id, number, kind, generation, started_at, duration_ms, status, reason, replayed)
SELECT id, 1, 'cancel', 1, first_sent_at, 120, 200, outcome_reason, false FROM cancellations WHERE ended_at IS NOT NULL
"""
# The order's document is kept for ninety days, its events as long as the rest; of these every second one is here.
_DOCUMENTS = """
INSERT INTO documents (cancellation_id, order_snapshot, unused_fields, kept_at)
SELECT id, repeat(md5(id::text), 45), '[]', ended_at FROM cancellations WHERE ended_at > now() - interval '90 days'
"""
_EVENTS = """
INSERT INTO events (cancellation_id, type, payload, created_at)
SELECT id, 'cancellation.ended', json_build_object('id', id, 'order_id', order_id)::text, ended_at
FROM cancellations WHERE ended_at IS NOT NULL AND right(order_id, 1) IN ('0', '2', '4', '6', '8')
"""


_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE tablename IN ('cancellations', 'documents', 'events') AND indexname NOT LIKE 'pk_%'
"""


def fill(engine: Engine, rows: int) -> None:
    """Fill an empty ledger with so many ended rows and what is beside them, vacuumed as in the long run."""
    began = time.monotonic()
    values = {"connections": CONNECTIONS, "others": OTHERS, "batch": BATCH, "days": DAYS, "count": rows}
    with engine.begin() as connection:
        # In a third of the time: indexes are made of what is there, and who refers to whom is not looked up again.
        indexes = connection.execute(text(_INDEXES)).all()
        for index in indexes:
            connection.execute(text(f"DROP INDEX {index.indexname}"))
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
        for statement in (_CONNECTIONS, _ENDED, _ATTEMPTS, _DOCUMENTS, _EVENTS):
            connection.execute(text(statement), values)
        connection.execute(text(_WAITING), values | {"count": min(WAITING, rows // 10), "name": WAITING_BATCH})
        for index in indexes:
            connection.exec_driver_sql(index.indexdef.replace("%", "%%"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    console.print(f"  {rows:,} ended rows and what is beside them in {time.monotonic() - began:.0f} s")
