"""The command `connections rekey`: all tokens and secrets anew, with the first key and bound to their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from redis import RedisError

from worker.cli.parts import Who, Why, acting, console, ledger
from worker.cli.progress import progress
from worker.ledger import audit, binding, connections
from worker.ledger.audit import Action, Kind
from worker.ledger.vault import TokenVault, fingerprint
from worker.runtime.known_keys import BOUND_FORM, workers_without
from worker.settings import load_settings
from worker.streams import connect_redis

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.settings import Settings


def rekey(
    force: Annotated[
        bool, typer.Option("--force", help="Also while a worker lacks the key, which then can read no token.")
    ] = False,
    unbound: Annotated[
        bool, typer.Option("--unbound", help="In the form that releases before 0.2 read, for the way back to one.")
    ] = False,
    reason: Why = None,
    who: Who = None,
) -> None:
    """Encrypt every token, and every secret of an endpoint, with the first of CREDENTIAL_KEYS; then the old can go.

    Each is bound to its connection or endpoint: in another row it is not read.

    Example: cancel-worker connections rekey
    """
    settings = load_settings()
    vault = TokenVault(settings.keys)
    vault.encrypt("")  # says how to make a key where there is none
    if not force:
        _refuse_while_unknown(settings, bound=not unbound)
    with ledger() as opened, opened.begin() as db:
        count, secrets = _reencrypt(db, vault, bound=not unbound)
        after = {
            "tokens": count,
            **({"endpoints": secrets} if secrets else {}),
            **({"bound": False} if unbound else {}),
        }
        audit.write(db, acting(who, reason), Action.REKEY, Kind.CONNECTION, after=after)
    tokens = "1 token is" if count == 1 else f"{count} tokens are"
    of = f", and the secrets of {secrets} endpoints" if secrets else ""
    console.print(f"{tokens} encrypted with the first key{of}.")


def _reencrypt(db: Connection, vault: TokenVault, *, bound: bool) -> tuple[int, int]:
    with progress("tokens encrypted", len(connections.encrypted_tokens(db))) as shown:
        return binding.rekey(db, vault, bound=bound, done=lambda: shown.advance(1))


def _refuse_while_unknown(settings: Settings, *, bound: bool) -> None:
    """Raise ValueError while a running worker lacks the first key, or does not read what is bound."""
    try:
        redis = connect_redis(settings.redis_url, socket_timeout=5)
        lacking = workers_without(redis, fingerprint(settings.keys[0]))
        older = workers_without(redis, BOUND_FORM) if bound else []
    except RedisError as error:
        raise ValueError(
            f"Redis could not be reached ({type(error).__name__}), so nobody knows whether each running worker has "
            "the first of CREDENTIAL_KEYS: start it, or say --force."
        ) from error
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)} would read no token any more: give each running worker the new CREDENTIAL_KEYS and "
            "restart it (one that was killed is forgotten after a minute), or say --force."
        )
    if older:
        raise ValueError(
            f"{', '.join(older)} would read no token any more, as a worker of a release before 0.2: end it first (one "
            "that was killed is forgotten after a minute), or say --force."
        )
