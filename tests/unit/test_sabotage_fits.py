"""The list of `make sabotage` fits the code, so that it cannot rot between its runs, which take minutes."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST: list[Any] = runpy.run_path(str(ROOT / "tests" / "sabotage" / "__main__.py"))["LIST"]


@pytest.mark.parametrize("sabotage", LIST, ids=lambda sabotage: sabotage.promise)
def test_each_wrong_change_has_one_place_where_it_fits(sabotage: Any) -> None:
    texts = {file: (ROOT / "worker" / file).read_text() for file, _, _ in sabotage.changes}
    for file, old, new in sabotage.changes:
        assert texts[file].count(old) == 1, old
        texts[file] = texts[file].replace(old, new)
