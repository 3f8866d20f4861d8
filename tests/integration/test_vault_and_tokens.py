"""Tokens at rest: what is read with which keys, how keys are rotated, and what is said where one is missing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet

from worker.ledger import binding, connections
from worker.ledger.database import read_only
from worker.ledger.vault import HOW_TO_MAKE_A_KEY, LACKS_A_KEY, CredentialsError, TokenVault, of_connection

if TYPE_CHECKING:
    from sqlalchemy import Engine

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))


def tokens(ledger: Engine) -> dict[str, str]:
    with read_only(ledger) as db:
        return connections.encrypted_tokens(db)


@pytest.fixture
def shops(ledger: Engine) -> dict[str, str]:
    """Two connections with tokens of the old key, and one whose token is forgotten: encrypted tokens by id."""
    vault = TokenVault([OLD])
    with ledger.begin() as db:
        for name in ("shop-1", "shop-2", "gone"):
            connections.add(db, name, vault.encrypt(f"token-of-{name}"))
        connections.remove(db, "gone")
    return tokens(ledger)


@pytest.mark.parametrize("deed", ["encrypt", "decrypt", "reencrypt"])
def test_nothing_is_done_with_a_token_without_a_key(deed: str) -> None:
    with pytest.raises(CredentialsError) as refused:
        getattr(TokenVault([]), deed)("token")

    assert HOW_TO_MAKE_A_KEY == str(refused.value)


def test_what_is_no_key_is_refused_before_anything_is_encrypted() -> None:
    with pytest.raises(CredentialsError) as refused:
        TokenVault([OLD, "password123"])

    assert HOW_TO_MAKE_A_KEY == str(refused.value)


@pytest.mark.parametrize("deed", ["decrypt", "reencrypt"])
def test_a_token_of_another_key_is_not_read(deed: str) -> None:
    encrypted = TokenVault([OLD]).encrypt("token")
    with pytest.raises(CredentialsError) as refused:
        getattr(TokenVault([NEW]), deed)(encrypted)

    assert LACKS_A_KEY == str(refused.value)


def test_a_key_in_front_reads_the_old_tokens_and_encrypts_the_new_ones() -> None:
    both = TokenVault([NEW, OLD])

    assert "old" == both.decrypt(TokenVault([OLD]).encrypt("old"))
    assert "new" == TokenVault([NEW]).decrypt(both.encrypt("new"))
    anew = both.reencrypt(TokenVault([OLD]).encrypt("old"), of_connection("shop-1"))
    assert "old" == TokenVault([NEW]).decrypt(anew, of_connection("shop-1"))


def test_after_a_rekey_the_old_key_can_go(ledger: Engine, shops: dict[str, str]) -> None:
    with ledger.begin() as db:
        count, _ = binding.rekey(db, TokenVault([NEW, OLD]))

    assert len(shops) == count
    read = {
        name: TokenVault([NEW]).decrypt(encrypted, of_connection(name)) for name, encrypted in tokens(ledger).items()
    }
    assert {"shop-1": "token-of-shop-1", "shop-2": "token-of-shop-2"} == read


def test_a_rekey_without_the_old_key_changes_no_token(ledger: Engine, shops: dict[str, str]) -> None:
    vault = TokenVault([NEW])
    with ledger.begin() as db:
        connections.add(db, "a-shop", vault.encrypt("token"))  # the first in turn, and one that could be rekeyed
    before = tokens(ledger)
    with pytest.raises(CredentialsError) as refused, ledger.begin() as db:
        binding.rekey(db, vault)

    assert f"Nothing is changed, because of connection shop-1: {LACKS_A_KEY}" == str(refused.value)
    assert before == tokens(ledger)
    assert shops.items() < before.items()


def test_the_default_connection_is_touched_only_where_its_token_is_another(ledger: Engine) -> None:
    vault = TokenVault([OLD])
    kept = []
    for token in ("one", "one", "two"):
        with ledger.begin() as db:
            connections.ensure_default(db, partial(vault.encrypt, token), vault.decrypt, token)
        kept.append(tokens(ledger)[connections.DEFAULT])

    assert kept[0] == kept[1]  # an encryption anew would differ
    assert ["one", "one", "two"] == [vault.decrypt(encrypted) for encrypted in kept]
