"""How long an urgent cancel waits behind 20,000 bulk ones of its connection; and that bulk goes on beside urgents."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table
from bench.scene import scene

if TYPE_CHECKING:
    from bench.bench import Bench

BULK = 20_000
URGENTS = 30
STREAM = 600  # urgents at once: twelve seconds of the whole pace


def run(bench: Bench) -> list[Verdict]:
    for number in bench.rounds():
        with scene(bench) as stage:
            stage.add_connections(["shop"])
            stage.start_workers(2)
            stage.enqueue("shop", [f"bulk-{n}" for n in range(BULK)], priority="bulk")
            time.sleep(3)
            waits = [stage.seconds_until_seen("shop", f"urgent-{n}", priority="urgent") for n in range(URGENTS)]
            before = _bulk_sent(stage.arrivals("shop"))
            stage.enqueue("shop", [f"stream-{n}" for n in range(STREAM)], priority="urgent")
            time.sleep(8)
            beside = _bulk_sent(stage.arrivals("shop")) - before
        bench.note(OURS, number, slowest_ms=max(waits) * 1000, bulk_part=beside / (8 * 49))
    slowest, part = (bench.values(OURS.name, column) for column in ("slowest_ms", "bulk_part"))
    print_table(
        f"Urgent: behind {BULK:,} bulk ones of its own connection",
        ("", "slowest of 30, ms", "part of the pace that bulk keeps beside endless urgents"),
        [[OURS.name, Spread.of(slowest), Spread.of(part)]],
    )
    return [
        Verdict(what="urgent: slowest, ms", value=Spread.of(slowest), target=1000.0, at_least=False),
        Verdict(what="urgent: bulk's part beside urgents", value=Spread.of(part), target=0.05),
    ]


def _bulk_sent(arrivals: dict[str, float]) -> int:
    return sum(name.startswith("bulk") for name in arrivals)
