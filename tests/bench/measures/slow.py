"""A slow Trackstar: every answer takes a second, and one worker process has 500 requests in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table
from worker.cancellation.fairness import RESERVE_MAX

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.contenders import Contender

IN_FLIGHT = 500  # of one connection, which never gets the threads that are kept for others
DELAY = 1.0
JOBS = 40 * IN_FLIGHT  # how it begins and ends then weighs little
MAX_MB = 300.0


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders(default=(OURS.name,))
    for number, contender in bench.interleaved(contenders):
        bench.trying(contender, lambda c=contender, n=number: _measure(bench, c, n))
    names = bench.complete(contenders, "rate")
    columns = ("rate", "most_in_flight", "memory_mb", "worker_cpu")
    print_table(
        f"{IN_FLIGHT} requests in flight in one process, answers after {DELAY:g} s",
        ("", "jobs/s", "most in flight", "MB", "worker CPU s per 1,000"),
        [[name, *(Spread.of(bench.values(name, column)) for column in columns)] for name in names],
    )
    if OURS.name not in names:
        return []
    share = Spread.of([rate / (IN_FLIGHT / DELAY) for rate in bench.values(OURS.name, "rate")])
    memory = Spread.of(bench.values(OURS.name, "memory_mb"))
    return [
        Verdict(what="slow: share of 500/s", value=share, target=0.9),
        Verdict(what="slow: MB of the process", value=memory, target=MAX_MB, at_least=False),
    ]


def _measure(bench: Bench, contender: Contender, number: int) -> None:
    with bench.working(contender, processes=1, concurrency=IN_FLIGHT + RESERVE_MAX) as running:
        running.warm_up(IN_FLIGHT)
        measured = running.measure(min(JOBS, bench.options.jobs or JOBS), delay=DELAY)
    bench.note(
        contender,
        number,
        rate=measured.rate,
        most_in_flight=measured.most_in_flight,
        memory_mb=measured.worker_memory / 1e6,
        worker_cpu=measured.worker_cpu * 1000 / measured.jobs,
    )
