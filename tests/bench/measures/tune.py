"""Is everyone at their best? Half as much at once, as much as `contenders` says, and twice as much, for each of them.

No target hangs on it: it is how the figures in `contenders` were found, and how they are checked on another machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.measures.throughput import DELAYS, WARM
from bench.report import Spread, print_table

if TYPE_CHECKING:
    from bench.bench import Bench
    from bench.contenders import Contender
    from bench.report import Verdict

FACTORS = (0.5, 1.0, 2.0)


def run(bench: Bench) -> list[Verdict]:
    contenders = bench.contenders()
    for number, contender in bench.interleaved(contenders):
        for answer in DELAYS:
            for factor in FACTORS:
                bench.trying(contender, lambda c=contender, n=number, a=answer, f=factor: _measure(bench, c, n, a, f))
    for answer in DELAYS:
        print_table(
            f"Jobs/s, stub answers {answer}, by how much may run at once in one process",
            ("", "as said", "half", "as said", "twice"),
            [_row(bench, contender, answer) for contender in contenders],
        )
    return []


def _at_once(contender: Contender, answer: str) -> int:
    return contender.concurrency_slow if DELAYS[answer] else contender.concurrency


def _measure(bench: Bench, contender: Contender, number: int, answer: str, factor: float) -> None:
    concurrency = max(1, round(_at_once(contender, answer) * factor))
    with bench.working(contender, concurrency=concurrency) as running:
        rate = running.measure(min(WARM, bench.options.jobs or WARM), delay=DELAYS[answer]).rate
        measured = running.measure(bench.options.lot(rate), delay=DELAYS[answer])
    bench.note(contender, number, answer=answer, factor=factor, concurrency=concurrency, rate=measured.rate)


def _row(bench: Bench, contender: Contender, answer: str) -> list[object]:
    found = [bench.values(contender.name, "rate", answer=answer, factor=factor) for factor in FACTORS]
    return [contender.name, _at_once(contender, answer), *(Spread.of(rates) if rates else "" for rates in found)]
