"""What operators ask of connections costs what is live, never what has ended, nor what a producer has invented."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text

from worker.ledger import connections, holds
from worker.ledger.database import open_ledger, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from worker.ledger.vault import TokenVault

CUSTOMERS, UNKNOWN, CROWD, LIVE = 20, 5_000, 40_000, 30
MAX_READ = 8 * LIVE + 4 * (CUSTOMERS + connections.SHOWN_UNKNOWN)

ENDED = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at,
                               status, ended_at, verdict)
    SELECT gen_random_uuid(), 'shop-' || n % :customers, 'e-' || n, 'e-' || n, 'bulk', now(), now(), 'succeeded',
           now(), 'cancelled' FROM generate_series(1, :count) AS n
"""
STILL_LIVE = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at,
                               status, run_at, lease_owner, lease_expires_at)
    SELECT gen_random_uuid(), 'shop-' || n % 3, 'l-' || n, 'l-' || n, 'bulk', now(), now(),
           (ARRAY['pending', 'waiting', 'in_flight'])[1 + n % 3], CASE WHEN n % 3 = 1 THEN now() END,
           CASE WHEN n % 3 = 2 THEN 'w' END, CASE WHEN n % 3 = 2 THEN now() END
    FROM generate_series(1, :count) AS n
"""
INVENTED = """
    INSERT INTO connections (id, name, hold_reason, held_at, created_at, updated_at)
    SELECT 'invented-' || n, 'invented-' || n, 'unknown_connection', now(), now(), now()
    FROM generate_series(1, :count) AS n
"""


@pytest.fixture
def ledger(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    """A ledger as a command opens it, full of what has ended, beside a little that lives and many unknown ids."""
    engine = open_ledger(make_database("postgresql"), pool_size=1)
    with engine.begin() as db:
        for number in range(CUSTOMERS):
            connections.add(db, f"shop-{number}", vault.encrypt("token"))
        db.execute(text(INVENTED), {"count": UNKNOWN})
        db.execute(text(ENDED), {"count": CROWD, "customers": CUSTOMERS})
        db.execute(text(STILL_LIVE), {"count": LIVE})
    yield engine
    engine.dispose()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read_of_cancellations(db: Connection, work: Callable[[Connection], Any]) -> int:
    """Run it, and return how many rows of cancellations its questions read."""
    asked: list[tuple[str, Any]] = []

    def collect(_db: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            asked.append((statement, parameters))

    event.listen(db, "before_cursor_execute", collect)
    work(db)
    event.remove(db, "before_cursor_execute", collect)
    read = 0
    for statement, parameters in asked:
        (found,) = db.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalars()
        plans = found if isinstance(found, list) else json.loads(found)
        for node in nodes(plans[0]["Plan"]):
            if node.get("Relation Name") == "cancellations":
                read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    assert asked
    return int(read)


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda db: connections.list_all(db, unknown=connections.SHOWN_UNKNOWN), id="list and doctor"),
        pytest.param(lambda db: connections.find(db, "shop-1"), id="hold, resume and rotate"),
        pytest.param(lambda db: connections.count_waiting(db, "shop-1"), id="remove"),
        pytest.param(connections.count_unknown, id="how many are unknown"),
    ],
)
def test_a_command_about_connections_reads_nothing_that_has_ended(
    ledger: Engine, work: Callable[[Connection], Any], analyzed: bool
) -> None:
    if analyzed:
        with ledger.connect() as db:
            db.execute(text("ANALYZE"))
            db.commit()
    with ledger.begin() as db:
        assert MAX_READ >= read_of_cancellations(db, work)


def test_what_is_live_is_counted_whatever_its_status(ledger: Engine) -> None:
    with read_only(ledger) as db:
        listed = {row.id: row.waiting for row in connections.list_all(db)}
        each = {name: connections.count_waiting(db, name) for name in ("shop-0", "shop-1", "shop-2", "shop-3")}

    assert {"shop-0": 10, "shop-1": 10, "shop-2": 10, "shop-3": 0} == each
    assert each == {name: listed[name] for name in each}
    assert LIVE == sum(count or 0 for count in listed.values())


def test_of_what_nobody_has_added_a_few_are_listed_and_the_rest_is_a_number(ledger: Engine) -> None:
    with ledger.begin() as db:
        holds.hold_by_operator(db, "invented-7")
    with read_only(ledger) as db:
        listed = [row.id for row in connections.list_all(db, unknown=3)]
        everything = connections.list_all(db)
        unknown = connections.count_unknown(db)

    assert {"invented-7", *(f"shop-{number}" for number in range(CUSTOMERS))} == set(listed[:-3])
    assert ["invented-1", "invented-10", "invented-100"] == listed[-3:]
    assert UNKNOWN - 1 == unknown
    assert CUSTOMERS + UNKNOWN == len(everything)
