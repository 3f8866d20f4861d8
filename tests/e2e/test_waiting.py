"""What waits costs nothing: a hundred thousand rows that are not due hold no memory and stand in nobody's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest
from harness.ledgers import SLOW_LEDGERS
from harness.truth import record_id, untruths
from sqlalchemy import text

if TYPE_CHECKING:
    from harness.deployment import Deployment

pytestmark = pytest.mark.deployment(ledgers=SLOW_LEDGERS, shops=("shop-1", "held"))

WAITING = 100_000
# ruff: noqa: S608 - the words put together here are our own
NUMBERS = {
    "postgresql": f"SELECT n FROM generate_series(1, {WAITING}) AS numbers(n)",
    "sqlite": f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {WAITING}) "
    "SELECT n FROM numbers",
}
MADE_ID = {
    "postgresql": "CAST('00000000-0000-5000-8000-' || lpad(n::text, 12, '0') AS uuid)",
    "sqlite": "'00000000-0000-5000-8000-' || printf('%012d', n)",
}
MOMENT = {"postgresql": "timestamptz", "sqlite": "text"}
LATER = "2999-01-01 00:00:00.000000+00:00"


def fill(deployment: Deployment) -> None:
    """Let half of the rows wait for a retry years ahead, and half for a connection that is held."""
    kind = deployment.ledger.dialect.name
    with deployment.ledger.begin() as connection:
        if kind == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        hold = f"UPDATE connections SET hold_reason = 'operator', held_at = '{LATER}' WHERE id = 'held'"
        connection.execute(text(hold))
        connection.execute(
            text(
                "INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, "
                "received_at, status, run_at, verdict) "
                f"SELECT {MADE_ID[kind]}, CASE WHEN n % 2 = 0 THEN 'shop-1' ELSE 'held' END, 'w-' || n, 'w-' || n, "
                f"'bulk', '{LATER}', '{LATER}', CASE WHEN n % 2 = 0 THEN 'waiting' ELSE 'pending' END, "
                f"CASE WHEN n % 2 = 0 THEN CAST('{LATER}' AS {MOMENT[kind]}) END, "
                f"CASE WHEN n % 2 = 0 THEN 'unknown' END FROM ({NUMBERS[kind]}) AS made"
            )
        )


def test_what_waits_holds_no_memory_of_a_worker_and_a_fresh_cancel_is_done_beside_it(
    deployment: Deployment, shop: str
) -> None:
    worker = deployment.start_worker()
    orders = [f"o-{number}" for number in range(10)]
    for order_id in orders:
        deployment.trackstar.add_order(shop, order_id)
    deployment.client.wait(deployment.client.enqueue(shop, orders[0]), 30)
    before = psutil.Process(worker.process.pid).memory_info().rss
    fill(deployment)
    for order_id in orders[1:]:
        deployment.client.wait(deployment.client.enqueue(shop, order_id), 30)
    after = psutil.Process(worker.process.pid).memory_info().rss

    assert after < before * 1.2
    assert {"succeeded"} == {deployment.record(record_id(each)).status for each in orders}
    assert [] == untruths(deployment, orders, shop)
    assert 0 == deployment.redis.llen("cancellations")
