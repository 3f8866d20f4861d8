"""The command that enqueues a file of jobs as one batch, and waits for it. Knows files, progress and exit codes.

What a line may hold, `cancellation.job_file` knows. The whole file is checked before its first job is sent, and only a
chunk of it is in memory: the input is copied first, so that it can be read again and does not change meanwhile.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from worker.cancellation.job_file import FileLine, UnreadableFileError, read_jobs
from worker.cancellation.request import MAX_JOB_BYTES
from worker.cancellation.status import SafeToRefund, Status
from worker.cli.batches import outcomes_table
from worker.cli.parts import client, console
from worker.cli.progress import progress
from worker.ledger.batches import Outcomes, outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from worker.client import CancelClient
    from worker.ledger.queries import Standing

COPY_BYTES = 1024 * 1024
MAX_LINE_CHARACTERS = 2 * MAX_JOB_BYTES
CHUNK = 1_000  # jobs in one trip
POLL_SECONDS = 0.5

Job = dict[str, Any]


class JobFile:
    """A copy of the input, which can be read again and again; `stated`: what a line leaves out."""

    def __init__(self, copy: IO[bytes], stated: Mapping[str, Any]) -> None:
        self._copy = copy
        self._stated = stated

    def lines(self) -> Iterator[FileLine]:
        """Read each line as a job. Raises UnreadableFileError."""
        return read_jobs(self._texts(), self._stated)

    def jobs(self, start: int = 0, end: int | None = None) -> Iterator[Job]:
        """Yield the jobs, from the one number to the other."""
        return islice((line.job for line in self.lines() if line.job is not None), start, end)

    def _texts(self) -> Iterator[str]:
        self._copy.seek(0)
        text = io.TextIOWrapper(self._copy, encoding="utf-8", newline="")
        try:
            while line := text.readline(MAX_LINE_CHARACTERS):
                yield line
        except UnicodeDecodeError as error:
            raise UnreadableFileError(
                f"The file is not written in UTF-8: {error.reason}. Save it as UTF-8."
            ) from error
        finally:
            if not self._copy.closed:  # as where the command ended in the middle of it
                text.detach()  # or it would close the copy


def enqueue_file(
    file: Annotated[str, typer.Argument(help="CSV whose header names a job's fields, or JSON lines; - : the input.")],
    connection: Annotated[
        str | None, typer.Option("--connection", "-c", help="The connection's id, where the file names none.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="The batch's name; default: the file's name and a hash of its content.")
    ] = None,
    traceparent: Annotated[
        str | None, typer.Option(help="The trace (W3C) of what runs this, where a line has none of its own.")
    ] = None,
    canary: Annotated[int, typer.Option(min=0, help="Send so many first; go on when all of them have succeeded.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask after the canary.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for all; exits 1 unless all succeeded.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 3600.0,
) -> None:
    """Ask for the orders of a file to be cancelled: all lines are checked before the first is sent.

    Interrupted and run again it doubles nothing.

    Example: cancel-worker enqueue-file monday.csv -c shop-1 --wait
    """
    given = {"connection_id": connection, "traceparent": traceparent}
    stated = {name: value for name, value in given.items() if value}
    with _copied(file) as (copy, name), closing(client()) as producer:
        source, deadline = JobFile(copy, {**stated, "batch": batch or name}), time.monotonic() + timeout
        total = _checked(source)
        canary = canary if canary < total else 0
        if canary:
            _send(producer, source, 0, canary, total)
            if not _show(_outcomes(producer, source, canary, deadline)):
                console.print(f"The canary has not succeeded: only these {canary} were sent.", style="red")
                raise typer.Exit(1)
            if not yes and sys.stdin.isatty() and file != "-":
                typer.confirm(f"Send the other {total - canary}?", abort=True)
        ended = _send(producer, source, canary, total, total)
        before = f" {ended} of them had ended before; they are not sent again." if ended else ""
        console.print(f"{total} jobs are enqueued as batch {batch or name}.{before}")
        if wait and not _show(_outcomes(producer, source, total, deadline)):
            raise typer.Exit(1)


@contextmanager
def _copied(file: str) -> Iterator[tuple[IO[bytes], str]]:
    """Copy a file, or the input; yield the copy, and a name made of the file's and a hash of its content."""
    content = hashlib.sha256()
    with tempfile.TemporaryFile() as copy:
        try:
            with sys.stdin.buffer if file == "-" else Path(file).open("rb") as source:
                while piece := source.read(COPY_BYTES):
                    content.update(piece)
                    copy.write(piece)
        except OSError as error:
            raise UnreadableFileError(f"{file} cannot be read or copied: {error.strerror}.") from error
        yield copy, f"{'input' if file == '-' else Path(file).name[:200]}-{content.hexdigest()[:12]}"


def _checked(source: JobFile) -> int:
    """Return how many jobs the file holds; where one line is bad, list all that are, and exit."""
    good = bad = 0
    for line in source.lines():
        good, bad = good + (not line.problem), bad + bool(line.problem)
        if line.problem:
            console.print(f"line {line.number}: {line.problem}", style="red", soft_wrap=True)
    if bad or not good:
        console.print(f"{bad} lines are bad, {good} are good: nothing was sent.", style="red")
        raise typer.Exit(2)
    return good


def _send(producer: CancelClient, source: JobFile, start: int, end: int, total: int) -> int:
    """Enqueue the jobs from `start` to `end`; return how many had ended before."""
    ended = 0
    with progress("jobs enqueued", total, done=start) as shown:
        for jobs in _chunks(source.jobs(start, end)):
            ended += len(producer.enqueue_unless_ended(jobs))
            shown.advance(len(jobs))
    return ended


def _chunks(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    jobs = iter(jobs)
    while chunk := list(islice(jobs, CHUNK)):
        yield chunk


def _outcomes(producer: CancelClient, source: JobFile, count: int, deadline: float) -> Outcomes:
    """Wait until the first `count` jobs have ended; return how many ended how."""
    found: Outcomes = Counter()
    with progress("jobs ended", count) as shown:
        for jobs in _chunks(source.jobs(0, count)):
            stand = producer.standing(jobs)
            while (ended := _ended(stand)) < len(stand) and time.monotonic() < deadline:
                shown.reach(found.total() + ended)
                time.sleep(POLL_SECONDS)
                stand = producer.standing(jobs)
            found.update(map(_outcome, stand.values()))
    return found


def _ended(stand: Mapping[Any, Standing | None]) -> int:
    return sum(1 for each in stand.values() if each and each.ended_at)


def _outcome(stands: Standing | None) -> tuple[str, str]:
    if stands is None:
        return "not in the ledger yet", SafeToRefund.NOT_YET
    return outcome(stands.status, stands.verdict)


def _show(found: Outcomes) -> bool:
    """Show the table of outcomes; return whether all have succeeded."""
    console.print(outcomes_table(found))
    return {Status.SUCCEEDED} >= {status for status, _ in found}
