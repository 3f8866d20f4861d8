"""What the options of a PostgreSQL address ask of a session, read once. Pure; knows no driver and opens nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_THRESHOLD = 1_000_000  # runs of one statement; more means never
# What a server process takes instead of `-c name=value`, as `--some-name=value`.
_SETTING = re.compile(r"(?:-c\s*|--)([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
# One word: anything but a space, or anything after a backslash.
_WORD = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
_NUMBERS = ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count")


class SessionOptions(NamedTuple):
    """The `options` of an address: settings of a session, in their order, and the words that are none."""

    settings: dict[str, str]
    others: tuple[str, ...]


def read_session_options(options: str) -> SessionOptions:
    """Split as PostgreSQL does. `-c name=value`, `-cname=value` and `--name=value` are settings."""
    settings: dict[str, str] = {}
    others: list[str] = []
    words = _WORD.findall(options)
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word += words.pop(0)
        if found := _SETTING.fullmatch(word):
            settings[found[1].replace("-", "_")] = re.sub(r"\\(.)", r"\1", found[2], flags=re.DOTALL)
        else:
            others.append(word)
    return SessionOptions(settings, tuple(others))


def write_session_options(asked: SessionOptions) -> str:
    """Write what `read_session_options` reads."""
    settings = ["-c {}={}".format(name, re.sub(r"([\s\\])", r"\\\1", value)) for name, value in asked.settings.items()]
    return " ".join([*asked.others, *settings])


def one_value_each(query: Mapping[str, str | tuple[str, ...]]) -> dict[str, str]:
    """Return the options of an address but its hosts; only `options` may be given several times. Raises ValueError."""
    given: dict[str, str] = {}
    for name, value in query.items():
        if name in {"host", "port"}:
            continue
        if not isinstance(value, str) and name != "options":
            raise ValueError(f"DATABASE_URL gives {name} more than once: keep one.")
        given[name] = value if isinstance(value, str) else " ".join(value)
    for name in _NUMBERS:
        if name in given and not re.fullmatch(r"\d{1,6}", given[name]):
            raise ValueError(f"DATABASE_URL gives {name} a value that is no whole number: correct it.")
    return given


def read_prepare_threshold(text: str) -> int | None:
    """Return after how many runs a statement is prepared, at least 1; None means never. Raises ValueError."""
    if text.strip().lower() in {"none", "null", "never", ""}:
        return None
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise ValueError("DATABASE_URL gives prepare_threshold a value that is neither a whole number nor `none`.")
    return min(max(int(text), 1), MAX_THRESHOLD)
