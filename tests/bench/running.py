"""One contender at work: its processes, its jobs, and what a lot of jobs took.

The clock: for this worker, from the first XADD to the last record, so its intake and its producer count. For a peer,
from the moment its workers, already connected and warm, are let go on a full queue: its producer costs it nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from bench.ledgers import KEY, make_jobs
from bench.parts import Parts
from bench.processes import Program, cpu_seconds, memory_bytes, tail, wait_until_calm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.contenders import Contender
    from bench.ledgers import Job, Ledger

TESTS = Path(__file__).parents[1]
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 30.0  # without any request seen or job ended
NO_LIMIT = "10000"  # the most that the settings take; far above what is measured


class StalledError(RuntimeError):
    """A contender came to a halt; the text ends with what its workers said."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What one lot of jobs took."""

    jobs: int
    seconds: float
    requests: int  # that the stub saw: more than jobs where one was sent twice
    attempts: int  # that were written down
    worker_cpu: float
    postgres_cpu: float
    redis_cpu: float
    worker_memory: int
    most_in_flight: int

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where contenders run."""

    parts: Parts
    peers_scripts: Path  # of the peers' own virtual environment

    def scripts(self, contender: Contender) -> Path:
        # Not resolved: the link's own folder is the environment's.
        return Path(sys.executable).parent if contender.ours else self.peers_scripts

    def variables(self, ledger: Ledger, concurrency: int) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(TESTS),
            "REDIS_URL": self.parts.redis_url,
            "DATABASE_URL": ledger.url,
            "TRACKSTAR_BASE_URL": self.parts.stub.url,
            "TRACKSTAR_API_KEY": "api-key-of-the-bench",
            "CREDENTIAL_KEYS": KEY,
            "CONCURRENCY": str(concurrency),
            "WRITES_PER_SECOND": NO_LIMIT,
            "READS_PER_SECOND": NO_LIMIT,
            "BENCH_CONCURRENCY": str(concurrency),
        }


class Running:
    """Started workers of one contender with one ledger."""

    def __init__(
        self,
        contender: Contender,
        ledger: Ledger,
        environment: Environment,
        programs: Sequence[Program],
        env: dict[str, str],
    ) -> None:
        self.contender = contender
        self.ledger = ledger
        self.programs = programs
        self._parts = environment.parts
        self._python = str(environment.scripts(contender) / "python")
        self._env = env

    @property
    def memory(self) -> int:
        return memory_bytes(program.process for program in self.programs)

    @property
    def cpu(self) -> float:
        return cpu_seconds(program.process for program in self.programs)

    def warm_up(self, count: int) -> float:
        """Do some jobs that nobody measures; return the rate that a lot may be sized by."""
        return self.measure(count, delay=0.0).rate

    def measure(self, count: int, *, delay: float) -> Measurement:
        """Do that many jobs with the stub answering after `delay` seconds."""
        jobs = make_jobs(count)
        self.ledger.expect(jobs)
        self._parts.stub.reset(delay)
        self._parts.postgres.settle()
        before = self._costs()
        since = datetime.now(UTC)
        began_at = self._let_go(jobs)
        ended_at = self._wait_for(count, since)
        worker, postgres, redis = (after - b for after, b in zip(self._costs(), before, strict=True))
        seen = self._parts.stub.stats()
        return Measurement(
            jobs=count,
            seconds=ended_at.timestamp() - began_at,
            requests=seen["count"],
            attempts=self.ledger.attempts(since),
            worker_cpu=worker,
            postgres_cpu=postgres,
            redis_cpu=redis,
            worker_memory=self.memory,
            most_in_flight=seen["most_in_flight"],
        )

    def put(self, jobs: Sequence[Job], **options: Any) -> Mapping[str, Any]:
        """Enqueue jobs from a process of its own; return what it has to say."""
        return produce(self.contender, self._python, self._env, jobs, **options)

    def wait_until_seen(self, count: int) -> None:
        """Wait until the stub has seen that many requests since its reset."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (seen := self._parts.stub.stats()["count"]) < count:
            if time.monotonic() > deadline:
                raise StalledError(f"{self.contender.name}: {seen} requests of {count}, then nothing.")
            time.sleep(POLL_SECONDS)

    def _costs(self) -> tuple[float, float, float]:
        return self.cpu, cpu_seconds([self._parts.postgres.process]), cpu_seconds([self._parts.redis_process])

    def _let_go(self, jobs: Sequence[Job]) -> float:
        if self.contender.ours:
            return float(self.put(jobs)["began_at"])
        if not self.contender.is_queue:
            return self._feed_loops(jobs)
        for program in self.programs:
            program.pause()
        try:
            self.put(jobs)
        finally:
            began_at = time.time()
            for program in self.programs:
                program.resume()
        return began_at

    def _feed_loops(self, jobs: Sequence[Job]) -> float:
        began_at = time.time()
        for number, program in enumerate(self.programs):
            program.write_lines(job["id"] for job in jobs[number :: len(self.programs)])
        return began_at

    def _wait_for(self, count: int, since: datetime) -> datetime:
        moved_at, last = time.monotonic(), (0, 0)
        while True:
            # The stub is cheap to ask; the ledger is asked when every request has been seen.
            seen = self._parts.stub.stats()["count"]
            progress = self.ledger.progress(since) if seen >= count else None
            if progress is not None and progress.ended >= count and progress.last_ended_at is not None:
                return progress.last_ended_at
            now = (seen, progress.ended if progress else 0)
            if now != last:
                moved_at, last = time.monotonic(), now
            if time.monotonic() - moved_at > PATIENCE_SECONDS:
                raise StalledError(self._what_happened(count, since, seen))
            time.sleep(POLL_SECONDS)

    def _what_happened(self, count: int, since: datetime, seen: int) -> str:
        ended = self.ledger.progress(since).ended
        said = "\n".join(tail(program.log) for program in self.programs)
        return f"{self.contender.name}: {seen} requests and {ended} ended jobs of {count}, then nothing.\n{said}"


def produce(
    contender: Contender,
    python: str,
    env: Mapping[str, str],
    jobs: Sequence[Job],
    *,
    rate: float | None = None,
    warm: int = 0,
) -> Mapping[str, Any]:
    """Run the producer of a contender to its end; see `producer`."""
    command = [python, "-m", "bench.producer", contender.module, "--warm", str(warm)]
    if rate is not None:
        command += ["--rate", str(rate)]
    done = subprocess.run(
        command,
        input=json.dumps(jobs).encode(),
        env=dict(env),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise StalledError(f"The producer of {contender.name} failed:\n{done.stderr.decode()}")
    return json.loads(done.stdout)


@contextmanager
def run(
    contender: Contender,
    ledger: Ledger,
    environment: Environment,
    *,
    processes: int = 2,
    concurrency: int | None = None,
    **variables: str,
) -> Iterator[Running]:
    """Start a contender's workers on an empty Redis, wait until they are ready, and end them."""
    concurrency = concurrency or contender.concurrency
    scripts = environment.scripts(contender)
    env = environment.variables(ledger, concurrency) | variables
    environment.parts.redis.flushall()
    if preparation := contender.preparation(scripts):
        subprocess.run(preparation, env=env, check=True, capture_output=True)
    commands = contender.commands(
        processes=processes, concurrency=concurrency, redis_url=environment.parts.redis_url, scripts=scripts
    )
    folder = environment.parts.folder
    programs = [
        Program(command, env, folder, folder / f"{contender.name}-{number}.log")
        for number, command in enumerate(commands, 1)
    ]
    try:
        wait_until_calm(programs)
        yield Running(contender, ledger, environment, programs, env)
    finally:
        for program in programs:
            program.stop()
