"""What `doctor` says of CREDENTIAL_KEYS, and of what was encrypted with them: is it read, with which key, where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.cli.doctor.finding import Finding
from worker.ledger.vault import CredentialsError, TokenVault, is_bound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.ledger.vault import Place

_PART = "Credentials"


def keys_held(keys: Sequence[str]) -> Iterator[Finding]:
    """Say how many keys there are."""
    if count := len(keys):
        yield Finding(_PART, f"CREDENTIAL_KEYS holds {count} {'key' if count == 1 else 'keys'}")
    else:
        remedy = "A worker needs it to read access tokens: `cancel-worker connections add` says how to make one."
        yield Finding(_PART, "CREDENTIAL_KEYS is not set", remedy, passing=True)


def tokens_kept(kept: Sequence[tuple[Place, str]], keys: Sequence[str]) -> Iterator[Finding]:
    """Say which tokens and secrets cannot be read, how many need an older key, and how many are read in any row."""
    vault, first = TokenVault(list(keys)), TokenVault(list(keys[:1]))
    problems = [_problem(vault, *each) for each in kept]
    read = [each for each, problem in zip(kept, problems, strict=True) if not problem]
    if older := sum(bool(_problem(first, *each)) for each in read):
        remedy = "Run `cancel-worker connections rekey` before that key goes."
        yield Finding(_PART, f"{older} tokens need an older key than the first", remedy, passing=True)
    if unbound := sum(not is_bound(encrypted) for _, encrypted in read):
        said = f"{unbound} tokens are in the form of releases before 0.2: moved to another row they are read there"
        yield Finding(_PART, f"{said} (`connections rekey` binds them, when no worker of these runs)")
    for (place, _), problem in zip(kept, problems, strict=True):
        if problem:
            yield Finding(f"{place.owner.capitalize()} {place.id}", _UNREAD[place.owner], problem)


_UNREAD = {
    "connection": "its token cannot be read, so its cancels wait",
    "endpoint": "its secret cannot be read, so nothing is sent",
}


def _problem(vault: TokenVault, place: Place, encrypted: str) -> str:
    try:
        vault.decrypt(encrypted, place)
    except CredentialsError as error:
        return str(error)
    return ""
