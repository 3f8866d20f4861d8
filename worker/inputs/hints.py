"""What a hint may say: look again at an order of a connection, or at the connection. Pure; nothing in it is believed.

An entry holds the two names as its fields, or as one JSON object in any one field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from worker.inputs.identifiers import problem_of_name

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HINT_BYTES = 4 * 1024  # far above two names


class Hint(msgspec.Struct, frozen=True):
    """Look again; without an order id, at all that waits on the connection."""

    connection_id: str
    order_id: str | None = None


_decoder = msgspec.json.Decoder(Hint)


def read_hint(fields: Mapping[bytes, bytes]) -> Hint | None:
    """Read one entry of the stream; None where it is no hint."""
    try:
        hint = _hint(fields)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    names = (hint.connection_id, *([hint.order_id] if hint.order_id is not None else []))
    return None if any(problem_of_name(name) for name in names) else hint


def _hint(fields: Mapping[bytes, bytes]) -> Hint:
    if b"connection_id" not in fields and len(fields) == 1:
        return _decoder.decode(next(iter(fields.values())))
    return msgspec.convert({name.decode(): value.decode() for name, value in fields.items()}, Hint)
