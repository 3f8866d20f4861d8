"""Events of cancels that have ended, as if a worker had recorded them: nobody has read or sent them. Knows rows."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.ledgers import CONNECTIONS

if TYPE_CHECKING:
    from bench.ledgers import Ledger

_EVENTS = """
WITH ended AS (
  INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, requested_at, received_at, priority,
                             status, ended_at, verdict, evidence, reference_id, order_number, metadata, requested_by)
  SELECT gen_random_uuid(), 'shop-' || n % :connections, :lot || n, :lot || n, now(), now(), 'normal',
         'succeeded', now(), 'cancelled', 'response', 'REF-' || n, '#' || n, '{"channel": "web"}', 'oms'
  FROM generate_series(1, :count) AS n RETURNING id, connection_id, order_id)
INSERT INTO events (cancellation_id, type, payload, created_at)
SELECT id, 'cancellation.ended', json_build_object('generation', 1, 'status', 'succeeded', 'verdict', 'cancelled',
  'evidence', 'response', 'as_of', now(), 'safe_to_refund', 'yes', 'reason', 'cancelled', 'attempts', 1)::text, now()
FROM ended
"""


def write(ledger: Ledger, events: int) -> None:
    """Write so many events, each of an order of its own."""
    values = {"connections": CONNECTIONS, "lot": f"{uuid.uuid4().hex[:12]}-", "count": events}
    with ledger.engine.begin() as db:
        db.execute(text(_EVENTS), values)
