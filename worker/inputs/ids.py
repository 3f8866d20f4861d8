"""Ids of orders as others write them: which forms name the same order. Pure; knows no answer and no job."""

from __future__ import annotations

from unicodedata import normalize


def same_order(shown: str, asked: str) -> bool:
    """Whether an id in an answer about one order is the one that was asked for, perhaps written in another form.

    A server may give a number (without its leading zeros), compose accents, or fold case and blanks.
    """
    return shown == asked or _folded(shown) == _folded(asked)


def may_change_form(order_id: str) -> bool:
    """Whether an answer may show this id in another form, so that a list cannot tell whose line it is."""
    return not order_id.isascii() or order_id.startswith("0") or order_id != order_id.strip()


def _folded(order_id: str) -> str:
    text = normalize("NFC", normalize("NFC", order_id).strip().casefold())
    return text.lstrip("0") if text.isascii() and text.isdigit() else text
