"""How fast one producer enqueues: `CancelClient.enqueue_many`, `apply_async` in a loop, the other queues' own ways."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from bench.contenders import OURS, PLAIN_CELERY
from bench.ledgers import make_jobs
from bench.report import Spread, Verdict, print_table, ratios
from bench.running import produce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.bench import Bench
    from bench.contenders import Contender
    from bench.ledgers import Ledger

JOBS = 5_000
WARM = 50  # they open the connections
WITH_LEDGER = "ours, asking the ledger for conflicts"


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders(queues_only=True)
    for number, contender in bench.interleaved(contenders):
        bench.trying(contender, lambda c=contender, n=number: _measure(bench, c, n))
    names = bench.complete(contenders, "per_second")
    plain = bench.values(PLAIN_CELERY.name, "per_second") if PLAIN_CELERY.name in names else None
    rows = [_row(name, bench.values(name, "per_second"), plain) for name in names]
    checked = bench.values(OURS.name, "per_second_with_ledger")
    print_table(
        "Jobs enqueued per second by one producer",
        ("", "jobs/s", "÷ apply_async"),
        [*rows, _row(WITH_LEDGER, checked, plain)],
    )
    if plain is None:
        return []
    return [
        Verdict(
            what="enqueue_many ÷ apply_async", value=ratios(bench.values(OURS.name, "per_second"), plain), target=15.0
        )
    ]


def _row(name: str, rates: Sequence[float], plain: Sequence[float] | None) -> list[object]:
    return [name, Spread.of(rates), ratios(rates, plain) if plain else ""]


def _measure(bench: Bench, contender: Contender, number: int) -> None:
    ledger = bench.ledgers.fresh(is_ours=contender.ours)
    try:
        facts = {"per_second": _rate(bench, contender, ledger)}
        if contender.ours:
            with_ledger = _rate(bench, contender, ledger, BENCH_CLIENT_DATABASE_URL=ledger.url)
            facts["per_second_with_ledger"] = with_ledger
    finally:
        bench.ledgers.drop(ledger)
    bench.note(contender, number, **facts)


def _rate(bench: Bench, contender: Contender, ledger: Ledger, **variables: str) -> float:
    environment = bench.environment
    scripts = environment.scripts(contender)
    env = environment.variables(ledger, contender.concurrency) | variables
    bench.parts.redis.flushall()
    if preparation := contender.preparation(scripts):
        subprocess.run(preparation, env=env, check=True, capture_output=True)
    count = min(JOBS, bench.options.jobs or JOBS)
    told = produce(contender, str(scripts / "python"), env, make_jobs(WARM + count), warm=WARM)
    return float(count / told["seconds"])
