"""Who runs: this worker, six queues and a plain loop, each with its command line and what runs at once in it.

Knows how each is started; what they run is `peers`. How much each does at once was found by trial: see `tune`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One way to do the job."""

    name: str
    command: tuple[str, ...]  # with {processes}, {concurrency}, {number} and {redis}
    concurrency: int  # at once in one process, where answers come at once
    concurrency_slow: int  # and where they take their time
    forks: bool = False  # one command starts all processes
    ours: bool = False
    is_queue: bool = True
    before: tuple[str, ...] = ()  # to be run once on a fresh database

    @property
    def module(self) -> str:
        return f"bench.peers.{self.name}"

    def commands(self, *, processes: int, concurrency: int, redis_url: str, scripts: Path) -> list[list[str]]:
        """Return the command line of each program to start; `scripts` is where its environment keeps them."""
        words = {"processes": processes, "concurrency": concurrency, "redis": redis_url, "module": self.module}
        numbers = range(1, 2 if self.forks else processes + 1)
        return [_filled(self.command, scripts, words | {"number": number}) for number in numbers]

    def preparation(self, scripts: Path) -> list[str]:
        return _filled(self.before, scripts, {"module": self.module}) if self.before else []


def _filled(command: tuple[str, ...], scripts: Path, words: dict[str, object]) -> list[str]:
    program, *arguments = (word.format(**words) for word in command)
    return [str(scripts / program), *arguments]


OURS = Contender(
    name="ours",
    command=("celery", "-A", "worker", "worker", "-n", "bench{number}@%h"),
    concurrency=256,
    concurrency_slow=256,
    ours=True,
)
PLAIN_CELERY = Contender(
    name="plain_celery",
    command=(
        *("celery", "-A", "{module}", "worker", "-P", "threads", "-c", "{concurrency}", "-E"),
        *("-n", "bench{number}@%h", "-l", "WARNING"),
    ),
    concurrency=16,
    concurrency_slow=32,
)
DRAMATIQ = Contender(
    name="dramatiq",
    command=("dramatiq", "{module}", "-p", "{processes}", "-t", "{concurrency}"),
    concurrency=8,
    concurrency_slow=32,
    forks=True,
)
RQ = Contender(
    name="rq",
    command=(
        *("rq", "worker-pool", "cancellations", "-n", "{concurrency}", "-w", "rq.worker.SimpleWorker"),
        *("-S", "json", "-u", "{redis}", "-q"),
    ),
    concurrency=4,
    concurrency_slow=16,
    forks=True,
)
HUEY = Contender(
    name="huey",
    command=("huey_consumer", "{module}.huey", "-k", "thread", "-w", "{concurrency}", "-q"),
    concurrency=8,
    concurrency_slow=32,
)
ARQ = Contender(name="arq", command=("arq", "{module}.WorkerSettings"), concurrency=50, concurrency_slow=100)
TASKIQ = Contender(
    name="taskiq",
    command=(
        *("taskiq", "worker", "{module}:broker", "--workers", "{processes}", "--log-level", "WARNING"),
        *("--max-async-tasks", "{concurrency}", "--max-prefetch", "{concurrency}"),
    ),
    concurrency=50,
    concurrency_slow=100,
    forks=True,
)
PROCRASTINATE = Contender(
    name="procrastinate",
    command=(
        *("procrastinate", "--app", "{module}.app", "worker", "-q", "cancellations"),
        *("-c", "{concurrency}", "--delete-jobs", "successful"),
    ),
    concurrency=20,
    concurrency_slow=50,
    before=("procrastinate", "--app", "{module}.app", "schema", "--apply"),
)
THREAD_LOOP = Contender(
    name="thread_loop",
    command=("python", "-m", "{module}"),
    concurrency=8,
    concurrency_slow=32,
    is_queue=False,
)

PEERS = (PLAIN_CELERY, DRAMATIQ, RQ, HUEY, ARQ, TASKIQ, PROCRASTINATE, THREAD_LOOP)
CONTENDERS = {contender.name: contender for contender in (OURS, *PEERS)}
