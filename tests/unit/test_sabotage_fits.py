"""The list of `make sabotage` fits the code, so that it cannot rot between its runs, which take minutes.

Each wrong change has one place, compiles, and knows every name that it uses: a NameError would turn any test red and
prove nothing.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST: list[Any] = runpy.run_path(str(ROOT / "tests" / "sabotage" / "__main__.py"))["LIST"]
RUFF = Path(sys.executable).with_name("ruff")


def spoiled(sabotage: Any) -> dict[str, str]:
    """Return the files that a sabotage changes, as it leaves them."""
    texts = {file: (ROOT / "worker" / file).read_text() for file, _, _ in sabotage.changes}
    for file, old, new in sabotage.changes:
        assert 1 == texts[file].count(old), old
        texts[file] = texts[file].replace(old, new)
    return texts


def unknown_names(file: str, text: str) -> str:
    command = [RUFF, "check", "--isolated", "--quiet", "--select", "F821,F822,F823", "--stdin-filename", file, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize("sabotage", LIST, ids=lambda sabotage: sabotage.promise)
def test_each_wrong_change_has_one_place_compiles_and_knows_its_names(sabotage: Any) -> None:
    for file, text in spoiled(sabotage).items():
        if not file.endswith(".py"):
            continue  # what the tests run themselves, such as SQL
        compile(text, file, "exec")

        assert "" == unknown_names(file, text)


def test_a_wrong_change_with_an_unknown_name_would_be_seen() -> None:
    assert "F821" in unknown_names("example.py", "print(now_plus(-86400))\n")


@pytest.mark.parametrize("sabotage", LIST, ids=lambda sabotage: sabotage.promise)
def test_who_must_notice_is_there(sabotage: Any) -> None:
    assert [] == [tests for tests in sabotage.tests if not (ROOT / tests.split()[0]).exists()]
