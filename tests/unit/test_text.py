"""A foreign text is shown as it is: whatever moves, hides or colours stands as an escape, and nothing is lost."""

from __future__ import annotations

import csv
import json
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoPermissionError, ResponseError

from worker.inputs.faults import fault
from worker.inputs.text import MAX_SHOWN_LENGTH, csv_lines, visible, visible_json, visible_lines
from worker.telemetry import logs

PLAIN = [
    "1001",
    "[/x]",
    "[eu]1001",
    ":100:",
    r"\[red]",
    "a b",
    "naïve",
    "東京",
    "שלום",
    "C:\\new",
    "e\u0301",
    "a/b?c#d",
    "",
]
HOSTILE = [
    ("\x1b[2J", r"\x1b[2J"),
    ("\x9b31m", r"\x9b31m"),
    ("a\x00b", r"a\x00b"),
    ("a\nb", r"a\x0ab"),
    ("a\u2028b", r"a\u2028b"),
    ("\u202e1001", r"\u202e1001"),
    ("1001\u200b", r"1001\u200b"),
    ("\ufeff1001", r"\ufeff1001"),
    ("10\u206601", r"10\u206601"),
    ("a\xa0b", r"a\xa0b"),
    ("a\xadb", r"a\xadb"),
    ("a\u3164b", r"a\u3164b"),
    ("a\ufe0f", r"a\ufe0f"),
    ("\ud800", r"\ud800"),
    ("\U000e0041", r"\U000e0041"),
    (" 1001", r"\x201001"),
    ("1001  ", r"1001\x20\x20"),
    ("\u0301x", r"\u0301x"),
    ("a\u0301\u0301\u0301\u0301", "a\u0301\u0301\\u0301\\u0301"),
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_a_person_can_read_is_shown_unchanged(text: str) -> None:
    assert text == visible(text)


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_what_a_terminal_would_obey_or_hide_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert shown == visible(text)


def test_an_escape_that_somebody_wrote_is_told_from_one_of_ours() -> None:
    assert visible("\\x1b") != visible("\x1b")
    assert visible(r"\u202e") != visible("\u202e")


@given(st.text(max_size=50), st.text(max_size=50))
def test_two_texts_that_differ_look_different(one: str, other: str) -> None:
    assert (one == other) == (visible(one) == visible(other))


@given(st.text(st.characters(exclude_categories=[]), max_size=200))
def test_no_character_that_is_shown_can_be_obeyed(text: str) -> None:
    kinds = {unicodedata.category(char) for char in visible(text)}

    assert set() == kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_a_text_that_is_too_long_is_cut_and_says_so() -> None:
    shown = visible("x" * (MAX_SHOWN_LENGTH + 7))

    assert "x" * MAX_SHOWN_LENGTH + "… (7 more characters)" == shown


def test_lines_of_our_own_keep_their_breaks_and_indents() -> None:
    assert "Traceback:\n  in f\n\\x1b[1m" == visible_lines("Traceback:\n  in f\n\x1b[1m")


@given(st.dictionaries(st.text(), st.text()))
def test_json_for_programs_means_the_same_and_is_safe_to_look_at(document: dict[str, str]) -> None:
    shown = visible_json(json.dumps(document, ensure_ascii=False).encode())

    assert document == json.loads(shown)
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoPermissionError("User w has no permissions to run the 'evalsha' command"), "EVALSHA"),
        (ResponseError("The user executing the script can't run this command or subcommand"), "lacks a right"),
        (ResponseError("WRONGTYPE Operation against a key"), "another type"),
        (ResponseError("ERR Error running script: @user_script: 9: -OOM command not allowed"), "Redis is full"),
        (ResponseError("MISCONF Redis is configured to save"), "cannot save"),
        (ResponseError("READONLY You can't write against a read only replica."), "let REDIS_URL name the primary"),
    ],
)
def test_an_error_of_a_server_is_named_with_its_remedy(error: Exception, said: str) -> None:
    assert said in fault(error)
    assert fault(error).startswith(type(error).__name__)


def test_the_text_of_an_error_is_never_repeated() -> None:
    assert "ResponseError" == fault(ResponseError("ERR jane@example.com redis://:password@host"))


def test_a_log_line_shows_a_foreign_value_as_it_is_on_a_terminal_and_in_json() -> None:
    line = {"event": "a\nb", "exception": "in f\n  x\x1b[1m", "id": "a\nforged \u202e", "count": 3}

    assert {
        "event": "a\nb",
        "exception": "in f\n  x\\x1b[1m",
        "id": r"a\x0aforged \u202e",
        "count": 3,
    } == logs._as_it_is(None, "info", line)
    written = logs._as_json(None, "info", {"id": "\u202e\x9b\x1b ü"})
    assert r'{"id":"\u202e\u009b\u001b ü"}'.encode() == written


def test_a_table_for_a_spreadsheet_has_one_line_a_row_and_no_formula() -> None:
    rows = [
        {"a": "=1+1", "b": -3, "c": datetime(2030, 1, 1, tzinfo=UTC), "d": {"k": "\u202e"}},
        {"a": 'x,"y"\r\nz', "b": True, "c": None, "d": "@SUM(A1)", "e": "not asked for"},
        {"a": "-1", "b": "+1"},
    ]
    lines = csv_lines(rows, ["a", "b", "c", "d"])

    assert 4 == len(lines)
    assert [
        ["a", "b", "c", "d"],
        ["'=1+1", "-3", "2030-01-01T00:00:00+00:00", '{"k": "\\u202e"}'],
        ['x,"y"\\x0d\\x0az', "True", "", "'@SUM(A1)"],
        ["'-1", "'+1", "", ""],
    ] == list(csv.reader(lines))
