"""From enqueueing to the request seen at the stub, at 25 jobs a second on idle workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.ledgers import make_jobs
from bench.report import Spread, Verdict, percentile, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.bench import Bench
    from bench.contenders import Contender
    from bench.running import Running

RATE = 25.0
JOBS = 200
WARM = 50
FIRST = 5  # of a producer, which open its connections
P50_MS, P99_MS = 8.0, 25.0


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders(queues_only=True)
    for number, contender in bench.interleaved(contenders):
        bench.trying(contender, lambda c=contender, n=number: _measure(bench, c, n))
    names = bench.complete(contenders, "p50_ms")
    print_table(
        f"Milliseconds from enqueueing to the request seen, {RATE:g}/s",
        ("", "p50", "p99"),
        [[name, *(Spread.of(bench.values(name, share)) for share in ("p50_ms", "p99_ms"))] for name in names],
    )
    if OURS.name not in names:
        return []
    return [
        Verdict(
            what=f"enqueue to PUT, {share}", value=Spread.of(bench.values(OURS.name, share)), target=ms, at_least=False
        )
        for share, ms in (("p50_ms", P50_MS), ("p99_ms", P99_MS))
    ]


def _measure(bench: Bench, contender: Contender, number: int) -> None:
    with bench.working(contender) as running:
        running.warm_up(WARM)
        waits = _waits(bench, running, min(JOBS, bench.options.jobs or JOBS))
    bench.note(contender, number, p50_ms=percentile(waits, 0.5), p99_ms=percentile(waits, 0.99), waits_ms=waits)


def _waits(bench: Bench, running: Running, count: int) -> Sequence[float]:
    jobs = make_jobs(FIRST + count)
    running.ledger.expect(jobs)
    bench.parts.stub.reset(0.0)
    sent = running.put(jobs, rate=RATE, warm=FIRST)["sent"]
    running.wait_until_seen(len(jobs))
    seen = bench.parts.stub.arrivals()
    return [(seen[order] - at) / 1e6 for order, at in sent.items()]
