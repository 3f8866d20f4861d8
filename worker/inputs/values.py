"""The text of one setting: what surrounds it by mistake is taken off, and what nobody can mean is refused. Pure.

Knows the form of words and numbers; no setting by name, and not where a text was found. No refusal repeats a value.
"""

from __future__ import annotations

import re

# Marks that editors and web pages leave at the ends of a text; a reader sees none of them.
INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
QUOTES = "\"'"
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def stripped(text: str) -> str:
    """Return the text without the whitespace, marks, and one pair of matching quotes that surround it."""
    text = _bare(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:
        text = _bare(text[1:-1])
    return text


def _bare(text: str) -> str:
    before = None
    while text != before:
        before, text = text, text.strip().strip(INVISIBLE)
    return text


def problem_of_text(text: str) -> str | None:
    """Return why a text cannot be the value of any setting, as the end of a sentence; None where it can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is no UTF-8 text: write it anew"
    if not text.isprintable():
        return "holds a line break or another character that cannot be seen: write it anew, in one line"
    return None


def problem_of_number(text: str) -> str | None:
    """Return why a text is no number of a setting, as the end of a sentence; None where it is one.

    Python takes more for numbers than people do: `1_000`, `nan`, digits of other scripts.
    """
    if SERVICE_LINK.match(text):
        return (
            "must be a number, and holds the address that Kubernetes sets for a Service of this name: rename the "
            "Service, or set enableServiceLinks to false"
        )
    if not NUMBER.fullmatch(text) or float(text) in {float("inf"), float("-inf")}:
        return "must be a number, written with the digits 0 to 9, as in 1000 or 0.5"
    return None


def problem_of_header(text: str) -> str | None:
    """Return why no HTTP header can carry a text, as the end of a sentence; None where one can."""
    if not (text.isascii() and text.isprintable()):
        return "holds a character that no HTTP header can carry: copy it anew"
    return None
