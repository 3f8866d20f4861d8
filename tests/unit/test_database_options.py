"""The options of a PostgreSQL address, as they are read."""

from __future__ import annotations

import pytest

from worker.inputs.database_options import (
    MAX_THRESHOLD,
    SessionOptions,
    one_value_each,
    read_prepare_threshold,
    read_session_options,
    write_session_options,
)


@pytest.mark.parametrize(
    ("options", "settings", "others"),
    [
        ("", {}, ()),
        ("-csearch_path=cancel", {"search_path": "cancel"}, ()),
        ("-c search_path=cancel,public -c  work_mem=4MB", {"search_path": "cancel,public", "work_mem": "4MB"}, ()),
        ("--statement-timeout=5s", {"statement_timeout": "5s"}, ()),
        (r"-c app.note=two\ words\\", {"app.note": "two words\\"}, ()),
        ("-c a=1 -c a=2", {"a": "2"}, ()),
        ("endpoint=ep-cool-1 -c a=x=y", {"a": "x=y"}, ("endpoint=ep-cool-1",)),
        ("-c", {}, ("-c",)),
        ("-e -B 5", {}, ("-e", "-B", "5")),
    ],
)
def test_session_options_are_split_as_the_server_does(
    options: str, settings: dict[str, str], others: tuple[str, ...]
) -> None:
    read = read_session_options(options)

    assert SessionOptions(settings, others) == read
    assert read == read_session_options(write_session_options(read))


@pytest.mark.parametrize(
    ("text", "threshold"),
    [("0", 1), ("5", 5), (" 7 ", 7), ("none", None), ("NULL", None), ("999999999", MAX_THRESHOLD)],
)
def test_a_threshold_is_bounded_or_never(text: str, threshold: int | None) -> None:
    assert threshold == read_prepare_threshold(text)


@pytest.mark.parametrize("text", ["-1", "soon", "1e3", "9" * 30])
def test_a_threshold_that_is_no_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"DATABASE_URL gives prepare_threshold"):
        read_prepare_threshold(text)


def test_options_may_be_given_several_times_and_nothing_else() -> None:
    assert {"options": "-c a=1 -c b=2", "sslmode": "require"} == one_value_each(
        {"options": ("-c a=1", "-c b=2"), "sslmode": "require", "host": ("a", "b")}
    )
    with pytest.raises(ValueError, match="sslmode more than once"):
        one_value_each({"sslmode": ("require", "disable")})


@pytest.mark.parametrize("name", ["connect_timeout", "keepalives_idle"])
def test_a_number_that_is_none_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        one_value_each({name: "abc"})
