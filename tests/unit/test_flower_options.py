"""Flower is asked before it starts: it has a password, and it only looks."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import flower.options  # noqa: F401 - defines Flower's options
import pytest
from tornado.options import options

from worker.broker.flower_options import PASSWORD, READ_ONLY, check_flower, read_settings
from worker.environment import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def flower_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's options as they are when nobody has set any."""
    for name in [name for name in os.environ if name.startswith(("FLOWER_", "REDIS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["celery", "-A", "worker", "flower"])
    names = ("basic_auth", "auth", "auth_provider", "oauth2_key", "oauth2_secret", "oauth2_redirect_uri", "read_only")
    before = {name: getattr(options, name) for name in names}
    options.basic_auth, options.auth, options.read_only = [], "", False
    yield options
    for name, value in before.items():
        setattr(options, name, value)


def test_flower_does_not_start_without_a_password() -> None:
    with pytest.raises(SystemExit, match=f"set {PASSWORD} to user:password"):
        check_flower()


def test_a_password_may_come_from_a_file_and_be_several(
    flower_options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("ann:one,bob:two\n")
    monkeypatch.setenv(f"{PASSWORD}_FILE", str(tmp_path / "password"))
    check_flower()

    assert ["ann:one", "bob:two"] == flower_options.basic_auth


def test_a_password_of_the_command_line_goes_before_the_environment(
    flower_options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, "ann:one")
    flower_options.basic_auth = ["bob:two"]
    check_flower()

    assert ["bob:two"] == flower_options.basic_auth


PROVIDER = {
    "auth": "ann@example.com",
    "auth_provider": "flower.views.auth.GitHubLoginHandler",
    "oauth2_key": "key",
    "oauth2_secret": "secret",
    "oauth2_redirect_uri": "https://flower.example/login",
}


def test_who_signs_in_elsewhere_needs_no_password(flower_options: Any) -> None:
    for name, value in PROVIDER.items():
        setattr(flower_options, name, value)
    check_flower()

    assert ([], True) == (flower_options.basic_auth, flower_options.read_only)


@pytest.mark.parametrize("missing", PROVIDER)
def test_a_provider_that_lacks_something_is_no_password(flower_options: Any, missing: str) -> None:
    for name, value in PROVIDER.items():
        setattr(flower_options, name, "" if name == missing else value)

    with pytest.raises(SystemExit, match=f"set {PASSWORD} to user:password"):
        check_flower()


@pytest.mark.parametrize("given", ["ann", "ann:", ":pw", ":", "", "ann:one,", "ann:with,comma"])
def test_what_has_no_password_in_it_is_none(flower_options: Any, given: str) -> None:
    flower_options.basic_auth = given.split(",")

    with pytest.raises(SystemExit, match="user:password"):
        check_flower()


def test_every_setting_of_flower_may_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"OAUTH2_SECRET": '"the secret"\n', "PORT": "\ufeff5556\r\n", "COOKIE_SECRET": "x "}.items():
        (tmp_path / name).write_text(value)
        monkeypatch.setenv(f"FLOWER_{name}_FILE", str(tmp_path / name))
        monkeypatch.setenv(f"FLOWER_{name}", "")
    read_settings()

    found = [os.environ[f"FLOWER_{name}"] for name in ("OAUTH2_SECRET", "PORT", "COOKIE_SECRET")]
    assert ["the secret", "5556", "x"] == found


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "tcp://10.0.0.7:5555", "FLOWER_PORT must be a number, and holds the address that Kubernetes sets"),
        ("PORT", "5_555", "FLOWER_PORT must be a number"),
        ("MAX_TASKS", "many", "FLOWER_MAX_TASKS must be a number"),
        ("TASK_RUNTIME_METRIC_BUCKETS", "1,two", "FLOWER_TASK_RUNTIME_METRIC_BUCKETS must be a number"),
        ("READ_ONLY", "maybe", "FLOWER_READ_ONLY must be true or false"),
    ],
)
def test_what_flower_would_answer_with_a_traceback_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"FLOWER_{name}", value)

    with pytest.raises(SettingsError, match=said):
        read_settings()


def test_no_secret_is_in_a_log_line_of_flower(
    flower_options: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:of%2Fredis@cache/0")
    flower_options.basic_auth = ["ann:of-flower"]
    check_flower()
    try:
        raise ValueError("of/redis")
    except ValueError:
        logging.getLogger("flower").exception("%s and %s", "of/redis", "of-flower")

    line = caplog.handler.format(caplog.records[-1])
    assert "[secret] and [secret]" in line
    assert not [secret for secret in ("of/redis", "of-flower") if secret in line]


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
    check_flower()

    assert read_only is flower_options.read_only
