"""What a server's headers ask of the pace: `retry-after` and `x-ratelimit-limit`, each parsed and bounded once.

Pure: the moment and our own cap are arguments. Does not know what follows from an answer.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import NewType

RetryAfter = NewType("RetryAfter", float)  # seconds, from 0 to our own cap
RateLimit = NewType("RateLimit", float)  # requests per second, from MIN_RATE to MAX_RATE

# A limit outside of these is no limit that a server means: below, one request takes longer than a claim may wait.
MIN_RATE = 0.1
MAX_RATE = 1_000_000.0


class LimitProblem(StrEnum):
    """Why a rate limit is ignored, in our own words."""

    UNREADABLE = "unreadable"
    TOO_LOW = "too_low"
    TOO_HIGH = "too_high"


# ASCII digits only: `float` would also read other scripts, underscores, "inf", "nan" and exponents.
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# The three forms of a date that HTTP knows. By hand, for `email.utils` imports sockets and dice.
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY, _MONTH = "(?P<day>[0-9]{1,2})", "(?P<month>[A-Za-z]{3})"
_DATES = (
    re.compile(
        rf"(?:[A-Za-z]+, *)?{_DAY}[ -]{_MONTH}[ -](?P<year>[0-9]{{4}}|[0-9]{{2}}) {_TIME}(?: (?:GMT|UTC|[+-]0000))?"
    ),
    re.compile(rf"[A-Za-z]{{3}} {_MONTH} +{_DAY} {_TIME} (?P<year>[0-9]{{4}})"),
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FIRST_OF_TWO_DIGITS = 69  # a year of two digits from here on belongs to the century before


def read_retry_after(
    header: str | bytes | None, *, date: str | bytes | None, now: datetime, cap: float
) -> RetryAfter | None:
    """Read `retry-after`: one number of seconds or one date, as HTTP has it; None for everything else.

    A date counts from the answer's own `date`, so that no clock of ours matters; from `now` where that is unreadable.
    What is in the past is 0, and nothing is longer than `cap` seconds.
    """
    text = _text(header)
    seconds = _number(text)
    if seconds is None:
        until = _date(text)
        if until is None:
            return None
        seconds = (until - (_date(_text(date)) or now)).total_seconds()
    return RetryAfter(min(max(0.0, seconds), cap))


def read_rate_limit(header: str | bytes | None) -> RateLimit | LimitProblem | None:
    """Read `x-ratelimit-limit`: one plain number of requests per second, or why it is ignored; None where absent."""
    if header is None:
        return None
    rate = _number(_text(header))
    if rate is None:
        return LimitProblem.UNREADABLE
    if rate < MIN_RATE:
        return LimitProblem.TOO_LOW
    return RateLimit(rate) if rate <= MAX_RATE else LimitProblem.TOO_HIGH


def read_date(header: str | bytes | None) -> datetime | None:
    """Read a date as HTTP has it, in UTC; None for everything else."""
    return _date(_text(header))


def _text(header: str | bytes | None) -> str:
    text = header.decode("latin-1") if isinstance(header, bytes) else header or ""
    return text.strip(" \t")


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _date(text: str) -> datetime | None:
    found = next((match for form in _DATES if (match := form.fullmatch(text))), None)
    if found is None or found["month"].lower() not in _MONTHS:
        return None
    day, hour, minute, second = (int(found[name]) for name in ("day", "hour", "minute", "second"))
    month = _MONTHS.index(found["month"].lower()) + 1
    try:
        return datetime(_year(found["year"]), month, day, hour, minute, min(second, 59), tzinfo=UTC)  # a leap second
    except ValueError:  # no such day
        return None


def _year(digits: str) -> int:
    year = int(digits)
    if len(digits) > 2:  # noqa: PLR2004
        return year
    return year + (1900 if year >= _FIRST_OF_TWO_DIGITS else 2000)
