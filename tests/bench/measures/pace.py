"""How much of a token's allowance two workers use while there is a backlog, and how often they are refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table
from bench.scene import Scene, scene

if TYPE_CHECKING:
    from bench.bench import Bench

LIMIT = 50
SECONDS = 40.0


def run(bench: Bench) -> list[Verdict]:
    for number in bench.rounds():
        with scene(bench) as stage:
            stage.add_connections(["shop"])
            stage.start_workers(2)
            jobs = round(LIMIT * SECONDS)
            stage.enqueue("shop", [f"o-{n}" for n in range(jobs)])
            facts = _facts(stage, jobs)
        bench.note(OURS, number, **facts)
    use, refused, fullest = (bench.values(OURS.name, column) for column in ("use", "refused", "fullest"))
    print_table(
        "Pace: two workers, one token of 50/s, a backlog",
        ("", "part of the allowance used", "429 per 1,000", "fullest second"),
        [[OURS.name, Spread.of(use), Spread.of(refused), Spread.of(fullest)]],
    )
    return [
        Verdict(what="pace: part of the allowance used", value=Spread.of(use), target=0.97),
        Verdict(what="pace: 429 per 1,000", value=Spread.of(refused), target=1.0, at_least=False),
    ]


def _facts(stage: Scene, jobs: int) -> dict[str, float]:
    deadline = time.monotonic() + jobs / LIMIT * 1.5 + 20
    while stage.traffic("shop")["writes"] < jobs and time.monotonic() < deadline:
        time.sleep(0.5)
    arrived = sorted(stage.arrivals("shop").values())
    traffic = stage.traffic("shop")
    return {
        "use": (len(arrived) - 1) / (arrived[-1] - arrived[0]) / LIMIT,
        "refused": traffic["writes_refused"] / traffic["writes"] * 1000,
        "fullest": traffic["peak_writes"],
    }
