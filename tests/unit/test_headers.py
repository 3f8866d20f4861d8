"""Headers of any kind: each is one bounded number, or nothing; whatever a server writes there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cancellation.pace import LONGEST_PAUSE_SECONDS, MIN_PAUSE_SECONDS, is_long, pause_of_reads, pause_of_writes
from worker.inputs.headers import MAX_RATE, MIN_RATE, LimitProblem, read_rate_limit, read_retry_after

NOW = datetime(2030, 1, 1, tzinfo=UTC)
CAP = 900.0
YEAR = 31_536_000


def seconds(header: str | bytes | None, date: str | bytes | None = None) -> float | None:
    return read_retry_after(header, date=date, now=NOW, cap=CAP)


def http_date(after: float) -> str:
    return format_datetime(NOW + timedelta(seconds=after), usegmt=True)


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        (0.0, "0"),
        (5.0, "5"),
        (5.0, b"5"),
        (5.0, " 5\t"),
        (0.5, "0.5"),
        (CAP, "900"),
        (CAP, "901"),
        (CAP, str(YEAR)),
        (CAP, "9" * 5000),
        (30.0, http_date(30)),
        (30.0, http_date(30).encode()),
        (30.0, "Tuesday, 01-Jan-30 00:00:30 GMT"),
        (30.0, "Tue Jan  1 00:00:30 2030"),
        (CAP, http_date(YEAR)),
        (CAP, "Fri, 31 Dec 9999 23:59:60 GMT"),
        (0.0, http_date(-30)),
        (0.0, "Sun, 06 Nov 1994 08:49:37 GMT"),
    ],
)
def test_a_wait_is_seconds_or_a_date_within_our_own_cap(expected: float, header: str | bytes) -> None:
    assert expected == seconds(header)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", " ", b"", b"\xff", "soon", "-1", "-0.0", "+5", "1_0", "0x10", "1e3", "1e999", "inf", "nan", "NaN"),
        *("-inf", "\uff15", "\u0665", "5, 10", "5,10", "5;q=1", "5 s", ".5", "5.", "1.5.2", "5\n", "\x005"),
        *("Tue, 32 Jan 2030 00:00:30 GMT", "Tue, 01 Foo 2030 00:00:30 GMT", "Tue, 01 Jan 0000 00:00:30 GMT"),
        *(
            "Tue, 01 Jan 2030 25:00:30 GMT",
            "Tue, 01 Jan 12030 00:00:30 GMT",
            "Tue, 01 Jan 2030",
            "2030-01-01T00:00:30Z",
        ),
    ],
)
def test_what_is_neither_says_nothing(header: str | bytes | None) -> None:
    assert seconds(header) is None


def test_a_date_counts_from_the_answers_own_date_and_no_clock_of_ours_matters() -> None:
    assert 30.0 == seconds(http_date(3630), date=http_date(3600))
    assert 30.0 == seconds(http_date(-3570), date=http_date(-3600).encode())


@pytest.mark.parametrize("date", [None, "", "yesterday", "5", b"\xff", "Tue, 99 Jan 2030 00:00:00 GMT"])
def test_an_unreadable_date_of_the_answer_leaves_our_own_clock(date: str | bytes | None) -> None:
    assert 30.0 == seconds(http_date(30), date=date)


any_header = st.none() | st.text(max_size=50) | st.binary(max_size=50) | st.floats().map(str) | st.integers().map(str)
date_like = st.text(st.sampled_from("MonTueJanGMTUC0123456789 :,+-."), max_size=40)


@given(any_header | date_like, any_header | date_like, st.floats(0.1, 1e6))
def test_no_header_of_any_kind_asks_for_more_than_the_cap_or_less_than_nothing(
    header: str | bytes | None, date: str | bytes | None, cap: float
) -> None:
    found = read_retry_after(header, date=date, now=NOW, cap=cap)

    assert found is None or 0.0 <= found <= cap


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        (None, None),
        (50.0, "50"),
        (50.0, b" 50 "),
        (0.5, "0.5"),
        (MIN_RATE, "0.1"),
        *((LimitProblem.TOO_LOW, text) for text in ("0", "0.0", "0.01", "0.0999")),
        *((LimitProblem.TOO_HIGH, text) for text in ("1000001", "9" * 400)),
        *(
            (LimitProblem.UNREADABLE, text)
            for text in ("", "-5", "nan", "inf", "1e999", "50;w=1", "50, 60", "5_0", "\uff15")
        ),
    ],
)
def test_a_limit_is_a_plain_number_that_a_pace_can_keep_or_is_ignored(
    expected: float | LimitProblem | None, header: str | bytes | None
) -> None:
    assert expected == read_rate_limit(header)


@given(any_header)
def test_no_header_of_any_kind_is_a_limit_out_of_bounds(header: str | bytes | None) -> None:
    found = read_rate_limit(header)

    assert found is None or isinstance(found, LimitProblem) or MIN_RATE <= found <= MAX_RATE


@given(st.none() | st.floats(0.0, 1e6))
def test_redis_is_never_paused_for_longer_than_a_minute(retry_after: float | None) -> None:
    for pause in (pause_of_writes(retry_after), pause_of_reads(retry_after)):
        assert MIN_PAUSE_SECONDS <= pause <= LONGEST_PAUSE_SECONDS
    assert is_long(retry_after) or pause_of_writes(retry_after) >= (retry_after or 0.0)
