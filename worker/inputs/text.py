"""Texts from outside, bounded and made safe for where they go. Pure; knows neither writer nor reader."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING, Any

from worker.inputs.identifiers import BLANK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_MESSAGE_LENGTH = 500  # of an error text that is kept: enough for a sentence, bounded for the ledger
MAX_SHOWN_LENGTH = 2000  # characters of one value on a terminal: above all that a job may hold, below a flood
MAX_MARKS = 2  # combining marks on one letter; more of them paint over the lines around it

_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_EDGE = re.compile(r"\A +| +\Z")


def as_text(value: bytes | str) -> str:
    """Return what Redis answers, as bytes or as text, as text."""
    return value if isinstance(value, str) else value.decode()


def printable(text: str) -> str:
    """Bound a foreign text and drop what neither a terminal nor PostgreSQL can hold."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE_LENGTH])


def visible(text: str) -> str:
    r"""Return a foreign text as a terminal may show it: whatever moves, hides or colours stands as `\x1b`, `\u202e`.

    Two texts that differ look different: a backslash that could be read as such an escape is doubled, spaces at an
    edge are `\x20`. A text that is too long is cut, with the number of characters that are left out.
    """
    shown = _LIKE_AN_ESCAPE.sub(r"\\\\", text[:MAX_SHOWN_LENGTH])
    shown = _EDGE.sub(lambda spaces: r"\x20" * len(spaces[0]), shown)
    left_out = len(text) - MAX_SHOWN_LENGTH
    return "".join(_characters(shown)) + (f"… ({left_out} more characters)" if left_out > 0 else "")


def _characters(text: str) -> Iterator[str]:
    marks = MAX_MARKS  # a mark without a letter would stand on what is written before it
    for char in text:
        marks = marks + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        shown = char.isprintable() and marks <= MAX_MARKS and char not in BLANK
        yield char if shown else escape(char)


def visible_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback, with its line breaks and indents and nothing else."""
    return "\n".join("".join(_characters(line)) for line in text.split("\n"))


def escape(char: str) -> str:
    r"""Write a character as Python does: `\x1b`, `\u202e`, `\U000e0001`."""
    code = ord(char)
    prefix, digits = next(each for each in (("x", 2), ("u", 4), ("U", 8)) if code < 16 ** each[1])
    return f"\\{prefix}{code:0{digits}x}"


def visible_json(document: bytes) -> str:
    r"""Return a JSON document with every character that a terminal could obey as JSON's own `\u202e`."""
    return "".join(char if char.isprintable() else _json_escape(char) for char in document.decode())


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


# What a spreadsheet would compute; the wide forms are the same to one of East Asia.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return a header and a line for each row; a text that a spreadsheet would compute begins with an apostrophe."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return written.getvalue().splitlines()  # no cell has a line break


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    text = visible(json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value))
    return f"'{text}" if text.startswith(_FORMULA) and not isinstance(value, int) else text
