"""What 1, 2, 4 and 10 worker processes ask of one PostgreSQL and one Redis: at rest, and for a cancel.

Counts come first: they are the same on any machine. Times are of this one.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import make_url, text

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench
    from bench.ledgers import Ledger
    from bench.running import Running

SETTLE_SECONDS = 5.0  # what the jobs before left to do
LOOK_SECONDS = 0.1
JOBS = 2_000
CONCURRENCY = 32  # the default of a deployment
# Without batches a cancel takes some ten statements, four transactions and as many trips.
LIMITS = {"postgres_connections": 9, "statements": 5, "trips": 20, "statements_each": 5, "commits_each": 2}
REST = {
    "postgres_connections": "PostgreSQL connections",
    "redis_connections": "Redis connections",
    "statements": "statements/s",
    "trips": "trips to Redis/s",
    "commands": "Redis commands/s, those of scripts too",
    "cpu_percent": "% of a core",
    "memory_mb": "MB",
    "own_memory_mb": "MB of its own",
    "threads": "threads",
    "files": "open files",
}
LOAD = {
    "connections_at_most": "PostgreSQL connections at most, in all",
    "statements_each": "statements",
    "commits_each": "transactions",
    "trips_each": "trips to Redis",
    "commands_each": "Redis commands, those of scripts too",
    "worker_ms": "worker, ms of CPU",
    "postgres_ms": "PostgreSQL, ms",
    "redis_ms": "Redis, ms",
    "rate": "cancels/s",
}


def run(bench: Bench) -> list[Verdict]:
    sizes = bench.options.workers
    for number in bench.rounds():
        for size in sizes:
            bench.trying(OURS, lambda size=size, number=number: _measure(bench, size, number))
    _print(bench, "At rest, of one worker among so many", REST)
    _print(bench, "A cancel, with so many workers", LOAD)
    return _verdicts(bench, sizes)


def _print(bench: Bench, title: str, columns: dict[str, str]) -> None:
    sizes = sorted({each["workers"] for each in bench.numbers})
    rows = [[label, *(Spread.of(_values(bench, size, name)) for size in sizes)] for name, label in columns.items()]
    print_table(title, ("workers", *map(str, sizes)), rows)


def _values(bench: Bench, size: int, name: str) -> list[float]:
    return [each[name] for each in bench.numbers if each["workers"] == size and name in each]


def _verdicts(bench: Bench, sizes: tuple[int, ...]) -> list[Verdict]:
    many = max(sizes)
    return [
        Verdict(
            what=f"{(REST | LOAD)[name]}, {'a cancel' if name in LOAD else 'one worker at rest'}, of {many}",
            value=Spread.of(_values(bench, many, name)),
            target=most,
            at_least=False,
        )
        for name, most in LIMITS.items()
    ]


def _measure(bench: Bench, size: int, number: int) -> None:
    ledger = bench.ledgers.fresh(is_ours=True)
    try:
        # The server writes each statement of this database into its log, and the log is counted.
        bench.parts.postgres.ask(f"ALTER DATABASE {make_url(ledger.url).database} SET log_statement = 'all'")
        with bench.working(OURS, ledger, processes=size, concurrency=CONCURRENCY) as running:
            running.warm_up(100 * size)
            time.sleep(SETTLE_SECONDS)
            facts = _at_rest(bench, ledger, running, size) | _under_load(bench, ledger, running)
    finally:
        bench.ledgers.drop(ledger)
    bench.note(OURS, number, workers=size, **facts)


def _at_rest(bench: Bench, ledger: Ledger, running: Running, size: int) -> dict[str, float]:
    seconds = 4 * bench.options.seconds
    before, cpu = _counts(bench, ledger), running.cpu
    time.sleep(seconds)
    after = _counts(bench, ledger)
    rates = {name: (after[name] - before[name]) / seconds / size for name in after}
    processes = [program.process for program in running.programs]
    own = sum(process.memory_full_info().uss for process in processes)
    return {
        **rates,
        "cpu_percent": (running.cpu - cpu) / seconds / size * 100,
        "postgres_connections": _connections(ledger) / size,
        "redis_connections": (len(bench.parts.redis.client_list()) - 1) / size,
        "memory_mb": running.memory / 1e6 / size,
        "own_memory_mb": own / 1e6 / size,
        "threads": sum(process.num_threads() for process in processes) / size,
        "files": sum(process.num_fds() for process in processes) / size,
    }


def _under_load(bench: Bench, ledger: Ledger, running: Running) -> dict[str, float]:
    jobs = bench.options.jobs or JOBS
    before = _counts(bench, ledger)
    with _watched(ledger) as most:
        found = running.measure(jobs, delay=0.0)
    time.sleep(SETTLE_SECONDS)  # PostgreSQL tells of its commits a second later
    after = _counts(bench, ledger)
    return {
        **{f"{name}_each": (after[name] - before[name]) / jobs for name in after},
        "connections_at_most": max(most),
        "worker_ms": found.worker_cpu / jobs * 1000,
        "postgres_ms": found.postgres_cpu / jobs * 1000,
        "redis_ms": found.redis_cpu / jobs * 1000,
        "rate": found.rate,
    }


def _counts(bench: Bench, ledger: Ledger) -> dict[str, int]:
    told = bench.parts.redis.info("stats")
    log = bench.parts.postgres.log.read_text(errors="replace")
    return {
        "statements": log.count("LOG:  statement: ") + log.count("LOG:  execute "),
        "commits": int(bench.parts.postgres.ask(_COMMITS.format(make_url(ledger.url).database))),
        "commands": told["total_commands_processed"],  # those of scripts too
        "trips": told["total_reads_processed"],
    }


# A read counts too: it is a transaction of its own, which writes nothing.
_COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = '{}'"


def _connections(ledger: Ledger) -> int:
    """Count the sessions of the workers, without the one that asks."""
    with ledger.engine.connect() as connection:
        asked = text("SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()")
        return int(connection.execute(asked).scalar_one())


@contextmanager
def _watched(ledger: Ledger) -> Iterator[list[int]]:
    """Count the sessions again and again, until the block ends."""
    seen: list[int] = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            seen.append(_connections(ledger))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
