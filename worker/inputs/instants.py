"""Instants and periods as foreign documents write them, each parsed and bounded once. Pure; has no clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

# Outside of these years it is no instant that somebody means, and no difference of two runs over.
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 100_000_000_000  # of seconds, these are 3,000 years; of milliseconds, three
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?"
    r"(?: ?[Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)
_AGE = re.compile(r"([0-9]{1,9}) ?([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_AGE = 100 * 366 * 86_400.0  # seconds: nothing here is older
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


def read_instant(value: Any) -> datetime | None:
    """Read ISO 8601 (UTC where it has no offset) or seconds or milliseconds since 1970; None for everything else."""
    found = None
    try:
        if isinstance(value, str) and _INSTANT.fullmatch(value.strip()):
            found = datetime.fromisoformat(value.strip().upper().replace(" Z", "Z"))
        elif isinstance(value, int | float) and 0 < value < _LAST.timestamp() * 1000:
            found = datetime.fromtimestamp(value / 1000 if value >= _MILLISECONDS_FROM else value, UTC)
        if found is not None:
            found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # no such day, or none of the calendar's
        return None
    return found if found and _FIRST <= found < _LAST else None


def read_period(value: Any, *, least: float, most: float) -> float | None:
    """Read a period in seconds, a number or the text of one, clamped; None for everything else, 0 included."""
    if isinstance(value, str):
        value = float(value.strip()) if _NUMBER.fullmatch(value.strip()) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        return None
    return float(min(max(value, least), most))


def read_age(text: str) -> float | None:
    """Read what people write for an age (`90s`, `15m`, `2h`, `3d`, `1w`), in seconds; None for everything else."""
    found = _AGE.fullmatch(text.strip().lower())
    return min(int(found[1]) * _SECONDS[found[2]], _LONGEST_AGE) if found else None


def read_day_or_instant(text: str) -> datetime | None:
    """Read an instant as `read_instant` does, or a day, which means its first instant in UTC."""
    text = text.strip()
    return read_instant(f"{text}T00:00" if len(text) == len("2026-01-02") else text.removesuffix(" UTC"))
