"""What one turn of the dispatcher asks of PostgreSQL, with few and many rows waiting, few and many connections."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from bench.contenders import OURS
from bench.report import Spread, Verdict, console, print_table, ratios
from worker.ledger import selection, transitions
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bench.bench import Bench

CASES = ((10, 1_000), (10, 1_000_000), (1_000, 1_000_000))  # connections, rows that wait
TURNS = 30
SEATS = 32

_CONNECTIONS = """
INSERT INTO connections (id, access_token, created_at, updated_at)
SELECT 'c-' || lpad(n::text, 4, '0'), 'encrypted', now(), now() FROM generate_series(0, :connections - 1) AS made(n)
"""
_ROWS = """
INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status)
SELECT CAST('00000000-0000-5000-8000-' || lpad(n::text, 12, '0') AS uuid),
  'c-' || lpad((n % :connections)::text, 4, '0'), 'o-' || n, 'o-' || n,
  (ARRAY['urgent', 'normal', 'bulk'])[1 + n % 3], now(), now(), 'pending'
FROM generate_series(0, :rows - 1) AS made(n)
"""


def run(bench: Bench) -> list[Verdict]:
    for connections, rows in CASES:
        ledger = bench.ledgers.fresh(is_ours=True)
        with ledger.engine.connect() as connection:
            connection.execute(text(_CONNECTIONS), {"connections": connections})
            connection.execute(text(_ROWS), {"connections": connections, "rows": rows})
            connection.commit()
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM ANALYZE")
        engine = open_ledger(ledger.url, plan_once=True)  # as a worker does
        for number in bench.rounds():
            with engine.connect() as connection:
                facts = _turns(connection, connections)
            bench.note(OURS, number, **{f"{name}_{connections}_{rows}": value for name, value in facts.items()})
        with engine.connect() as connection:
            _explain(connection, connections, rows)
        engine.dispose()
        bench.ledgers.drop(ledger)
    shown = [
        [
            f"{rows:,} rows, {connections:,} connections",
            *(Spread.of(_values(bench, name, connections, rows)) for name in ("queue_ms", "look_ms")),
        ]
        for connections, rows in CASES
    ]
    print_table(
        "One turn of the dispatcher", ("", "hand out 32 rows, ms", "look at everybody, once a second, ms"), shown
    )
    few, many, wide = (_values(bench, "queue_ms", *case) for case in CASES)
    return [
        Verdict(what="ticks: a million rows / a thousand", value=ratios(many, few), target=2.0, at_least=False),
        Verdict(what="ticks: 1,000 connections / 10", value=ratios(wide, many), target=2.0, at_least=False),
    ]


def _values(bench: Bench, name: str, connections: int, rows: int) -> list[float]:
    column = f"{name}_{connections}_{rows}"
    return [each[column] for each in bench.numbers if column in each]


def _shares(connections: int) -> dict[str, int]:
    names = [f"c-{n:04}" for n in range(min(connections, SEATS))]
    return {name: SEATS // len(names) for name in names}


def _turns(connection: Connection, connections: int) -> dict[str, float]:
    queue, look = 0.0, 0.0
    for _ in range(TURNS):
        began = time.perf_counter()
        transitions.claim_next(connection, _shares(connections), "bench", 10)
        queue += time.perf_counter() - began
        connection.rollback()
        began = time.perf_counter()
        selection.ready_connections(connection)
        look += time.perf_counter() - began
        connection.rollback()
    return {"queue_ms": queue / TURNS * 1000, "look_ms": look / TURNS * 1000}


def _explain(connection: Connection, connections: int, rows: int) -> None:
    asked: list[tuple[str, Any]] = []

    def keep(*told: Any) -> None:
        asked.append((told[2], told[3]))

    event.listen(connection, "before_cursor_execute", keep)
    transitions.claim_next(connection, _shares(connections), "bench", 10)
    connection.rollback()
    event.remove(connection, "before_cursor_execute", keep)
    statement, parameters = next(each for each in asked if each[0].startswith("WITH"))
    plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters).scalars()
    console.print(f"{rows:,} rows, {connections:,} connections:\n" + "\n".join(plan), markup=False, highlight=False)
