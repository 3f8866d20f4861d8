"""What an outage of one connection costs in calls, and how its backlog goes out afterwards."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from bench.contenders import OURS
from bench.report import Spread, Verdict, print_table
from bench.scene import Scene, scene
from worker.cancellation.outage import seconds_to_probe

if TYPE_CHECKING:
    from bench.bench import Bench

JOBS = 2_000
DOWN_SECONDS = 60.0
HOUR = 3600.0


def run(bench: Bench) -> list[Verdict]:
    for number in bench.rounds():
        with scene(bench) as stage:
            stage.add_connections(["shop"])
            stage.start_workers(2, RETRY_CAP_SECONDS="60")
            facts = _outage(stage)
        bench.note(OURS, number, **facts)
    columns = ("until_held", "probes", "use", "out_of_order")
    values = {column: bench.values(OURS.name, column) for column in columns}
    print_table(
        f"Outage: {JOBS:,} jobs, {DOWN_SECONDS:g} s of 503, then well again",
        ("", "calls until held", "probes while held", "pace afterwards", "sent out of order, part"),
        [[OURS.name, *(Spread.of(values[column]) for column in columns)]],
    )
    later = _probes(3 * HOUR)
    print_table("By the same rule", ("", "probes in three hours"), [[OURS.name, later]])
    calls = Spread.of([held + later for held in values["until_held"]])
    return [
        Verdict(what="outage: calls in three hours", value=calls, target=400.0, at_least=False),
        Verdict(what="outage: part of the pace afterwards", value=Spread.of(values["use"]), target=0.9),
    ]


def _outage(stage: Scene) -> dict[str, float]:
    stage.control("connections", id="shop", fault="503")
    names = [f"o-{n:05}" for n in range(JOBS)]
    stage.enqueue("shop", names)
    time.sleep(15)
    held = stage.traffic("shop")["writes"]
    time.sleep(DOWN_SECONDS - 15)
    probes = stage.traffic("shop")["writes"] - held
    stage.control("connections", id="shop", fault=None)
    back = time.time()
    deadline = time.monotonic() + JOBS / 50 * 1.5 + 60
    total = held + probes + JOBS
    while stage.traffic("shop")["writes"] < total - held and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(3)
    arrived = stage.arrivals("shop")
    after = sorted(when for when in arrived.values() if when > back)
    first_time = [name for name, when in sorted(arrived.items(), key=lambda item: item[1]) if when > back]
    wrong = sum(later < earlier for earlier, later in itertools.pairwise(first_time))
    return {
        "until_held": held,
        "probes": probes,
        "use": (len(after) - 1) / (after[-1] - after[0]) / 50,
        "out_of_order": wrong / len(first_time),
    }


def _probes(seconds: float) -> int:
    held, count = 0.0, 0
    while held < seconds:
        held += seconds_to_probe(held)
        count += 1
    return count
