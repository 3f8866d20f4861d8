"""`python -m bench PART`: measure one part of promise P7 (speed), print it, and write it as JSON. See `make bench`.

`proof` measures rules, not this machine: it needs no server, and fails where a target is missed.

Run it with `tests` on PYTHONPATH and the project's own environment; the peers live in one of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bench import Bench, Notes
from bench.contenders import CONTENDERS
from bench.ledgers import Ledgers
from bench.options import WORKERS, Options
from bench.parts import all_parts
from bench.report import Verdict, console, machine, print_verdicts, write_json
from bench.running import Environment

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
PARTS = (
    *("throughput", "latency", "slow", "enqueue", "intake", "flat", "idle", "sqlite", "tune"),
    *("pace", "flood", "urgent", "outage", "ticks", "people", "metrics", "told", "scale"),
)
RULES = ("proof",)
_VERSIONS = """
import json, importlib.metadata as m
print(json.dumps({d.name: d.version for d in m.distributions()}))
"""
_VERSIONS_SHOWN = (
    "arq",
    "celery",
    "dramatiq",
    "huey",
    "procrastinate",
    "redis",
    "requests",
    "rq",
    "sqlalchemy",
    "taskiq",
)


def _arguments() -> Options:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS + RULES)
    parser.add_argument("--jobs", type=int, help="at most so many jobs in one lot; connections of `proof`")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long one lot should take (default: 5)")
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(CONTENDERS)} (ours always runs)")
    parser.add_argument("--seed", type=int, default=1, help="of the month of `proof` (default: 1)")
    parser.add_argument(
        "--rows", type=int, default=2_000_000, help="ended rows of `flat` and `people` (default: 2,000,000)"
    )
    usual = ",".join(map(str, WORKERS))
    parser.add_argument("--workers", default=usual, help=f"how many processes `scale` tries (default: {usual})")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench", help="the peers' environment")
    parser.add_argument("--output", type=Path, help="the JSON file (default: one below bench-results)")
    given = parser.parse_args()
    only = tuple(filter(None, given.only.split(",")))
    if unknown := set(only) - set(CONTENDERS):
        parser.error(f"nobody is called {', '.join(sorted(unknown))}: choose from {', '.join(CONTENDERS)}")
    return Options(
        part=given.part,
        jobs=given.jobs,
        rounds=given.rounds,
        seconds=given.seconds,
        only=only,
        peers_scripts=given.peers / "bin",
        output=given.output or ROOT / "bench-results" / f"{given.part}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json",
        rows=given.rows,
        workers=tuple(int(count) for count in given.workers.split(",")),
        seed=given.seed,
    )


def _versions(scripts: Path) -> dict[str, str]:
    if not (python := scripts / "python").exists():
        return {}
    found = json.loads(subprocess.run([python, "-c", _VERSIONS], stdout=subprocess.PIPE, check=True).stdout)
    return {name: version for name, version in found.items() if name.lower() in _VERSIONS_SHOWN}


def main() -> int:
    options = _arguments()
    began = time.monotonic()
    notes, versions, verdicts = _rules(options) if options.part in RULES else _speed(options)
    if verdicts:
        print_verdicts(verdicts)
    write_json(
        options.output,
        {
            "part": options.part,
            "at": datetime.now(UTC).isoformat(),
            "seconds": time.monotonic() - began,
            "machine": machine(),
            "versions": versions,
            "options": {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "jobs": options.jobs,
                "only": options.only,
                "seed": options.seed,
            },
            "verdicts": [{"met": verdict.met, "verdict": verdict} for verdict in verdicts],
            "measurements": notes.numbers,
        },
    )
    return 1 if options.part in RULES and not all(verdict.met for verdict in verdicts) else 0


def _speed(options: Options) -> tuple[Notes, dict[str, object], list[Verdict]]:
    with all_parts() as parts:
        environment = Environment(parts=parts, peers_scripts=options.peers_scripts)
        bench = Bench(parts, Ledgers(parts.postgres, parts.folder), environment, options)
        versions = {
            "parts": parts.versions(),
            "ours": _versions(Path(sys.executable).parent),
            "peers": _versions(options.peers_scripts),
        }
        console.print(f"[bold]{options.part}[/]  {versions['parts']}", highlight=False)
        return bench, versions, _measure(options.part).run(bench)


def _rules(options: Options) -> tuple[Notes, dict[str, object], list[Verdict]]:
    notes = Notes(options)
    console.print(f"[bold]{options.part}[/]  seed {options.seed}", highlight=False)
    return notes, {"python": sys.version.split()[0]}, _measure(options.part).run(notes)


def _measure(part: str) -> ModuleType:
    return importlib.import_module(f"bench.measures.{part}")


if __name__ == "__main__":
    sys.exit(main())
