"""Names that others gave: ids of connections and orders, and keys. Two that look the same may not be two. Pure."""

from __future__ import annotations

import unicodedata

MAX_NAME_LENGTH = 255  # Trackstar's own limit for an Idempotency-Key

# Letters and marks that show nothing, though Unicode does not call them format characters: fillers, selectors of a
# variant, and a blank among the symbols.
BLANK = frozenset(
    map(
        chr,
        [
            *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ],
    )
)
_PROBLEMS = {
    "Cc": "a control character",
    "Cf": "an invisible character",
    "Cs": "half of a surrogate pair",
    "Co": "a character for private use",
    "Cn": "a character that Unicode does not know",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
    "Zs": "a space that is not the ordinary one",  # it looks as that does, and would be another order
}


def problem_of_name(name: str) -> str | None:
    """Say what is wrong with a name, so that it reads on after the name of the field; None where nothing is."""
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"is {len(name)} characters long; {MAX_NAME_LENGTH} is the most"
    if name.isascii() and name.isprintable() and name[0] != " " != name[-1]:
        return None  # nearly all there are
    for place, char in (("begins", name[0]), ("ends", name[-1])):
        if char.isspace():
            return f"{place} with a space or a line break ({_named(char)}): leave it out"
    for char in name:
        if problem := _problem_of(char):
            return f"has {problem} ({_named(char)}): leave it out"
    return None


def _problem_of(char: str) -> str | None:
    if char == " ":
        return None
    return "an invisible character" if char in BLANK else _PROBLEMS.get(unicodedata.category(char))


def _named(char: str) -> str:
    name = unicodedata.name(char, "")
    return f"U+{ord(char):04X} {name}".rstrip()
