"""The tour of docs/operate.md, command by command, beside a worker of a deployment. Knows no kind of ledger."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from worker.cancellation.request import CancelRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.deployment import Deployment

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "operate.md").read_text()
TOKEN = "sandbox-token"  # as `cancel-worker sandbox` says it
# What only asks may ask again, until the worker has come so far.
ASKS = re.compile(r"cancel-worker (show|list|windows|batches (list|show)|dead-letters (list|show)|audit list)\b")
SECONDS = 30.0
REDIS_CLI = """#!{python}
import os, sys
from redis import Redis
print(Redis.from_url(os.environ["REDIS_URL"], decode_responses=True).execute_command(*sys.argv[1:]))
"""


class Step(NamedTuple):
    """One command of the page, and what it must say."""

    command: str
    code: int
    phrases: list[str]


def record_id(found: re.Match[str]) -> str:
    return CancelRequest(connection_id="shop-1", order_id=found[1]).record_id


def steps() -> Iterator[Step]:
    for block in re.findall(r"^```console\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE):
        for text in block.split("$ ")[1:]:
            command, *said = re.sub(r"ID-OF-(\d+)", record_id, text).splitlines()
            codes = [int(line[11:-1]) for line in said if line.startswith("[exit code ")]
            yield Step(command, next(iter(codes), 0), [line for line in said if not line.startswith("[exit code ")])


def run(deployment: Deployment, folder: Path, step: Step) -> tuple[int, str]:
    env = {**deployment.env, "CANCEL_ACTOR": "ann", "HOME": str(folder)}
    env["PATH"] = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", step.command], cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).replace("│", " ").split())


def prepare(deployment: Deployment, folder: Path) -> None:
    """Make what the page says is there before it begins: a warehouse with its order, a file, a program of Redis."""
    deployment.trackstar.connect("default", access_token=TOKEN)
    deployment.trackstar.add_order("default", "3001", script=["400:integration"])
    (folder / "monday.csv").write_text(re.findall(r"^```csv\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)[0])
    (folder / "redis-cli").write_text(REDIS_CLI.format(python=sys.executable))
    (folder / "redis-cli").chmod(0o755)


def walk(deployment: Deployment, folder: Path) -> None:
    """Run each command, and read what it says; beside a worker that has started."""
    for step in steps():
        print(step.command)  # noqa: T201 - shown where it fails: what went before
        deadline = time.monotonic() + SECONDS
        while True:
            code, said = run(deployment, folder, step)
            missing = [phrase for phrase in step.phrases if phrase not in said]
            if not (missing or code != step.code) or not ASKS.search(step.command) or time.monotonic() > deadline:
                break
        assert (step.code, []) == (code, missing), f"{step.command}\n{said}\n{deployment.workers[0].output[-3000:]}"
