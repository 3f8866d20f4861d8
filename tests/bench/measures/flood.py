"""How long a single cancel waits while its neighbour has 20,000 waiting, beside how long it waits when all is idle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.report import Spread, Verdict, percentile, print_table, ratios
from bench.scene import Scene, scene

if TYPE_CHECKING:
    from bench.bench import Bench

FLOOD = 20_000
CANCELS = 100
EVERY_SECONDS = 0.1


def run(bench: Bench) -> list[Verdict]:
    for number in bench.rounds():
        with scene(bench) as stage:
            stage.add_connections(["flood", "quiet"])
            stage.start_workers(2)
            stage.seconds_until_seen("quiet", "warm-up")
            idle = _waits(stage, "idle")
            stage.enqueue("flood", [f"o-{n}" for n in range(FLOOD)], priority="bulk")
            time.sleep(3)  # until the inbox is in the ledger
            flooded = _waits(stage, "flooded")
        facts = {
            f"{name}_p{share:.0%}"[:-1]: percentile(values, share) * 1000
            for name, values in (("idle", idle), ("flooded", flooded))
            for share in (0.5, 0.99)
        }
        bench.note(OURS, number, **facts)
    columns = ("idle_p50", "idle_p99", "flooded_p50", "flooded_p99")
    print_table(
        f"Flood: one cancel on B while A has {FLOOD:,} waiting, enqueue to PUT, ms",
        ("", "idle p50", "idle p99", "flooded p50", "flooded p99"),
        [[OURS.name, *(Spread.of(bench.values(OURS.name, column)) for column in columns)]],
    )
    ratio = ratios(bench.values(OURS.name, "flooded_p99"), bench.values(OURS.name, "idle_p99"))
    return [Verdict(what="flood: p99 / idle p99", value=ratio, target=2.0, at_least=False)]


def _waits(stage: Scene, kind: str) -> list[float]:
    waits = []
    for number in range(CANCELS):
        waits.append(stage.seconds_until_seen("quiet", f"{kind}-{number}"))
        time.sleep(EVERY_SECONDS)
    return waits
