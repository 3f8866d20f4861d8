"""Jobs in a file, in every form that an OMS or a spreadsheet writes; each bad line is told by its number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.job_file import FileLine, UnreadableFileError, read_jobs

SHOP = {"connection_id": "shop-1"}
B = {**SHOP, "order_id": "B"}


def read(text: str, **stated: Any) -> list[FileLine]:
    return list(read_jobs(text.splitlines(keepends=True), SHOP | stated))


def jobs(text: str, **stated: Any) -> list[dict[str, Any] | None]:
    return [line.job for line in read(text, **stated)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("order_id\nB\n", id="one column"),
        pytest.param("order_id\nB", id="no line break at the end"),
        pytest.param("order_id\r\nB\r\n", id="line breaks of Windows"),
        pytest.param("\ufefforder_id,reason\nB,\n", id="the mark that a spreadsheet puts first"),
        pytest.param("order_id;reason\nB;\n", id="semicolons"),
        pytest.param("order_id\treason\nB\t\n", id="tabs"),
        pytest.param("\n\norder_id\n\nB\n\n", id="blank lines"),
        pytest.param(' order_id , reason\n" B ",\n', id="spaces and quotes"),
        pytest.param("reason,order_id\n,B\n", id="another order"),
        pytest.param("order_id,reason,priority\nB\n", id="cells left out at the end"),
        pytest.param('{"order_id": "B"}\n', id="JSON"),
        pytest.param('\ufeff\n{"order_id": "B"}\n\n', id="JSON with blank lines"),
        pytest.param('{"order_id": "B", "reason": null}\n', id="JSON with null"),
    ],
)
def test_a_job_is_read_in_every_form(text: str) -> None:
    assert [B] == jobs(text)


def test_what_a_line_states_goes_before_what_the_command_states() -> None:
    text = "order_id,connection_id,priority\nB,,\nC,shop-2,urgent\n"

    assert [B | {"priority": "bulk"}, {"order_id": "C", "connection_id": "shop-2", "priority": "urgent"}] == jobs(
        text, priority="bulk"
    )


def test_metadata_is_a_json_object_in_its_cell() -> None:
    assert [B | {"metadata": {"ticket": 7}}] == jobs('order_id,metadata\nB,"{""ticket"": 7}"\n')


def test_a_cell_of_several_lines_is_one_and_the_next_job_keeps_its_number() -> None:
    found = read('order_id,reason\nB,"late\nand wrong"\nC,x\n')

    assert [(2, "late\nand wrong"), (4, "x")] == [(line.number, (line.job or {})["reason"]) for line in found]


@pytest.mark.parametrize(
    ("number", "says", "text"),
    [
        (2, "order_id", "order_id,reason\n,late\nB,x\n"),
        (2, "3 cells", "order_id,reason\nA,b,c\nB,x\n"),
        (2, "priority", "order_id,priority\nA,soon\nB,urgent\n"),
        (2, "send_by", "order_id,send_by\nA,tomorrow\nB,2030-01-01T00:00:00Z\n"),
        (2, "metadata", "order_id,metadata\nA,{\nB,{}\n"),
        (2, "no line of CSV", 'order_id,reason\n"A"x,late\nB,x\n'),
        (1, "order_id", '{"reason": "late"}\n{"order_id": "B"}\n'),
        (2, "not one JSON object", '{"order_id": "B"}\nrubbish\n'),
        (2, "unknown field", '{"order_id": "B"}\n{"order_id": "A", "ordr": 1}\n'),
    ],
)
def test_a_bad_line_is_told_by_number_and_reason_and_the_others_are_read(number: int, says: str, text: str) -> None:
    found = read(text)
    (bad,) = [line for line in found if line.job is None]

    assert number == bad.number
    assert says in bad.problem
    assert ["B"] == [line.job["order_id"] for line in found if line.job]


@pytest.mark.parametrize(
    ("says", "text"),
    [
        ("empty", ""),
        ("empty", "\n \n"),
        ("'ordr'", "ordr\nB\n"),
        ("'B'", "B\nC\n"),
        ("order_id", "reason\nlate\n"),
        ("each field once", "order_id,order_id\nB,B\n"),
        ("array", '[{"order_id": "B"}]\n'),
    ],
)
def test_a_file_that_is_none_of_jobs_is_refused_with_what_to_correct(says: str, text: str) -> None:
    with pytest.raises(UnreadableFileError, match=says):
        read(text)


@given(st.lists(st.text(max_size=40), max_size=6), st.sampled_from(["order_id,reason\n", '{"order_id": "B"}\n', ""]))
def test_whatever_stands_in_a_file_each_line_is_a_job_or_has_a_reason(lines: list[str], head: str) -> None:
    try:
        found = read(head + "\n".join(lines))
    except UnreadableFileError:
        return
    assert all((line.job is None) is bool(line.problem) for line in found)
