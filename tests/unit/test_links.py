"""A link from outside is shown as it is, or not at all; where it stands in an answer nobody documents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.cancellation.listing import read_magic_link
from worker.inputs.links import read_link

LINK = "https://link.example.com:8443/a/b?token=x%2F1&y=2#z"


def link_in(document: Any) -> str | None:
    return read_magic_link(200, json.dumps(document).encode()).link


def test_an_https_link_is_kept_as_it_came() -> None:
    assert LINK == read_link(LINK)


@pytest.mark.parametrize(
    "odd",
    [
        None,
        1,
        True,
        b"https://a.b/",
        "",
        "http://link.example.com/x",
        "HTTPX://a.b",
        "ftp://a.b/c",
        "javascript:alert(1)",
        "//link.example.com/x",
        "https://",
        "https:///x",
        "https://good.example@evil.example/x",
        "https://user:pass@link.example.com/",
        "https://a.b/ c",
        "https://a.b/\nc",
        "https://a.b/\x1b[2J",
        "https://a.b/\u202ec",
        "https://l\u0456nk.example.com/",  # an i of another script
        "https://a.b\\@c.d/",
        "https://a.b:99999/",
        "https://[a.b/",
        " https://a.b/",
        "https://a.b/" + "x" * 2000,
    ],
)
def test_what_is_no_link_that_a_person_should_open_is_none(odd: Any) -> None:
    assert read_link(odd) is None


@pytest.mark.parametrize(
    "document",
    [
        {"url": LINK},
        {"data": {"url": LINK}},
        {"data": [{"id": 1, "url": LINK}]},
        {"data": {"link": {"url": LINK, "expires": "soon"}}, "id": "x"},
        {"url": "http://plain.example.com", "data": {"url": LINK}},
        {"url": None, "data": {"url": {"url": LINK}}},
    ],
)
def test_the_link_is_found_wherever_it_stands(document: Any) -> None:
    assert LINK == link_in(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"data": None},
        {"data": LINK},
        {"href": LINK},
        {"url": "http://plain.example.com"},
        {"a": {"b": {"c": {"d": {"url": LINK}}}}},
        [{"url": LINK}],
        {"data": [0] * 1000},
    ],
)
def test_an_answer_without_a_link_has_none(document: Any) -> None:
    assert link_in(document) is None


def test_an_answer_that_cannot_be_read_has_none() -> None:
    deep = b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    assert [None] * 4 == [read_magic_link(200, each).link for each in (b"", b"{", b"\xff", deep)]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.just(LINK),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.just("url"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values | st.binary(max_size=40))
def test_nothing_raises_and_no_other_link_comes_out(document: Any) -> None:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()

    assert read_magic_link(200, content).link in {None, LINK}
