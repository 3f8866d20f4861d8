"""How far long work has come: a bar for a person, a line now and then for a log, and nothing that stops the work."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import pytest
from harness.screen import open_screen
from rich.console import Console

from worker.cli.progress import LINE_SECONDS, progress, tracked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.screen import Screen


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def screen() -> Iterator[Screen]:
    with open_screen() as screen:
        yield screen


def test_a_log_has_a_line_every_ten_seconds_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress("replay", 2_000, clock=clock) as shown:
        for _ in range(40):
            shown.advance(50)
            clock.now += 1

    said = capsys.readouterr()
    assert ["replay: 550 of 2,000, 10 s", "replay: 1,050 of 2,000, 20 s", "replay: 1,550 of 2,000, 30 s"] == (
        said.err.splitlines()
    )
    assert not said.out


def test_a_total_that_nobody_knows_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress("rows deleted", done=7, clock=clock) as shown:
        clock.now += LINE_SECONDS
        shown.advance(1_000)

    assert "rows deleted: 1,007, 10 s\n" == capsys.readouterr().err


def test_work_of_less_than_ten_seconds_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert [1, 2, 3] == list(tracked([1, 2, 3], "tokens", 3))

    assert ("", "") == capsys.readouterr()


def test_a_pipe_that_is_told_to_have_colours_has_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(tracked([1, 2, 3], "tokens", 3))

    assert ("", "") == capsys.readouterr()


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("stderr", [None, closed(), Broken()], ids=["none", "closed", "broken"])
def test_that_nobody_reads_it_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stderr: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    clock, done = Clock(), 0
    with progress("replay", 3, clock=clock) as shown:
        for _ in range(3):
            clock.now += LINE_SECONDS
            shown.advance(1)
            done += 1

    assert 3 == done
    assert not capsys.readouterr().out


def test_a_terminal_shows_a_bar_and_nothing_of_it_stays(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", screen.file)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("replay", 2_000) as shown:
        shown.advance(1_500)
        shown.reach(2_000)
    written = screen.ended()

    assert "replay" in written
    assert "2000/2000" in written
    assert written.endswith("\x1b[2K")  # the line is wiped
    assert not capsys.readouterr().out


def test_lines_stand_above_the_bar_of_the_same_terminal(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=screen.file, width=100)
    for number in tracked([1, 2], "soak", 2, console=console):
        console.print(f"fault {number}", highlight=False)

    assert ["fault 1", "fault 2"] == re.findall(r"(fault \d) *\r\n", screen.ended())


def test_a_terminal_that_cannot_move_its_cursor_has_lines(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with progress("soak", 60, console=Console(file=screen.file), clock=clock) as shown:
        clock.now += LINE_SECONDS
        shown.reach(10)

    assert not screen.ended()
    assert "soak: 10 of 60, 10 s\n" == capsys.readouterr().err
