"""Every error is one sentence with what to do; wrong input exits 2, an unreachable part 3; no traceback ever."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet

from worker.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "redis://127.0.0.1:1/0"


def _run(arguments: list[str], folder: Path, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"REDIS_URL": NOWHERE, "DATABASE_URL": f"sqlite:///{folder / 'ledger.sqlite3'}", **environment}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKSTAR_", "CREDENTIAL_"))}
    return subprocess.run(
        [sys.executable, "-c", "from worker.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        input=typed,
        timeout=60,
        env={**kept, **given},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "sentence"),
    [
        pytest.param(["enqueue", "."], {}, 2, "may not be '.' or '..'", id="bad order id"),
        pytest.param(["enqueue", "a", "b", "--key", "k"], {}, 2, "one key means one intent", id="one key for two"),
        pytest.param(["enqueue", "a", "--send-by", "soon"], {}, 2, "send_by", id="no instant"),
        pytest.param(["enqueue", "a"], {}, 3, "Redis could not be reached", id="Redis away"),
        pytest.param(["show", "a"], {}, 3, "cancel-worker migrate", id="no tables"),
        pytest.param(["list"], {"DATABASE_URL": "sqlite:////nowhere/x"}, 3, "Check DATABASE_URL", id="ledger away"),
        pytest.param(["list"], {"DATABASE_URL": "mysql://x"}, 2, "only postgresql and sqlite", id="other database"),
        pytest.param(["list"], {"DATABASE_URL": "rubbish"}, 2, "no database address", id="no database address"),
        pytest.param(["connections", "add", "a"], {}, 2, "CREDENTIAL_KEYS is missing", id="no key for tokens"),
        pytest.param(["run"], {}, 2, "TRACKSTAR_API_KEY is missing", id="no API key"),
        pytest.param(["run"], {"TRACKSTAR_API_KEY": "k"}, 2, "run `cancel-worker migrate`", id="not migrated"),
        pytest.param(["sandbox", "--script", "x"], {}, 2, "is no script", id="no script"),
    ],
)
def test_an_error_is_one_sentence_with_what_to_do(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], code: int, sentence: str
) -> None:
    done = _run(arguments, tmp_path, **environment)

    assert code == done.returncode
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_token_is_asked_for_on_standard_input_and_kept_encrypted(tmp_path: Path) -> None:
    key = Fernet.generate_key().decode()
    assert 0 == _run(["migrate"], tmp_path).returncode

    added = _run(["connections", "add", "shop-1"], tmp_path, "the-secret-token\n", CREDENTIAL_KEYS=key)
    listed = _run(["connections", "list"], tmp_path)

    assert 0 == added.returncode, added.stderr
    assert "shop-1" in listed.stdout
    assert not [file for file in tmp_path.iterdir() if b"the-secret-token" in file.read_bytes()]


def test_what_is_not_known_is_said_with_what_to_check(tmp_path: Path) -> None:
    _run(["migrate"], tmp_path)

    for arguments in (["show", "1001"], ["withdraw", "no-id"]):
        done = _run(arguments, tmp_path)

        assert 2 == done.returncode
        assert "inbox" in done.stderr


def test_the_program_says_its_version_and_needs_no_setting_for_it(tmp_path: Path) -> None:
    said = _run(["--version"], tmp_path, DATABASE_URL="nonsense")

    assert (0, f"cancel-worker {__version__}\n") == (said.returncode, said.stdout)
