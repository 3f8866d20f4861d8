"""Names that look the same are the same: what a person cannot see is refused, with its place in Unicode."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.request import InvalidRequest, make_request
from worker.inputs.identifiers import problem_of_name

FIELDS = ("connection_id", "order_id", "idempotency_key")
HIDDEN = {
    "a zero width space": ("1001\u200b", "U+200B"),
    "a zero width joiner inside": ("10\u200d01", "U+200D"),
    "a mark of byte order": ("\ufeff1001", "U+FEFF"),
    "a direction override": ("1001\u202e", "U+202E"),
    "a direction isolate": ("\u20661001\u2069", "U+2066"),
    "a soft hyphen": ("10\u00ad01", "U+00AD"),
    "a tag": ("1001\U000e0041", "U+E0041"),
    "a variation selector": ("1001\ufe0f", "U+FE0F"),
    "a Hangul filler": ("1001\u3164", "U+3164"),
    "a blank of Braille": ("1001\u2800", "U+2800"),
    "a grapheme joiner": ("10\u034f01", "U+034F"),
    "a no-break space inside": ("10\u00a001", "U+00A0"),
    "an ideographic space inside": ("10\u300001", "U+3000"),
    "a line separator": ("10\u202801", "U+2028"),
    "a paragraph separator": ("10\u202901", "U+2029"),
    "a character for private use": ("1001\ue000", "U+E000"),
    "a non-character": ("1001\ufdd0", "U+FDD0"),
    "the last non-character": ("1001\U0010ffff", "U+10FFFF"),
    "a space behind": ("1001 ", "U+0020"),
    "a space in front": (" 1001", "U+0020"),
    "a line feed behind": ("1001\n", "U+000A"),
    "a tabulator in front": ("\t1001", "U+0009"),
    "a thin space behind": ("1001\u2009", "U+2009"),
    "an escape": ("10\x1b[31m01", "U+001B"),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", HIDDEN)
def test_a_name_with_what_nobody_sees_is_refused_and_the_character_is_named(field: str, name: str) -> None:
    value, character = HIDDEN[name]
    with pytest.raises(InvalidRequest) as refusal:
        make_request({"connection_id": "shop-1", "order_id": "o-1", field: value})

    assert "invalid_job" == refusal.value.reason
    assert f"`{field}`" in str(refusal.value)
    assert character in str(refusal.value)
    assert value not in str(refusal.value)


@pytest.mark.parametrize(
    "value",
    ["1001", "a b", "A/1=2+3#4?5%", "Ä-1", "a\u0301", "📦", "中文 1", "שלום", "[/x]", ":100:", "-", "#", "x" * 255],
)
def test_a_name_that_a_warehouse_may_write_is_accepted(value: str) -> None:
    assert problem_of_name(value) is None


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_whatever_is_accepted_shows_each_of_its_characters(value: str) -> None:
    if problem_of_name(value) is None:
        assert value == value.strip()
        assert set() == {unicodedata.category(char) for char in value} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert {" "} >= {char for char in value if char.isspace()}


@pytest.mark.parametrize("order_id", ["9999", "c-1", "C-10"])
def test_no_key_takes_the_place_of_the_one_that_is_derived_for_another_order(order_id: str) -> None:
    with pytest.raises(InvalidRequest, match="`idempotency_key` begins with 'cancel:'"):
        make_request({"connection_id": "shop-1", "order_id": order_id, "idempotency_key": "cancel:C-1"})


def test_the_derived_key_said_aloud_is_that_of_its_own_order() -> None:
    said = make_request({"connection_id": "shop-1", "order_id": "C-1", "idempotency_key": "cancel:C-1"})

    assert make_request({"connection_id": "shop-1", "order_id": "C-1"}).record_id == said.record_id
