"""The chart of the bench: it is drawn from the bench's own JSON, says all of it, and shows every peer."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from bench.chart import CHART, COLOURS, SUMMARY, in_words
from bench.contenders import CONTENDERS
from bench.summary import name_of, summarise

NAMES = {name_of(each) for each in CONTENDERS.values()}
ROUNDS = 3
MAX_BYTES = 60_000


def result(part: str, measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a result as `python -m bench` writes it."""
    return {
        "part": part,
        "at": "2026-01-02T03:04:05+00:00",
        "machine": {"cores": 2},
        "versions": {"parts": {"python": "3.11.1", "redis": "7.0", "postgresql": "16"}},
        "options": {"rounds": ROUNDS},
        "measurements": measurements,
    }


def results() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return results of all contenders: the n-th one has n thousand, n hundred, 2n and 4n, give or take a tenth."""
    rates, waits = [], []
    for n, (name, contender) in enumerate(CONTENDERS.items(), 1):
        for number, noise in enumerate((1, 0.9, 1.1)):
            row = {"contender": name, "round": number}
            rates += [
                row | {"answer": answer, "rate": n * rate * noise}
                for answer, rate in (("at once", 1000), ("after 50 ms", 100))
            ]
            if contender.is_queue:
                waits.append(row | {"p50_ms": 2 * n * noise, "p99_ms": 4 * n * noise})
    return result("throughput", rates), result("latency", waits)


def texts(svg: str) -> set[str]:
    return {unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)}


def test_what_is_shown_are_median_lowest_and_highest_of_every_contender() -> None:
    shown = {row["name"]: row for row in summarise(*results())["contenders"]}

    assert NAMES == shown.keys()
    assert [2000, 1800, 2200] == shown["plain Celery"]["rate_at_once"]
    assert [200, 180, 220] == shown["plain Celery"]["rate_after_50_ms"]
    assert ([4, 3.6, 4.4], [8, 7.2, 8.8]) == (shown["plain Celery"]["p50_ms"], shown["plain Celery"]["p99_ms"])
    assert "p50_ms" not in shown["a loop without a queue"]


@pytest.mark.parametrize("part", [0, 1], ids=["throughput", "latency"])
def test_a_result_without_every_round_of_every_peer_is_refused(part: int) -> None:
    both = results()
    both[part]["measurements"].remove(
        next(row for row in both[part]["measurements"] if row["contender"] == "taskiq" and row["round"] == 1)
    )

    with pytest.raises(ValueError, match="has 2 of 3 rounds of taskiq: measure all of them"):
        summarise(*both)


def test_the_chart_says_the_numbers_of_the_json_beside_it_and_names_every_peer() -> None:
    svg, summary = CHART.read_text(), json.loads(SUMMARY.read_text())

    assert NAMES == {row["name"] for row in summary["contenders"]}
    assert NAMES <= texts(svg)
    assert in_words(summary) in unescape(svg)


def test_the_chart_is_small_has_no_date_of_its_own_and_is_readable_on_dark_paper() -> None:
    svg = CHART.read_text()
    painted = set(re.findall(r"(?:fill|stroke): (#\w{6})", svg.partition("</style>")[2]))

    assert MAX_BYTES > len(svg.encode())
    assert "dc:date" not in svg
    assert "prefers-color-scheme:dark" in svg
    assert set(COLOURS) == painted, "each colour has another one on dark paper"
