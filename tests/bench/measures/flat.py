"""Does a job cost more, or a worker hold more, when the ledger is full? An empty ledger against one with millions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import CONNECTIONS
from bench.report import Spread, Verdict, console, print_table, ratios

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.ledgers import Ledger

MOST = 1.1
WARM = 1_000  # else the lot is sized by a worker that is still cold
# Each measure begins with a checkpoint, after which every page that is touched is written whole once. In a short lot,
# among millions of rows, that would be most of what is measured, and in life it is spread over minutes.
LONGER = 4
WAITING_SHARE = 0.1  # of the ended ones
LEDGERS = ("empty", "full")
IDLE_SECONDS = 3.0

_ENDED = """
INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status,
  attempts, claims, first_sent_at, ended_at, verdict, evidence, outcome_reason, order_status,
  reference_id, order_number)
SELECT gen_random_uuid(), 'shop-' || n % :connections, 'ended-' || n, 'ended-' || n, 'normal', at, at, 'succeeded',
  1, 1, at, at, 'cancelled', 'response', 'cancelled', 'cancelled', 'REF-' || n,
  '#' || n
FROM (SELECT n, now() - interval '90 days' + n * interval '3 seconds' AS at FROM generate_series(1, :count) AS n)
"""
# Half of them wait for their time, half for their connection, which an operator holds.
_WAITING = """
INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status,
  run_at, attempts, claims)
SELECT gen_random_uuid(), CASE WHEN n % 2 = 0 THEN 'shop-' || n % :connections ELSE 'held' END, 'waiting-' || n,
  'waiting-' || n, 'normal', now() - interval '1 hour', now() - interval '1 hour',
  CASE WHEN n % 2 = 0 THEN 'waiting' ELSE 'pending' END,
  CASE WHEN n % 2 = 0 THEN now() + interval '2 hours' + n * interval '1 millisecond' END, n % 2, n % 2
FROM generate_series(1, :count) AS n
"""
_HELD = """
INSERT INTO connections (id, name, hold_reason, held_at, created_at, updated_at)
VALUES ('held', 'held', 'operator', now(), now(), now())
"""
_ATTEMPTS = """
INSERT INTO attempts (cancellation_id, number, kind, generation, started_at, duration_ms, status, reason, replayed)
SELECT id, 1, 'cancel', 1, ended_at, 120, 200, 'cancelled', false FROM cancellations WHERE ended_at IS NOT NULL
"""
_DOCUMENTS = """
INSERT INTO documents (cancellation_id, order_snapshot, unused_fields, kept_at)
SELECT id, repeat(md5(id::text), 45), '[]', ended_at FROM cancellations WHERE ended_at IS NOT NULL
"""
_EVENTS = """
INSERT INTO events (cancellation_id, type, payload, created_at)
SELECT id, 'cancellation.ended', json_build_object('id', id, 'order_id', order_id)::text, ended_at
FROM cancellations WHERE ended_at IS NOT NULL
"""


def run(bench: Bench) -> list[Verdict]:
    ledgers = {name: bench.ledgers.fresh(is_ours=True) for name in LEDGERS}
    _fill(bench, ledgers["full"])
    for number in bench.rounds():
        for name in LEDGERS if number % 2 == 0 else LEDGERS[::-1]:
            bench.trying(OURS, lambda n=number, at=name: _measure(bench, ledgers[at], n, at))
    columns = ("rate", "cpu", "idle_mb", "memory_mb")
    print_table(
        f"{bench.options.rows:,} ended rows and a tenth as many waiting",
        ("ledger", "jobs/s", "CPU s per 1,000, worker and PostgreSQL", "MB idle", "MB after the jobs"),
        [[name, *(Spread.of(bench.values(OURS.name, column, ledger=name)) for column in columns)] for name in LEDGERS],
    )
    return [
        _verdict(bench, "flat: seconds per job, full ÷ empty", "seconds_per_job"),
        _verdict(bench, "flat: CPU per job, full ÷ empty", "cpu"),
        _verdict(bench, "flat: worker memory, full ÷ empty", "memory_mb"),
    ]


def _verdict(bench: Bench, what: str, column: str) -> Verdict:
    full, empty = (bench.values(OURS.name, column, ledger=name) for name in ("full", "empty"))
    return Verdict(what=what, value=ratios(full, empty), target=MOST, at_least=False)


def _measure(bench: Bench, ledger: Ledger, number: int, name: str) -> None:
    with bench.working(OURS, ledger) as running:
        time.sleep(IDLE_SECONDS)
        idle = running.memory
        rate = running.warm_up(WARM)
        measured = running.measure(LONGER * bench.options.lot(rate), delay=0.0)
    bench.note(
        OURS,
        number,
        ledger=name,
        rate=measured.rate,
        seconds_per_job=measured.seconds / measured.jobs,
        cpu=(measured.worker_cpu + measured.postgres_cpu) * 1000 / measured.jobs,
        idle_mb=idle / 1e6,
        memory_mb=measured.worker_memory / 1e6,
    )


def _fill(bench: Bench, ledger: Ledger) -> None:
    began = time.monotonic()
    counts = {"connections": CONNECTIONS, "count": bench.options.rows}
    with ledger.engine.begin() as connection:
        connection.execute(text(_HELD))
        connection.execute(text(_ENDED), counts)
        connection.execute(text(_ATTEMPTS))
        connection.execute(text(_DOCUMENTS))
        connection.execute(text(_EVENTS))
        connection.execute(text(_WAITING), counts | {"count": round(bench.options.rows * WAITING_SHARE)})
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))  # as autovacuum would have, over the months
    console.print(f"  {bench.options.rows:,} ended rows and their waiting ones in {time.monotonic() - began:.0f} s")
