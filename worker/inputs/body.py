"""The bytes of an answer's body: decompressed within a limit, and read as text. Pure; knows no document.

What cannot be decompressed stays as it is: whoever reads it finds that it is no JSON.
"""

from __future__ import annotations

import json
import re
import zlib

_GZIP = b"\x1f\x8b"
_EITHER = 32 + zlib.MAX_WBITS  # a header of gzip or of zlib
_NO_HEADER = -zlib.MAX_WBITS  # what some servers call deflate
_MAX_LAYERS = 3  # one within the other
_MAX_MEMBERS = 100  # of one gzip file, one behind the other
_MAX_ESCAPES = 100_000  # in one text of JSON; each is looked at by the interpreter
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)")


class TooLargeError(ValueError):
    """A body is longer than may be kept."""


def decompressed(content: bytes, encoding: str | None, limit: int) -> bytes:
    """Undo gzip and deflate, labelled or not, down to the text; raises TooLargeError beyond `limit` bytes.

    Nothing else was asked for, and no JSON begins as gzip does, so the content is believed before its label.
    """
    for _ in range(_MAX_LAYERS):
        inner = _inflated(content, _EITHER, limit) if content.startswith(_GZIP) else None
        if inner is None:
            break
        content = inner
    if "deflate" not in (encoding or "").lower():
        return content
    found = (_inflated(content, wbits, limit) for wbits in (_EITHER, _NO_HEADER))
    return next((inner for inner in found if inner is not None), content)


def _inflated(content: bytes, wbits: int, limit: int) -> bytes | None:
    """Inflate all members of `content`; None where it is cut or is something else."""
    parts: list[bytes] = []
    room = limit
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(wbits)
        try:
            parts.append(member.decompress(content, room + 1))
        except zlib.error:
            return None
        room -= len(parts[-1])
        if room < 0:
            raise TooLargeError
        content = member.unused_data
        if not member.eof or (content and wbits == _NO_HEADER):  # any text may begin like one without a header
            return None
        if not content.startswith(_GZIP):
            break  # padding, which every reader of gzip passes over
    return b"".join(parts)


def text_of(content: bytes) -> str:
    """Decode JSON in UTF-8, UTF-16 or UTF-32, with or without a mark; raises UnicodeError for anything else."""
    return content.decode(json.detect_encoding(content))


def without_halves(text: str) -> str:
    """Replace each half of an escaped surrogate pair; raises UnicodeError where there are too many escapes to look at.

    A warehouse system may cut an emoji in two. JSON's grammar allows it, Unicode text does not. Every escape is
    matched, so that an escaped backslash before the word `ud83d` stays what it is.
    """
    if text.count("\\") > _MAX_ESCAPES:
        raise UnicodeError("too many escapes")
    return _ESCAPE.sub(lambda match: r"\ufffd" if match["half"] else match[0], text)
