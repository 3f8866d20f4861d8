"""What the chart shows of the bench's results: `throughput` and `latency` of this worker and every peer, as medians.

`python -m bench.summary` writes it as JSON beside the chart, from the newest results, so that the chart can be drawn
again without any. Knows the results and who must be in them; not how they are drawn, which `chart` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, Contender
from bench.report import Spread, console

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench-results"
SUMMARY = ROOT / "docs" / "pictures" / "bench.json"
NAMES = {
    "ours": "this worker",
    "plain_celery": "plain Celery",
    "rq": "RQ",
    "thread_loop": "a loop without a queue",
}
RATES = {"rate_at_once": "at once", "rate_after_50_ms": "after 50 ms"}  # what the stub of `throughput` does
LATENCIES = ("p50_ms", "p99_ms")


def name_of(contender: Contender) -> str:
    """Return what a reader calls it."""
    return NAMES.get(contender.name, contender.name)


def summarise(throughput: dict[str, Any], latency: dict[str, Any]) -> dict[str, Any]:
    """Return median, lowest and highest of each number of each contender. Raises ValueError where one is missing."""
    rows = [
        {
            "name": name_of(each),
            **{key: _spread(throughput, each, "rate", answer=answer) for key, answer in RATES.items()},
            **{key: _spread(latency, each, key) for key in LATENCIES if each.is_queue},
        }
        for each in CONTENDERS.values()
    ]
    parts = throughput["versions"]["parts"]
    return {
        "at": throughput["at"][:10],
        "rounds": throughput["options"]["rounds"],
        "cores": throughput["machine"]["cores"],
        "parts": f"Python {parts['python']}, PostgreSQL {parts['postgresql']}, Redis {parts['redis']}",
        "contenders": sorted(rows, key=lambda row: -row["rate_at_once"][0]),
    }


def _spread(result: dict[str, Any], contender: Contender, key: str, **where: Any) -> list[float]:
    found = [
        row[key]
        for row in result["measurements"]
        if row["contender"] == contender.name and key in row and all(row[name] == at for name, at in where.items())
    ]
    if len(found) != result["options"]["rounds"]:
        raise ValueError(
            f"{result['part']} of {result['at']} has {len(found)} of {result['options']['rounds']} rounds of "
            f"{contender.name}: measure all of them, without --only."
        )
    spread = Spread.of(found)
    return [float(f"{value:.4g}") for value in (spread.median, spread.low, spread.high)]


def newest(part: str) -> Path:
    """Return the newest result of a part. Raises ValueError where there is none."""
    if found := sorted(RESULTS.glob(f"{part}-*.json")):
        return found[-1]
    raise ValueError(f"{RESULTS} has no result of {part}: `make bench PARTS={part}` measures it.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.summary", description="Write what the chart shows as JSON.")
    for part in ("throughput", "latency"):
        parser.add_argument(f"--{part}", type=Path, help=f"a result of {part} (default: the newest)")
    given = parser.parse_args()
    try:
        results = [json.loads((path or newest(part)).read_text()) for part, path in vars(given).items()]
        summary = summarise(*results)
    except ValueError as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 1
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    console.print(f"Written to {SUMMARY}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
