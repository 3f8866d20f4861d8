"""The producer, a process of its own: enqueues what standard input says, with one contender's `put`.

`python -m bench.producer MODULE [--rate PER_SECOND] [--warm N]`: reads a JSON list of jobs, enqueues the first N
before the clock starts (they open its connections), the others all at once, or one by one at a rate, and prints when
it began, how long it took, and when each job was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Jobs = list[dict[str, str]]


def _door(module: Any, runner: asyncio.Runner) -> Callable[[Jobs], None]:
    if hasattr(module, "put_async"):
        return lambda jobs: runner.run(module.put_async(jobs))
    return module.put


def _all_at_once(put: Callable[[Jobs], None], jobs: Jobs) -> dict[str, int]:
    put(jobs)
    return {}


def _at_a_rate(put: Callable[[Jobs], None], jobs: Jobs, rate: float) -> dict[str, int]:
    sent = {}
    began = time.monotonic()
    for number, job in enumerate(jobs):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        sent[job["order_id"]] = time.monotonic_ns()
        put([job])
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--warm", type=int, default=0)
    arguments = parser.parse_args()
    module = importlib.import_module(arguments.module)
    jobs: Jobs = json.load(sys.stdin)
    with asyncio.Runner() as runner:
        put = _door(module, runner)
        if arguments.warm:
            put(jobs[: arguments.warm])
        jobs = jobs[arguments.warm :]
        began_at, began = time.time(), time.monotonic()
        sent = _at_a_rate(put, jobs, arguments.rate) if arguments.rate else _all_at_once(put, jobs)
        took = time.monotonic() - began
    json.dump({"began_at": began_at, "seconds": took, "sent": sent}, sys.stdout)


if __name__ == "__main__":
    main()
