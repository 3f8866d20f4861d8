"""SQLite, one worker process: this worker and the plain Celery task, both with commits that survive a power cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contenders import OURS, PLAIN_CELERY
from bench.report import Spread, Verdict, print_table, ratios

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.contenders import Contender

TARGET = 600.0
WARM = 100


def run(bench: Bench) -> list[Verdict]:
    contenders = [OURS, PLAIN_CELERY]
    for number, contender in bench.interleaved(contenders):
        bench.trying(contender, lambda c=contender, n=number: _measure(bench, c, n))
    names = bench.complete(contenders, "rate")
    print_table(
        "On SQLite, one worker process, answers at once",
        ("", "jobs/s", "worker CPU s per 1,000"),
        [[name, *(Spread.of(bench.values(name, column)) for column in ("rate", "worker_cpu"))] for name in names],
    )
    if len(names) < len(contenders):
        return []
    ours, plain = (bench.values(contender.name, "rate") for contender in contenders)
    return [
        Verdict(what="SQLite: jobs/s", value=Spread.of(ours), target=TARGET),
        Verdict(what="SQLite: ÷ plain Celery", value=ratios(ours, plain), target=2.0),
    ]


def _measure(bench: Bench, contender: Contender, number: int) -> None:
    ledger = bench.ledgers.fresh_sqlite(is_ours=contender.ours)
    try:
        with bench.working(contender, ledger, processes=1) as running:
            rate = running.warm_up(WARM)
            measured = running.measure(bench.options.lot(rate), delay=0.0)
    finally:
        bench.ledgers.drop(ledger)
    bench.note(contender, number, rate=measured.rate, worker_cpu=measured.worker_cpu * 1000 / measured.jobs)
