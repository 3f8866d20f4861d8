"""What an idle worker process costs: CPU, Redis commands and SQL statements."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from bench.contenders import OURS, PLAIN_CELERY
from bench.report import Spread, Verdict, print_table

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.contenders import Contender

SECONDS = 20.0
MAX_CPU_PERCENT, MAX_COMMANDS, MAX_STATEMENTS = 2.0, 20.0, 5.0
_COLUMNS = ("cpu_percent", "redis_commands", "statements", "memory_mb")


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders(default=(OURS.name, PLAIN_CELERY.name), queues_only=True)
    for number, contender in bench.interleaved(contenders):
        bench.trying(contender, lambda c=contender, n=number: _measure(bench, c, n))
    names = bench.complete(contenders, "cpu_percent")
    print_table(
        "One idle worker process",
        ("", "% of a core", "Redis commands/s", "SQL statements/s (BEGIN and COMMIT too)", "MB"),
        [[name, *(Spread.of(bench.values(name, column)) for column in _COLUMNS)] for name in names],
    )
    limits = zip(_COLUMNS, (MAX_CPU_PERCENT, MAX_COMMANDS, MAX_STATEMENTS), strict=False)
    return [
        Verdict(what=f"idle: {column}", value=Spread.of(bench.values(OURS.name, column)), target=most, at_least=False)
        for column, most in limits
        if OURS.name in names
    ]


def _measure(bench: Bench, contender: Contender, number: int) -> None:
    ledger = bench.ledgers.fresh(is_ours=contender.ours)
    seconds = min(SECONDS, 4 * bench.options.seconds)
    try:
        # The server writes each statement of this database into its log, and the log is counted.
        bench.parts.postgres.ask(f"ALTER DATABASE {make_url(ledger.url).database} SET log_statement = 'all'")
        with bench.working(contender, ledger, processes=1) as running:
            running.warm_up(20)
            time.sleep(3.0)  # what the jobs left to do
            bench.parts.redis.config_resetstat()
            cpu, statements = running.cpu, _statements(bench)
            time.sleep(seconds)
            facts = {
                "cpu_percent": (running.cpu - cpu) / seconds * 100,
                "redis_commands": _redis_commands(bench) / seconds,
                "statements": (_statements(bench) - statements) / seconds,
                "memory_mb": running.memory / 1e6,
            }
            commands = _by_command(bench)
    finally:
        bench.ledgers.drop(ledger)
    bench.note(contender, number, **facts, by_command=commands)


def _statements(bench: Bench) -> int:
    log = bench.parts.postgres.log.read_text(errors="replace")
    return log.count("LOG:  statement: ") + log.count("LOG:  execute ")


def _by_command(bench: Bench) -> dict[str, int]:
    found = bench.parts.redis.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): facts["calls"] for name, facts in found.items()}
    return {name: calls for name, calls in counts.items() if not name.startswith(("info", "config"))}


def _redis_commands(bench: Bench) -> int:
    return sum(_by_command(bench).values())
