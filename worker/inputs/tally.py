"""Counts of recent answers as they stand in Redis, where anybody may write: each read and bounded once. Pure."""

from __future__ import annotations

import re

_MAX_NAME_LENGTH = 255  # of a connection's id
_FIELD = re.compile(r"(?P<name>.+) (?P<kind>good|bad)", re.DOTALL)
_COUNT = re.compile(rb"[0-9]{1,18}")


def read_count(field: bytes, value: bytes, most: int) -> tuple[str, str, int] | None:
    """Read one field: whose answers, `good` or `bad`, and how many, `most` at most; None for everything else."""
    found = _split(field)
    if found is None or not _COUNT.fullmatch(value) or int(value) > most:
        return None
    return (*found, int(value))


def name_of_count(field: bytes) -> str | None:
    """Return whose count a field is, fit for a log; None where it is no connection's."""
    found = _split(field)
    return found[0] if found and found[0].isprintable() else None


def _split(field: bytes) -> tuple[str, str] | None:
    try:
        found = _FIELD.fullmatch(field.decode())
    except UnicodeDecodeError:
        return None
    return (found["name"], found["kind"]) if found and len(found["name"]) <= _MAX_NAME_LENGTH else None
