"""How long a cancel takes, from enqueueing to its end, while `prune` deletes beside it. A part of `people`."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import make_jobs
from bench.processes import Program, tail
from bench.report import Spread, Verdict, percentile, print_table, ratios
from bench.running import PATIENCE_SECONDS, POLL_SECONDS, StalledError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench
    from bench.ledgers import Ledger
    from bench.running import Running

MOST = 1.2
RATE = 40.0
JOBS = 800  # so that the p99 is no single job's
WARM = 200
FIRST = 5  # of a producer, which open its connections
BLOCKS = 4  # in turn alone and beside the command: what the machine does meanwhile then hits both
NEVER = dict.fromkeys(("RETENTION_DAYS", "SNAPSHOT_DAYS", "DEAD_LETTER_DAYS"), "0")
# Far more is old enough than is deleted while it is measured.
SOON = {"RETENTION_DAYS": "30", "SNAPSHOT_DAYS": "7", "DEAD_LETTER_DAYS": "30"}
ALONE, COMMAND, HOUSEKEEPER = "nothing", "the command", "the housekeeper of the worker"
_ENDS = "SELECT order_id, ended_at FROM cancellations WHERE received_at >= :since AND ended_at IS NOT NULL"
_OLD = "SELECT count(*) FROM cancellations WHERE received_at < now() - interval '30 days'"


def run(bench: Bench, ledger: Ledger) -> list[Verdict]:
    for number in bench.rounds():
        bench.trying(OURS, lambda n=number: _beside_the_command(bench, ledger, n))
        bench.trying(OURS, lambda n=number: _beside_the_housekeeper(bench, ledger, n))
    done = {
        name: [bench.values(OURS.name, each, beside=name) for each in ("p50_ms", "p99_ms", "pruned")]
        for name in (ALONE, COMMAND, HOUSEKEEPER)
    }
    print_table(
        f"A cancel from enqueueing to its end, {RATE:g}/s, among {bench.options.rows:,} ended rows",
        ("beside it", "p50, ms", "p99, ms", "rows pruned meanwhile"),
        [[name, *map(Spread.of, columns)] for name, columns in done.items() if columns[0]],
    )
    alone = done[ALONE][1]
    return [
        Verdict(
            what=f"p99 beside prune by {name} ÷ alone", value=ratios(done[name][1], alone), target=MOST, at_least=False
        )
        for name in (COMMAND, HOUSEKEEPER)
        if len(done[name][1]) == len(alone) == bench.options.rounds
    ]


def _beside_the_command(bench: Bench, ledger: Ledger, number: int) -> None:
    took: dict[str, list[float]] = {ALONE: [], COMMAND: []}
    before = _old_rows(ledger)
    with bench.working(OURS, ledger, processes=1, **NEVER) as running, _pruning(bench, ledger) as prune:
        running.warm_up(WARM)
        bench.parts.postgres.settle()
        for block in range(BLOCKS):
            for name in (ALONE, COMMAND) if block % 2 == number % 2 else (COMMAND, ALONE):
                (prune.resume if name == COMMAND else prune.pause)()
                took[name] += milliseconds(bench, running, _jobs(bench) // BLOCKS)
        if not prune.alive:
            raise StalledError(f"prune ended before the jobs, give it more --rows: {tail(prune.log)}")
        prune.resume()
    pruned = {ALONE: 0, COMMAND: before - _old_rows(ledger)}
    for name, values in took.items():
        _note(bench, number, name, values, pruned[name])


def _beside_the_housekeeper(bench: Bench, ledger: Ledger, number: int) -> None:
    with bench.working(OURS, ledger, processes=1, **SOON) as running:
        running.warm_up(WARM)
        bench.parts.postgres.settle()
        before = _old_rows(ledger)
        took = milliseconds(bench, running, _jobs(bench))
        _note(bench, number, HOUSEKEEPER, took, before - _old_rows(ledger))


def _note(bench: Bench, number: int, name: str, took: list[float], pruned: int) -> None:
    assert (pruned > 0) == (name != ALONE), f"{pruned} rows were pruned beside {name}"
    bench.note(OURS, number, beside=name, p50_ms=percentile(took, 0.5), p99_ms=percentile(took, 0.99), pruned=pruned)


def _jobs(bench: Bench) -> int:
    return min(JOBS, bench.options.jobs or JOBS)


def _old_rows(ledger: Ledger) -> int:
    with ledger.engine.connect() as connection:
        return int(connection.execute(text(_OLD)).scalar_one())


@contextmanager
def _pruning(bench: Bench, ledger: Ledger) -> Iterator[Program]:
    """Let a person's `prune` run as long as the block lasts."""
    command = [str(Path(sys.executable).with_name("cancel-worker")), "prune", "--reason", "bench", "--as", "bench"]
    env = bench.environment.variables(ledger, OURS.concurrency) | SOON
    program = Program(command, env, bench.parts.folder, bench.parts.folder / "prune.log")
    try:
        time.sleep(2.0)  # until it is at work
        yield program
    finally:
        program.resume()  # a paused process does not end
        program.stop()


def milliseconds(bench: Bench, running: Running, count: int) -> list[float]:
    """Return how long each of so many cancels took, from enqueueing to its end, RATE of them a second."""
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
