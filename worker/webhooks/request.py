"""One event as a request of Standard Webhooks: its body, and the headers that sign it. Opens nothing.

What is signed is what is sent, byte for byte.
"""

from __future__ import annotations

import secrets
from base64 import b64encode
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from worker.cancellation.event import Event, write_event
from worker.cancellation.signature import PREFIX, Signer
from worker.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.inputs.receivers import Receiver

_SECRET_BYTES = 32


class _Body(msgspec.Struct):
    type: str
    timestamp: datetime
    data: msgspec.Raw


def new_secret() -> str:
    """Make the secret of an endpoint."""
    return PREFIX + b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def body_of(event: Event) -> bytes:
    """Return the body: `data` is the event."""
    return msgspec.json.encode(_Body(event.type, event.at, msgspec.Raw(write_event(event))))


def request_to(receiver: Receiver, event: Event, keys: Sequence[str], at: datetime) -> bytes:
    """Return a whole request, signed."""
    body = body_of(event)
    headers = {
        "Host": receiver.authority,
        "User-Agent": f"cancel-worker/{__version__}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **Signer(keys).sign(event.id, at, body),
    }
    lines = [f"POST {receiver.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
