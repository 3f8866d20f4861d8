"""Texts from outside, bounded and made safe for where they go. Pure; knows neither writer nor reader."""

from __future__ import annotations

MAX_MESSAGE_LENGTH = 500  # of an error text that is kept: enough for a sentence, bounded for the ledger


def printable(text: str) -> str:
    """Bound a foreign text and drop what neither a terminal nor PostgreSQL can hold."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE_LENGTH])
