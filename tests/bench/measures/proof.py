"""How soon, and how surely, it is known what became of an order: a month of 1,000 connections on virtual time.

The rules are production's; the warehouses, their people and Trackstar's crawls are simulated, from a seed. It is no
measure of this machine: the same seed gives the same numbers.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING, Any

from bench.month.life import live
from bench.month.world import END
from bench.report import Spread, Verdict, console, percentile, print_table
from worker.cli.progress import tracked

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.bench import Notes

CONNECTIONS = 1_000
_AT_ONCE = 20  # connections that one process lives through before it tells
Month = list[dict[str, Any]]


def run(bench: Notes) -> list[Verdict]:
    month = simulate(bench.options.jobs or CONNECTIONS, bench.options.seed)
    for what in ("false", "undated", "invented"):
        for sentence in _all(month, what)[:5]:
            console.print(f"{what}: {sentence}", style="red", highlight=False)
    late = [each for each in _all(month, "contradictions") if each["due"] and not each["in_time"]]
    for each in late[:5]:
        console.print(f"not found in time: {each}", style="red", highlight=False)
    bench.numbers.append(_facts(month))
    _print_what_happened(month)
    _print_times(month)
    return _verdicts(month, late)


def simulate(connections: int, seed: int) -> Month:
    """Live the month of so many connections, on all cores."""
    parts = [range(first, min(first + _AT_ONCE, connections)) for first in range(0, connections, _AT_ONCE)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        lived = tracked(pool.map(live, repeat(seed), parts), "groups of connections", len(parts), console=console)
        return [each for part in lived for each in part]


def _all(month: Month, what: str) -> list[Any]:
    return [each for life in month for each in life[what]]


def _sum(month: Month, what: str) -> int:
    return sum(life[what] for life in month)


def _counts(month: Month, what: str) -> Counter[str]:
    return sum((life[what] for life in month), Counter[str]())


_NUMBERS = ("jobs", "unproven", "crawls", "forced", "polls", "looks", "reads")


def _facts(month: Month) -> dict[str, Any]:
    counted = {what: _counts(month, what) for what in ("verdicts", "persons", "young", "not_ours")}
    return {"connections": len(month), **{what: _sum(month, what) for what in _NUMBERS}, **counted}


def _print_what_happened(month: Month) -> None:
    contradictions = [each["hours"] for each in _all(month, "contradictions") if each["told"] is not None]
    rows = [
        ("cancellations", _sum(month, "jobs")),
        *((f"  {name}", count) for name, count in sorted(_counts(month, "verdicts").items())),
        ("  of them for a person at the end", sum(_counts(month, "persons").values())),
        *((f"younger than the copy, in the end: {name}", count) for name, count in _counts(month, "young").items()),
        ("goods that left after all, found", len(contradictions)),
        ("  after hours, median", f"{percentile(contradictions, 0.5):.2f}" if contradictions else ""),
        ("never passed on, and cancelled by others", sum(_counts(month, "not_ours").values())),
        ("crawls that ended", _sum(month, "crawls")),
        ("crawls that were asked for", _sum(month, "forced")),
    ]
    print_table(f"A month of {len(month):,} connections", ("", "count"), rows)


_GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "crawls work, and are forced and quick": lambda each: each["works"] and each["forced"] and each["quick"],
    "crawls work, and are forced": lambda each: each["works"] and each["forced"],
    "crawls work": lambda each: each["works"],
    "crawls work, none is forced": lambda each: each["works"] and not each["forced"],
    "nobody tells of crawls": lambda each: not each["told"],
}
QUICK, FORCED, WORKS, *_ = _GROUPS


def _times(month: Month, group: str, verdict: str = "") -> list[dict[str, Any]]:
    return [each for each in _all(month, "proofs") if _GROUPS[group](each) and each["verdict"].startswith(verdict)]


def _print_times(month: Month) -> None:
    rows = []
    for group, verdict in [
        *((QUICK, each) for each in ("", "cancelled", "not_cancelled", "person")),
        *((g, "") for g in _GROUPS if g != QUICK),
    ]:
        minutes = [each["seconds"] / 60 for each in _times(month, group, verdict)]
        if minutes:
            shares = (f"{percentile(minutes, share):.1f}" for share in (0.5, 0.9, 0.99))
            rows.append((f"{group}{f': {verdict}' if verdict else ''}", len(minutes), *shares, f"{max(minutes):.1f}"))
    print_table(
        "From an end without proof to proof, or to a person, minutes",
        ("", "ends", "p50", "p90", "p99", "longest"),
        rows,
    )


def _verdicts(month: Month, late: list[Any]) -> list[Verdict]:
    minutes = [each["seconds"] / 60 for each in _times(month, QUICK)]
    periods = [(each["seconds"] - 120) / each["period"] for each in _times(month, WORKS)]
    measured: list[tuple[str, float, float]] = [
        ("proof: false verdicts", len(_all(month, "false")), 0),
        ("proof: not yet, without a date and a person", len(_all(month, "undated")), 0),
        (f"proof: minutes to proof, p50 where {QUICK}", percentile(minutes, 0.5), 2),
        (f"proof: (time to proof - 2 min) / period, p99 where {WORKS}", percentile(periods, 0.99), 1),
        ("proof: contradictions not found within one crawl", len(late), 0),
        ("proof: contradictions invented", len(_all(month, "invented")), 0),
        ("proof: reads a second for the second look", _sum(month, "looks") / END, 1),
    ]
    return [
        Verdict(what=what, value=Spread.of([value]), target=target, at_least=False) for what, value, target in measured
    ]
