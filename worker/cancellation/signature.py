"""Signatures of Standard Webhooks 1.0.0, on webhooks and on entries of streams: how they are made and compared.

Pure: knows secrets, bytes and an instant that it is given. Does not know what is signed, nor how it travels.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
MAX_SECRETS = 2  # the new one and, until nobody has it any more, the old one
HOW_TO_MAKE_ONE = (
    "Make one with `python -c 'import base64, secrets; "
    'print("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())\'`'
)
_SECONDS = re.compile(r"[0-9]{1,11}")  # as far as years have four digits


def read_secrets(text: str) -> list[str]:
    """Return the secrets that a text states, separated by spaces or commas, the newest first.

    Raises ValueError, with the end of a sentence that repeats no secret.
    """
    stated = _stated(text)
    if not stated or not all(map(_is_secret, stated)):
        raise ValueError(f"must be whsec_ and base64 of 24 to 64 random bytes. {HOW_TO_MAKE_ONE}")
    if len(stated) > MAX_SECRETS:
        raise ValueError(f"states {len(stated)} secrets: leave the newest and the one before it, {MAX_SECRETS} in all")
    return stated


def bare_secrets(text: str) -> list[str]:
    """Return what must be shown nowhere of a text that may state secrets, without their prefix."""
    return [each.removeprefix(PREFIX) for each in _stated(text)]


def _stated(text: str) -> list[str]:
    return [each for each in re.split(r"[\s,]+", text) if each]


def _is_secret(text: str) -> bool:
    try:
        return text.startswith(PREFIX) and len(b64decode(text.removeprefix(PREFIX), validate=True)) in KEY_BYTES
    except ValueError:
        return False


class Signer:
    """Signs with each of its secrets, and believes what any of them has signed."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [Webhook(secret) for secret in secrets]

    def sign(self, id_: str, at: datetime, body: bytes) -> dict[str, str]:
        """Return the three headers of a body in UTF-8 that is sent under this id at this instant."""
        return {
            ID: id_,
            TIMESTAMP: str(int(at.timestamp())),
            SIGNATURE: " ".join(self._signatures(id_, at.astimezone(UTC), body.decode())),
        }

    def has_signed(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether one of its secrets has signed this body and these headers, whenever that was."""
        try:
            at, given = _instant(headers[TIMESTAMP]), headers[SIGNATURE].encode().split()
            expected = self._signatures(headers[ID], at, body.decode())
        except (KeyError, ValueError):  # also of what is no Unicode text
            return False
        return any(hmac.compare_digest(mine.encode(), each) for mine in expected for each in given)

    def _signatures(self, id_: str, at: datetime, text: str) -> list[str]:
        return [key.sign(id_, at, text) for key in self._keys]


def _instant(seconds: str) -> datetime:
    if not _SECONDS.fullmatch(seconds):
        raise ValueError("no timestamp")
    return datetime.fromtimestamp(int(seconds), UTC)
