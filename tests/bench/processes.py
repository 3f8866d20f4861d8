"""Processes that the bench starts, and what they cost: CPU seconds and memory, with all their children.

Ends only what it has started, each by its own id.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

STOP_SECONDS = 15.0
CALM = 0.2  # of a core: below this, twice in a row, a worker has finished starting
CALM_WINDOW_SECONDS = 0.4
MAX_START_SECONDS = 60.0


class Program:
    """One program with its children."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.process = psutil.Process(self._popen.pid)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def write_lines(self, lines: Iterable[str]) -> None:
        """Write to its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._popen.stdin.flush()

    def pause(self) -> None:
        for process in _family(self.process):
            process.suspend()

    def resume(self) -> None:
        for process in _family(self.process):
            process.resume()

    def stop(self) -> None:
        """Ask it to end as an orchestrator does; what is left of its family after a while is killed."""
        family = _family(self.process)
        with suppress(OSError):
            self._popen.stdin.close()  # type: ignore[union-attr] - it is a pipe
        if self.alive:
            self._popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        for process in family:
            with suppress(psutil.NoSuchProcess):  # psutil knows a number that was given to another
                process.kill()
        self._popen.wait()


def cpu_seconds(roots: Iterable[psutil.Process]) -> float:
    """CPU time of these processes and of all their children, also of those that have ended."""
    return sum(_own_and_reaped(process) for root in roots for process in _family(root))


def memory_bytes(roots: Iterable[psutil.Process]) -> int:
    """Resident memory of these processes and of all their children."""
    total = 0
    for root in roots:
        for process in _family(root):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def _family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _own_and_reaped(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    reaped = float(times.children_user + times.children_system)
    return reaped + max(times.user + times.system, scheduled_seconds(process.pid))


def scheduled_seconds(pid: int) -> float:
    """CPU time to the nanosecond, 0 where the kernel does not tell: the usual figures lose a hundredth of a second."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            total += int(task.read_text().split()[0])
    return total / 1e9


def wait_until_calm(programs: Sequence[Program]) -> None:
    """Wait until freshly started programs have nothing more to do."""
    deadline = time.monotonic() + MAX_START_SECONDS
    calm = 0
    while calm < 2:
        before = cpu_seconds(program.process for program in programs)
        time.sleep(CALM_WINDOW_SECONDS)
        for program in programs:
            if not program.alive:
                raise RuntimeError(f"{program.log.name} ended at its start:\n{tail(program.log)}")
        used = cpu_seconds(program.process for program in programs) - before
        calm = calm + 1 if used < CALM * CALM_WINDOW_SECONDS else 0
        if time.monotonic() > deadline:
            raise RuntimeError(f"{programs[0].log.name} did not come to rest:\n{tail(programs[0].log)}")


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
