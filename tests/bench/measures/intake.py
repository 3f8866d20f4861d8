"""From the inbox into the ledger: jobs of a held connection, so that nothing is sent and the intake is alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import make_jobs
from bench.processes import cpu_seconds
from bench.report import Spread, Verdict, print_table
from bench.running import StalledError

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.ledgers import Ledger

JOBS = 100_000
TARGET = 10_000.0
PATIENCE_SECONDS = 120.0

_HOLD = "UPDATE connections SET hold_reason = 'operator', held_at = now()"
_TAKEN = "SELECT count(*), extract(epoch FROM max(received_at) - min(received_at)) FROM cancellations"


def run(bench: Bench) -> list[Verdict]:
    for number, _ in bench.interleaved([OURS]):
        bench.trying(OURS, lambda n=number: _measure(bench, n))
    columns = ("rate", "worker_cpu", "postgres_cpu")
    print_table(
        "From the inbox to the ledger, two worker processes",
        ("", "jobs/s", "worker CPU s per 1,000", "PostgreSQL CPU s per 1,000"),
        [["ours", *(Spread.of(bench.values(OURS.name, column)) for column in columns)]],
    )
    return [Verdict(what="intake, jobs/s", value=Spread.of(bench.values(OURS.name, "rate")), target=TARGET)]


def _measure(bench: Bench, number: int) -> None:
    jobs = make_jobs(min(JOBS, bench.options.jobs or JOBS))
    ledger = bench.ledgers.fresh(is_ours=True)
    try:
        with ledger.engine.begin() as connection:
            connection.execute(text(_HOLD))
        with bench.working(OURS, ledger) as running:
            for program in running.programs:
                program.pause()  # so that the whole backlog is there when they begin
            running.put(jobs)
            worker, postgres = running.cpu, cpu_seconds([bench.parts.postgres.process])
            for program in running.programs:
                program.resume()
            seconds = _wait_for(ledger, len(jobs))
            worker, postgres = running.cpu - worker, cpu_seconds([bench.parts.postgres.process]) - postgres
    finally:
        bench.ledgers.drop(ledger)
    per_1000 = 1000 / len(jobs)
    bench.note(
        OURS,
        number,
        rate=len(jobs) / seconds,
        worker_cpu=worker * per_1000,
        postgres_cpu=postgres * per_1000,
    )


def _wait_for(ledger: Ledger, count: int) -> float:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with ledger.engine.connect() as connection:
            taken, seconds = connection.execute(text(_TAKEN)).one()
        if taken == count:
            return float(seconds)
        time.sleep(0.2)
    raise StalledError(f"{taken} of {count} jobs were taken in, then nothing.")
