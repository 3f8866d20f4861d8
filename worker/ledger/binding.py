"""In which form tokens and secrets are written, and all of them anew. Knows rows; the vault knows keys and forms.

A release before 0.2 reads no token that is bound to its row, so none is written while one may have to: not before
`rekey` has bound them all, which a person runs when the last old worker has ended. A ledger that holds none at all
begins with bound ones.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from worker.ledger import connections as connection_rows
from worker.ledger import endpoints as endpoint_rows
from worker.ledger.schema import connections, endpoints
from worker.ledger.vault import BOUND, CredentialsError, of_connection, of_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ledger.vault import Place, TokenVault

_TOKENS, _SECRETS = connections.c.access_token, endpoints.c.secret
_KEPT = sa.union_all(sa.select(_TOKENS.label("kept")).where(_TOKENS.is_not(None)), sa.select(_SECRETS)).subquery()
_ANY = sa.select(_KEPT.c.kept).exists()
_ANY_BOUND = sa.select(_KEPT.c.kept).where(_KEPT.c.kept.startswith(BOUND, autoescape=True)).exists()
_BINDS = sa.select(_ANY_BOUND | ~_ANY)


def binds(db: sa.Connection) -> bool:
    """Whether what is written now is bound to its row: one that is there is, or there is none."""
    return bool(db.execute(_BINDS).scalar_one())


def encrypt(db: sa.Connection, vault: TokenVault, plain: str, place: Place) -> str:
    """Encrypt a token or a secret in the form that this ledger is in. Raises CredentialsError without a key."""
    return vault.encrypt(plain, place if binds(db) else None)


def rekey(
    db: sa.Connection, vault: TokenVault, *, bound: bool = True, done: Callable[[], object] = lambda: None
) -> tuple[int, int]:
    """Encrypt all anew, with the first key; return of how many connections, and of how many endpoints.

    `done` is called for each token. Raises CredentialsError, naming the row, where one cannot be read; then the
    transaction must not be committed.
    """

    def anew(of: Callable[[str], Place], encrypted: str, id_: str) -> str:
        done()
        try:
            return vault.reencrypt(encrypted, of(id_), bound=bound)
        except CredentialsError as error:
            raise CredentialsError(f"Nothing is changed, because of {of(id_).owner} {id_}: {error}") from error

    return (
        connection_rows.rekey(db, partial(anew, of_connection)),
        endpoint_rows.rekey(db, partial(anew, of_endpoint)),
    )
