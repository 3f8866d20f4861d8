"""Access tokens, and secrets of endpoints, at rest. Knows the keys; does not know where one is kept or sent.

Two forms are read. Fernet is that of the releases before 0.2: whoever may write the table can move such a token to
another row, and it is read there. The bound form, `b1.KEY.TEXT`, is authenticated with the place that it is kept in
(AES-256-GCM), and is read nowhere else; `KEY` names the key, so none is tried in vain.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HOW_TO_MAKE_A_KEY = (
    "CREDENTIAL_KEYS is missing or wrong: access tokens are only kept encrypted. Make a key with "
    "`python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'` "
    "and set CREDENTIAL_KEYS to it (comma-separated: the first encrypts, all decrypt)."
)
LACKS_A_KEY = "A token or a secret in the ledger cannot be decrypted: CREDENTIAL_KEYS lacks the key that encrypted it."
LACKS_THIS_KEY = (
    "A token or a secret in the ledger cannot be decrypted: CREDENTIAL_KEYS lacks the key {key} that encrypted it."
)
NEWER_FORM = "A token or a secret in the ledger is in a form of a newer release: let that one read it."
BOUND_ELSEWHERE = (
    "{what} in the ledger was encrypted for another {owner}, or was changed since: find out who did it, and give this "
    "{owner} its own with `cancel-worker {owner}s rotate ID`."
)

BOUND = "b1."  # how the bound form begins; Fernet's begins with gAAAA
_NEWER = re.compile(r"b\d+\.")
_NONCE_BYTES, _KEY_BYTES = 12, 32
_DERIVED_FOR = b"cancel-worker: tokens bound to their place, form 1"


class CredentialsError(ValueError):
    """A token cannot be stored or read; the text says what to do."""


class Place(NamedTuple):
    """Where a token or a secret is kept: a kind of row, and its id. What is bound to one is read in no other."""

    owner: str
    id: str

    @property
    def associated(self) -> bytes:
        """What the bound form is authenticated with: no two places have the same."""
        return f"{self.owner} {self.id}".encode()  # no kind holds a blank


def of_connection(connection_id: str) -> Place:
    """Return the place of a connection's access token."""
    return Place("connection", connection_id)


def of_endpoint(endpoint_id: str) -> Place:
    """Return the place of an endpoint's secrets, the new one and the old one."""
    return Place("endpoint", endpoint_id)


def fingerprint(key: str) -> str:
    """Name a key so that two programs can compare theirs, and nobody can tell it from its name."""
    return hashlib.sha256(b"cancel-worker " + urlsafe_b64decode(key)).hexdigest()[:16]


def is_bound(encrypted: str) -> bool:
    """Whether this is read in one place only."""
    return encrypted.startswith(BOUND)


class TokenVault:
    """Encrypts with the first key, decrypts with any: keys are rotated by putting a new one in front."""

    def __init__(self, keys: list[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except ValueError as error:
            raise CredentialsError(HOW_TO_MAKE_A_KEY) from error
        self._ciphers = {fingerprint(key): AESGCM(_derived(key)) for key in keys}
        # The same few hundred tokens are read for every attempt.
        self.decrypt = lru_cache(maxsize=4096)(self._decrypt)

    def encrypt(self, access_token: str, place: Place | None = None) -> str:
        """Encrypt for the ledger, bound to a place; with none, in the form that releases before 0.2 read too.

        Raises CredentialsError without a key.
        """
        if self._fernet is None:
            raise CredentialsError(HOW_TO_MAKE_A_KEY)
        if place is None:
            return self._fernet.encrypt(access_token.encode()).decode()
        key, cipher = next(iter(self._ciphers.items()))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = nonce + cipher.encrypt(nonce, access_token.encode(), place.associated)
        return f"{BOUND}{key}.{urlsafe_b64encode(text).decode()}"

    def reencrypt(self, encrypted: str, place: Place | None = None, *, bound: bool = True) -> str:
        """Encrypt with the first key what any of them encrypted, bound to its place. Raises CredentialsError."""
        return self.encrypt(self._decrypt(encrypted, place), place if bound else None)

    def _decrypt(self, encrypted: str, place: Place | None = None) -> str:
        """Return what was encrypted, for this place or for none. Raises CredentialsError."""
        if self._fernet is None:
            raise CredentialsError(HOW_TO_MAKE_A_KEY)
        if is_bound(encrypted):
            return self._decrypt_bound(encrypted, place or Place("place", ""))
        try:
            return self._fernet.decrypt(encrypted.encode()).decode()
        except InvalidToken as error:
            raise CredentialsError(NEWER_FORM if _NEWER.match(encrypted) else LACKS_A_KEY) from error

    def _decrypt_bound(self, encrypted: str, place: Place) -> str:
        key, _, text = encrypted.removeprefix(BOUND).partition(".")
        if key not in self._ciphers:
            raise CredentialsError(LACKS_THIS_KEY.format(key=key[:16]))
        try:
            read = urlsafe_b64decode(text)
            nonce, rest = read[:_NONCE_BYTES], read[_NONCE_BYTES:]
            return self._ciphers[key].decrypt(nonce, rest, place.associated).decode()
        except (InvalidTag, ValueError) as error:
            what = "The secret" if place.owner == "endpoint" else "The token"
            raise CredentialsError(BOUND_ELSEWHERE.format(what=what, owner=place.owner)) from error


def _derived(key: str) -> bytes:
    """Make the key of the bound form from one of CREDENTIAL_KEYS, so that there is nothing more to keep."""
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=_DERIVED_FOR).derive(urlsafe_b64decode(key))
