"""The page about scale shows what its bench measures: each line, each number of workers, whatever the values are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.measures.scale import LOAD, REST
from bench.options import WORKERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text()


def tables() -> list[list[list[str]]]:
    """Return the cells of the tables that have a column for each number of workers."""
    found = re.findall(r"^\| workers \| 1 .*\n\| ---.*\n(?:\|.*\n)+", PAGE, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in each.splitlines()] for each in found]


@pytest.mark.parametrize(("number", "measured"), [(0, REST), (1, LOAD)], ids=["at rest", "a cancel"])
def test_each_table_has_the_lines_and_columns_of_the_bench(number: int, measured: dict[str, str]) -> None:
    head, _, *rows = tables()[number]

    assert ["workers", *map(str, WORKERS)] == head
    assert list(measured.values()) == [row[0] for row in rows]
    assert all(re.fullmatch(r"[\d.,]+", value) for row in rows for value in row[1:])


def test_what_was_not_tried_is_named() -> None:
    untried = PAGE.partition("## What was not tried")[2]

    assert all(each in untried for each in ("hundred workers", "more than one machine", "managed Redis"))
