"""One form for the whole suite: an assertion has the expected value on the left."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.expected_first import wrong_way_round

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", sorted(TESTS.rglob("*.py")), ids=lambda file: str(file.relative_to(TESTS)))
def test_the_expected_value_comes_first(file: Path) -> None:
    assert [] == wrong_way_round(file.read_text())


def test_an_assertion_the_wrong_way_round_is_found() -> None:
    assert [2] == wrong_way_round("assert 1 == found\nassert found == 1\nassert found == other\n")
