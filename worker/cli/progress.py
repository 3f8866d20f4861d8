"""How far long work has come: a bar on a terminal, elsewhere a line now and then.

Knows how to show it; does not know what the work is. Nothing goes to standard output unless a console of it is given,
and then only while that is a terminal: so a program that reads a command's output reads its result alone.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from rich import progress as rich
from rich.text import Text

from worker.cli.parts import SafeConsole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

LINE_SECONDS = 10.0  # between two lines, and before the first: a log is read later, and short work says only its end
REFRESHES = 2  # of a bar, in a second: the work may be something that is measured

T = TypeVar("T")


class Progress:
    """How much is done; `show` is called with each new amount."""

    def __init__(self, show: Callable[[float], None], done: float) -> None:
        self._show = show
        self._done = done

    def advance(self, count: float) -> None:
        """Say how much was done since the last time."""
        self.reach(self._done + count)

    def reach(self, done: float) -> None:
        """Say how much is done in all."""
        self._done = done
        self._show(done)


@contextmanager
def progress(
    what: str,
    total: float | None = None,
    *,
    done: float = 0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show how far the block has come, of a total where that is known; afterwards nothing of a bar is left.

    A person watches `console` (by default standard error) if it is a terminal. Else lines go to standard error.
    """
    console = console or SafeConsole(stderr=True)
    if not _is_watched(console):
        yield Progress(_Lines(what, total, clock), done)
        return
    with rich.Progress(*_columns(total), console=console, transient=True, refresh_per_second=REFRESHES) as bar:
        task = bar.add_task(what, total=total, completed=round(done))
        yield Progress(lambda reached: bar.update(task, completed=reached), done)


def tracked(
    rows: Iterable[T], what: str, total: float | None = None, *, console: Console | None = None
) -> Iterator[T]:
    """Yield what is to be worked on, and show how much of it is done."""
    with progress(what, total, console=console) as shown:
        for row in rows:
            yield row
            shown.advance(1)


def _is_watched(console: Console) -> bool:
    # FORCE_COLOR lets a console say that it is a terminal, also in a pipe.
    try:
        return console.is_interactive and console.file.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _columns(total: float | None) -> Iterator[rich.ProgressColumn]:
    yield rich.TextColumn("{task.description}")
    yield rich.BarColumn() if total is not None else rich.SpinnerColumn()
    yield rich.MofNCompleteColumn()
    yield _Rate()
    yield rich.TimeElapsedColumn() if total is None else rich.TimeRemainingColumn()


class _Rate(rich.ProgressColumn):
    """How much is done in a second, where that is more than one."""

    def render(self, task: rich.Task) -> Text:
        speed = task.finished_speed or task.speed or 0
        return Text(f"{speed:,.0f}/s" if speed > 1 else "")


class _Lines:
    """A line of standard error for what is reached, at most one in LINE_SECONDS."""

    def __init__(self, what: str, total: float | None, clock: Callable[[], float]) -> None:
        self._what = what
        self._of = "" if total is None else f" of {total:,.0f}"
        self._clock = clock
        self._began = self._last = clock()

    def __call__(self, done: float) -> None:
        now = self._clock()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            _say(f"{self._what}: {done:,.0f}{self._of}, {now - self._began:.0f} s\n")


def _say(line: str) -> None:
    """Write to standard error, if there is one. That nobody reads it is no reason to stop the work."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()
