"""The threat model names real tests, and says something of each entry point."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = "| entry point | who stands there | what they can do | what they cannot | test |"
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
# Whoever looks for one of these must find a row.
ENTRY_POINTS = {
    *("cancellations:inbox", "cancellations:events", "cancellations:hints", "HEALTH_PORT", "Flower", "webhook"),
    *("PostgreSQL", "SQLite", "backup", "cancel-worker", "Trackstar", "Grafana", "environment", "container", "build"),
}


def rows() -> list[list[str]]:
    """Return the cells of each row that says what stops somebody."""
    _, *tables = (ROOT / "docs" / "threats.md").read_text().split(HEAD)
    lines = [line for table in tables for line in table.partition("\n\n")[0].splitlines()[2:]]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def functions_of(file: str) -> set[str]:
    path = ROOT / file
    tree = ast.parse(path.read_text() if path.exists() else "")
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: " ".join(row[:2]).replace("`", ""))
def test_each_row_names_tests_that_exist(row: list[str]) -> None:
    named = TEST.findall(row[-1])

    assert 5 == len(row)
    assert named
    assert "" == re.sub(TEST, "", row[-1]).strip(", ")
    assert all(row[1:])
    assert [] == [name for file, name in named if name not in functions_of(file)]


def test_each_entry_point_has_a_row() -> None:
    points = " ".join(row[0] for row in rows())

    assert [] == [point for point in sorted(ENTRY_POINTS) if point not in points]


def test_a_test_that_is_not_there_is_noticed() -> None:
    assert "test_each_entry_point_has_a_row" in functions_of("tests/unit/test_threats.py")
    assert "test_nothing" not in functions_of("tests/unit/test_threats.py")
    assert set() == functions_of("tests/unit/test_nowhere.py")
