"""The command line, as an operator uses it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from worker.cli import main, parts
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

    from harness.deployment import Deployment


def run(deployment: Deployment, *words: str, typed: bytes = b"") -> tuple[int, str]:
    """Run the command line as an operator does; return its exit code and what it said."""
    program = Path(sys.executable).with_name("cancel-worker")
    done = subprocess.run([program, *words], env=deployment.env, input=typed, capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode()


Run = Callable[..., tuple[int, str]]


WIDE = 300  # columns of a terminal: no table of these tests breaks a line


@contextmanager
def settings_of_commands(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> Iterator[None]:
    """Let commands in this process have these settings, and a wide terminal, until the `with` block ends."""
    monkeypatch.setattr(parts.console, "_width", WIDE)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def with_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str = "") -> Run:
    """Return what runs the command line in this process, without a terminal, and returns what it said."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return _ran(monkeypatch, capsys, words)

    return run


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command line in this process, and returns its exit code and what it said, in one line."""

    def run(*words: str) -> tuple[int, str]:
        code, said = _ran(monkeypatch, capsys, words)
        return code, " ".join(said.replace("│", " ").split())

    return run


def _ran(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["cancel-worker", *words])
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    written = capsys.readouterr()
    return code, written.out + written.err
