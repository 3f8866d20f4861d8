"""`--help` of every command shows one example, a line that the command itself reads; so it cannot rot."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
import typer
from typer.exceptions import TyperException

from worker.cli import app, main

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typer.core import TyperCommand as Command

PROGRAM = "cancel-worker"
EXAMPLE = re.compile(rf"^Example: ({PROGRAM}\b.*)$", re.MULTILINE)
WIDTH = 80  # of a terminal: what it breaks in two, nobody can copy
RECORD_ID = re.compile(r"[0-9a-f-]{36}")  # that one word is as long as half a line
ROOT = typer.main.get_command(app)


def walk(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, (*path, name))


def found(path: Sequence[str]) -> Command:
    command = ROOT
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    return command


def read(line: str) -> list[str]:
    """Read a line as the commands do; return the words that name commands. Raises KeyError or TyperException."""
    path, words = list[str](), shlex.split(line)[1:]
    while hasattr(found(path), "commands"):
        path.append(words.pop(0))
    found(path).make_context(PROGRAM, words)
    return path


PATHS = list(walk(ROOT))


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_a_command_has_one_example_which_it_reads_itself(path: tuple[str, ...]) -> None:
    examples = EXAMPLE.findall(found(path).help or "")

    assert 1 == len(examples)
    assert list(path) == read(examples[0])[: len(path)]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_its_help_shows_the_example_in_one_line(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = EXAMPLE.findall(found(path).help or "")
    room = len(example) - len(RECORD_ID.sub("ID", example))
    monkeypatch.setenv("COLUMNS", str(WIDTH + room))
    monkeypatch.setattr(sys, "argv", [PROGRAM, *path, "--help"])
    with pytest.raises(SystemExit):
        main()

    assert f"Example: {example}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["list --verdict odd", "list --odd", "resolve 1 open --reason x", "batches stop", "dead-letters show x"]
)
def test_an_example_that_a_command_does_not_read_would_be_seen(line: str) -> None:
    with pytest.raises(TyperException):
        read(f"{PROGRAM} {line}")
