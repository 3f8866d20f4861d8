"""Access tokens, and secrets of endpoints, at rest. Knows the keys; does not know where one is kept or sent."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

HOW_TO_MAKE_A_KEY = (
    "CREDENTIAL_KEYS is missing or wrong: access tokens are only kept encrypted. Make a key with "
    "`python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'` "
    "and set CREDENTIAL_KEYS to it (comma-separated: the first encrypts, all decrypt)."
)
LACKS_A_KEY = "A token or a secret in the ledger cannot be decrypted: CREDENTIAL_KEYS lacks the key that encrypted it."


class CredentialsError(ValueError):
    """A token cannot be stored or read; the text says what to do."""


def fingerprint(key: str) -> str:
    """Name a key so that two programs can compare theirs, and nobody can tell it from its name."""
    return hashlib.sha256(b"cancel-worker " + urlsafe_b64decode(key)).hexdigest()[:16]


class TokenVault:
    """Encrypts with the first key, decrypts with any: keys are rotated by putting a new one in front."""

    def __init__(self, keys: list[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except ValueError as error:
            raise CredentialsError(HOW_TO_MAKE_A_KEY) from error
        # The same few hundred tokens are read for every attempt.
        self.decrypt = lru_cache(maxsize=4096)(self._decrypt)

    def encrypt(self, access_token: str) -> str:
        """Encrypt a token for the ledger. Raises CredentialsError without a key."""
        if self._fernet is None:
            raise CredentialsError(HOW_TO_MAKE_A_KEY)
        return self._fernet.encrypt(access_token.encode()).decode()

    def reencrypt(self, encrypted: str) -> str:
        """Encrypt with the first key what any of them encrypted. Raises CredentialsError."""
        if self._fernet is None:
            raise CredentialsError(HOW_TO_MAKE_A_KEY)
        try:
            return self._fernet.rotate(encrypted.encode()).decode()
        except InvalidToken as error:
            raise CredentialsError(LACKS_A_KEY) from error

    def _decrypt(self, encrypted: str) -> str:
        if self._fernet is None:
            raise CredentialsError(HOW_TO_MAKE_A_KEY)
        try:
            return self._fernet.decrypt(encrypted.encode()).decode()
        except InvalidToken as error:
            raise CredentialsError(LACKS_A_KEY) from error
