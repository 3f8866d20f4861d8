"""How long a cancel takes, from enqueueing to its recorded end, while `prune` deletes beside it. A part of `people`."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import make_jobs
from bench.report import Spread, Verdict, percentile, print_table, ratios
from bench.running import PATIENCE_SECONDS, POLL_SECONDS, StalledError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench
    from bench.ledgers import Ledger
    from bench.running import Running

MOST = 1.2
RATE = 40.0
JOBS = 800  # so the p99 is not one single job's
WARM = 200
FIRST = 5  # of a producer, which open its connections
NEVER = {name: "0" for name in ("RETENTION_DAYS", "SNAPSHOT_DAYS", "DEAD_LETTER_DAYS")}
# Far more is old enough than is deleted while it is measured.
SOON = {"RETENTION_DAYS": "30", "SNAPSHOT_DAYS": "7", "DEAD_LETTER_DAYS": "30"}
CASES = {"nothing": (NEVER, False), "the housekeeper of the worker": (SOON, False), "the command": (NEVER, True)}
_ENDS = "SELECT order_id, ended_at FROM cancellations WHERE received_at >= :since AND ended_at IS NOT NULL"
_OLDEST = "SELECT count(*) FROM cancellations WHERE received_at < now() - interval '30 days'"


def run(bench: Bench, ledger: Ledger) -> list[Verdict]:
    names = list(CASES)
    for number in range(bench.options.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            bench.trying(OURS, lambda n=number, at=name: _measure(bench, ledger, n, at))
    done = {
        name: [bench.values(OURS.name, each, beside=name) for each in ("p50_ms", "p99_ms", "pruned")] for name in names
    }
    print_table(
        f"A cancel from enqueueing to its end, {RATE:g}/s, among {bench.options.rows:,} ended rows",
        ("beside it", "p50, ms", "p99, ms", "rows pruned meanwhile"),
        [[name, *map(Spread.of, columns)] for name, columns in done.items() if columns[0]],
    )
    alone = done["nothing"][1]
    return [
        Verdict(
            what=f"p99 of a cancel beside prune by {name} ÷ alone",
            value=ratios(p99, alone),
            target=MOST,
            at_least=False,
        )
        for name, (_, p99, _) in done.items()
        if name != "nothing" and len(p99) == len(alone) == bench.options.rounds
    ]


def _measure(bench: Bench, ledger: Ledger, number: int, name: str) -> None:
    settings, by_command = CASES[name]
    with bench.working(OURS, ledger, processes=1, **settings) as running:
        running.warm_up(WARM)
        bench.parts.postgres.settle()
        before = _old_rows(ledger)
        with _pruning(bench, ledger) if by_command else nullcontext():
            took = _milliseconds(bench, running, min(JOBS, bench.options.jobs or JOBS))
    pruned = before - _old_rows(ledger)
    assert (pruned > 0) == (name != "nothing"), f"{pruned} rows were pruned beside {name}"
    bench.note(OURS, number, beside=name, p50_ms=percentile(took, 0.5), p99_ms=percentile(took, 0.99), pruned=pruned)


def _old_rows(ledger: Ledger) -> int:
    with ledger.engine.connect() as connection:
        return int(connection.execute(text(_OLDEST)).scalar_one())


@contextmanager
def _pruning(bench: Bench, ledger: Ledger) -> Iterator[None]:
    """Let a person's `prune` run as long as the block lasts."""
    command = [str(Path(sys.executable).with_name("cancel-worker")), "prune", "--reason", "bench", "--as", "bench"]
    env = bench.environment.variables(ledger, OURS.concurrency) | SOON
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(2.0)  # until it is at work
        try:
            yield
            assert process.poll() is None, (
                f"prune ended before the jobs: {process.stdout.read() if process.stdout else ''}"
            )
        finally:
            process.terminate()


def _milliseconds(bench: Bench, running: Running, count: int) -> list[float]:
    jobs = make_jobs(FIRST + count)
    bench.parts.stub.reset(0.0)
    since = datetime.now(UTC)
    sent = running.put(jobs, rate=RATE, warm=FIRST)["sent"]
    running.wait_until_seen(len(jobs))
    ends = _ends(running, since, len(jobs))
    # The database runs on this machine: its clock is ours.
    ahead = time.time_ns() - time.monotonic_ns()
    return [ends[order].timestamp() * 1e3 - (at + ahead) / 1e6 for order, at in sent.items()]


def _ends(running: Running, since: datetime, count: int) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with running.ledger.engine.connect() as connection:
            found = {row.order_id: row.ended_at for row in connection.execute(text(_ENDS), {"since": since})}
        if len(found) >= count:
            return found
        time.sleep(POLL_SECONDS)
    raise StalledError(f"{len(found)} of {count} jobs have ended, then nothing.")
