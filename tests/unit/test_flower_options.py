"""Flower is asked before it starts: it has a password, and it only looks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import flower.options  # noqa: F401 - defines Flower's options
import pytest
from tornado.options import options

from worker.broker.flower_options import PASSWORD, READ_ONLY, check_flower

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check(program: str) -> None:
    """Ask as a program of this name does, which has read its options."""
    with click.Context(click.Command(program), info_name=program):
        check_flower()


@pytest.fixture(autouse=True)
def flower_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's options as they are when nobody has set any."""
    for name in (PASSWORD, f"{PASSWORD}_FILE", READ_ONLY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["celery", "-A", "worker", "flower"])
    before = {name: getattr(options, name) for name in ("basic_auth", "auth", "read_only")}
    options.basic_auth, options.auth, options.read_only = [], "", False
    yield options
    for name, value in before.items():
        setattr(options, name, value)


def test_flower_does_not_start_without_a_password() -> None:
    with pytest.raises(SystemExit, match=f"set {PASSWORD} to user:password"):
        check("flower")


def test_a_password_may_come_from_a_file_and_be_several(
    flower_options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("ann:one,bob:two\n")
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(tmp_path / "password"))
    check("flower")

    assert ["ann:one", "bob:two"] == flower_options.basic_auth


def test_a_password_of_the_command_line_goes_before_the_environment(
    flower_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "ann:one")
    flower_options.basic_auth = ["bob:two"]
    check("flower")

    assert ["bob:two"] == flower_options.basic_auth


def test_who_signs_in_elsewhere_needs_no_password(flower_options: Any) -> None:
    flower_options.auth = "ann@example.com"
    check("flower")

    assert ([], True) == (flower_options.basic_auth, flower_options.read_only)


@pytest.mark.parametrize(
    ("environment", "words", "read_only"),
    [
        pytest.param({}, [], True, id="unless told otherwise"),
        pytest.param({READ_ONLY: "false"}, [], False, id="told by the environment"),
        pytest.param({}, ["--read-only=false"], False, id="told by a dash"),
        pytest.param({}, ["--read_only=false"], False, id="told by an underscore"),
    ],
)
def test_flower_only_looks(
    flower_options: Any,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    words: list[str],
    read_only: bool,
) -> None:
    for name, value in {PASSWORD: "ann:one", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [*sys.argv, *words])
    check("flower")

    assert read_only is flower_options.read_only


def test_no_other_program_is_asked_for_a_password(flower_options: Any) -> None:
    check_flower()
    check("worker")

    assert ([], False) == (flower_options.basic_auth, flower_options.read_only)
