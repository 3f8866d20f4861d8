"""End to end with two worker processes each: this worker, the queues, and a loop without any queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from bench.contenders import OURS, PLAIN_CELERY, THREAD_LOOP
from bench.report import Spread, Verdict, print_table, ratios

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.contenders import Contender

DELAYS = {"at once": 0.0, "after 50 ms": 0.05}
WARM = 200


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders()
    for number, contender in bench.interleaved(contenders):
        for answer in DELAYS:
            bench.trying(contender, lambda c=contender, n=number, a=answer: _measure(bench, c, n, a))
    return [verdict for answer in DELAYS for verdict in _verdicts(bench, contenders, answer)]


def _measure(bench: Bench, contender: Contender, number: int, answer: str) -> None:
    delay = DELAYS[answer]
    with bench.working(contender, concurrency=contender.concurrency_slow if delay else None) as running:
        # Twice: the first lot opens the connections, the second says how many jobs make a lot of the wanted length.
        running.measure(min(WARM, bench.options.jobs or WARM), delay=delay)
        rate = running.measure(min(2 * WARM, bench.options.jobs or 2 * WARM), delay=delay).rate
        measured = running.measure(bench.options.lot(rate), delay=delay)
    per_1000 = 1000 / measured.jobs
    bench.note(
        contender,
        number,
        answer=answer,
        rate=measured.rate,
        worker_cpu=measured.worker_cpu * per_1000,
        postgres_cpu=measured.postgres_cpu * per_1000,
        redis_cpu=measured.redis_cpu * per_1000,
        memory_mb=measured.worker_memory / 1e6,
        details=msgspec.to_builtins(measured),
    )


def _verdicts(bench: Bench, contenders: list[Contender], answer: str) -> list[Verdict]:
    names = bench.complete(contenders, "rate", answer=answer)
    _show(bench, names, answer)
    if OURS.name not in names:
        return []

    def over(name: str) -> Spread:
        return ratios(_rates(bench, OURS.name, answer), _rates(bench, name, answer))

    verdicts = []
    if PLAIN_CELERY.name in names:
        verdicts.append(Verdict(what=f"{answer}: ÷ plain Celery", value=over(PLAIN_CELERY.name), target=4.0))
        verdicts.append(
            Verdict(
                what=f"{answer}: PostgreSQL CPU per job ÷ plain Celery's",
                value=ratios(
                    *(bench.values(n, "postgres_cpu", answer=answer) for n in (OURS.name, PLAIN_CELERY.name))
                ),
                target=0.25,
                at_least=False,
            )
        )
    if queues := [name for name in names if name not in {OURS.name, PLAIN_CELERY.name, THREAD_LOOP.name}]:
        best = max(queues, key=lambda name: Spread.of(_rates(bench, name, answer)).median)
        verdicts.append(Verdict(what=f"{answer}: ÷ the best queue ({best})", value=over(best), target=1.1))
    if THREAD_LOOP.name in names:
        verdicts.append(Verdict(what=f"{answer}: ÷ a loop without a queue", value=over(THREAD_LOOP.name), target=1.4))
    return verdicts


def _rates(bench: Bench, name: str, answer: str) -> list[float]:
    return bench.values(name, "rate", answer=answer)


def _show(bench: Bench, names: list[str], answer: str) -> None:
    ours = _rates(bench, OURS.name, answer) if OURS.name in names else None
    rows = []
    for name in sorted(names, key=lambda name: -Spread.of(_rates(bench, name, answer)).median):
        rates = _rates(bench, name, answer)
        costs = [Spread.of(bench.values(name, cost, answer=answer)) for cost in ("worker_cpu", "postgres_cpu")]
        memory = Spread.of(bench.values(name, "memory_mb", answer=answer)).median
        rows.append([name, Spread.of(rates), ratios(ours, rates) if ours else "", *costs, f"{memory:.0f}"])
    print_table(
        f"Stub answers {answer}: median (lowest-highest) of {bench.options.rounds} rounds",
        ("", "jobs/s", "ours ÷ it", "worker CPU s per 1,000", "PostgreSQL CPU s per 1,000", "workers' MB"),
        rows,
    )
