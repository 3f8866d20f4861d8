"""A link from outside that a person is to open, parsed and bounded once. Pure; opens nothing."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from worker.inputs.text import MAX_SHOWN_LENGTH


def read_link(value: Any) -> str | None:
    """Read an `https` link with a host and without a user; None for everything else.

    Only ASCII that can be seen: what a terminal shows is what a browser opens.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SHOWN_LENGTH:
        return None
    if not (value.isascii() and value.isprintable()) or " " in value or "\\" in value:
        return None
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        return None
    # A name before an @ looks like the host, and is not.
    return value if parts.scheme == "https" and parts.hostname and "@" not in parts.netloc else None
