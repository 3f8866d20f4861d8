"""Tokens and secrets bound to their rows, in the ledger: in which form they are written, moved rows, and `rekey`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet

from worker.cli.doctor.credentials import tokens_kept
from worker.ledger import binding, connections, endpoints
from worker.ledger.database import read_only
from worker.ledger.schema import connections as connection_rows
from worker.ledger.schema import endpoints as endpoint_rows
from worker.ledger.vault import CredentialsError, Place, TokenVault, is_bound, of_connection, of_endpoint

if TYPE_CHECKING:
    from sqlalchemy import Engine

OLD, NEW = (Fernet.generate_key().decode() for _ in range(2))
vault = TokenVault([NEW, OLD])
SHOPS = ("shop-1", "shop-2", "shop-3")


def add(ledger: Engine, name: str, using: TokenVault = vault, *, before: bool = False) -> None:
    """Add a connection as this release does, or one before 0.2."""
    place, token = of_connection(name), f"token-of-{name}"
    with ledger.begin() as db:
        encrypted = using.encrypt(token) if before else binding.encrypt(db, using, token, place)
        connections.add(db, name, encrypted)


def hook(ledger: Engine, *, before: bool = False) -> str:
    """Add an endpoint with two secrets that sign, and return its id."""
    id_ = endpoints.new_id()
    with ledger.begin() as db:
        for number, write in enumerate((endpoints.add, endpoints.rotate)):
            secret = f"whsec_{number}"
            encrypted = vault.encrypt(secret) if before else binding.encrypt(db, vault, secret, of_endpoint(id_))
            if write is endpoints.add:
                endpoints.add(db, "https://oms.example/", encrypted, id_=id_)
            else:
                endpoints.rotate(db, id_, encrypted)
    return id_


def kept(ledger: Engine) -> list[tuple[Place, str]]:
    with read_only(ledger) as db:
        tokens = [(of_connection(id_), each) for id_, each in connections.encrypted_tokens(db).items()]
        return tokens + [(of_endpoint(id_), each) for id_, two in endpoints.secrets_of_all(db).items() for each in two]


def read(ledger: Engine, using: TokenVault = vault) -> list[str]:
    return [using.decrypt(encrypted, place) for place, encrypted in kept(ledger)]


def bound(ledger: Engine) -> set[bool]:
    return {is_bound(encrypted) for _, encrypted in kept(ledger)}


@pytest.fixture
def older(ledger: Engine) -> str:
    """Three connections and an endpoint as a release before 0.2 has written them, with an old key; return the last."""
    for name in SHOPS:
        add(ledger, name, TokenVault([OLD]), before=True)
    return hook(ledger, before=True)


PLAIN = ["token-of-shop-1", "token-of-shop-2", "token-of-shop-3", "whsec_1", "whsec_0"]


def test_a_new_ledger_binds_from_its_first_token_on(ledger: Engine) -> None:
    for name in SHOPS:
        add(ledger, name)
    hook(ledger)

    assert {True} == bound(ledger)
    assert PLAIN == read(ledger)


@pytest.mark.usefixtures("older")
def test_nothing_is_bound_while_a_worker_of_the_release_before_may_have_to_read_it(ledger: Engine) -> None:
    add(ledger, "shop-4")
    hook(ledger)

    assert {False} == bound(ledger)
    assert "token-of-shop-4" in [Fernet(NEW).decrypt(encrypted).decode() for _, encrypted in kept(ledger)[3:4]]


@pytest.mark.usefixtures("older")
def test_a_rekey_binds_all_and_from_then_on_all_is_bound(ledger: Engine) -> None:
    with ledger.begin() as db:
        assert (3, 1) == binding.rekey(db, vault)
    assert PLAIN == read(ledger, TokenVault([NEW]))  # the old key can go

    add(ledger, "shop-4")
    hook(ledger)
    with ledger.begin() as db:
        connections.ensure_default(
            db, lambda: binding.encrypt(db, vault, "t", of_connection("default")), vault.decrypt, "t"
        )

    assert {True} == bound(ledger)


@pytest.mark.usefixtures("older")
def test_the_way_back_is_a_rekey_into_the_form_of_the_release_before(ledger: Engine) -> None:
    for bind in (True, False):
        with ledger.begin() as db:
            binding.rekey(db, vault, bound=bind)
    add(ledger, "shop-4")

    assert {False} == bound(ledger)
    assert "token-of-shop-1" == Fernet(NEW).decrypt(kept(ledger)[0][1]).decode()


def swap(ledger: Engine) -> None:
    """Exchange the tokens of two connections, as whoever may write the table can."""
    id_ = connection_rows.c.id
    with ledger.begin() as db:
        tokens = connections.encrypted_tokens(db)
        for one, other in (("shop-1", "shop-2"), ("shop-2", "shop-1")):
            db.execute(sa.update(connection_rows).where(id_ == one).values(access_token=tokens[other]))


def test_tokens_that_were_exchanged_are_not_read(ledger: Engine) -> None:
    for name in SHOPS:
        add(ledger, name)
    swap(ledger)

    moved = dict(kept(ledger))
    for place in map(of_connection, ("shop-1", "shop-2")):
        with pytest.raises(CredentialsError, match="was encrypted for another connection"):
            vault.decrypt(moved[place], place)
    said = [(each.part, each.colour) for each in tokens_kept(kept(ledger), [NEW, OLD])]
    assert [("Connection shop-1", "red"), ("Connection shop-2", "red")] == sorted(said)


def test_a_secret_in_the_place_of_a_token_is_not_read(ledger: Engine) -> None:
    """Else a worker would send it to Trackstar, or sign with a token."""
    add(ledger, "shop-1")
    id_ = hook(ledger)
    (place, token), (_, secret), _ = kept(ledger)
    with ledger.begin() as db:
        db.execute(sa.update(connection_rows).values(access_token=secret))
        db.execute(sa.update(endpoint_rows).values(secret=token))

    assert [place, of_endpoint(id_), of_endpoint(id_)] == [each for each, _ in kept(ledger)]
    for where, encrypted in kept(ledger)[:2]:
        with pytest.raises(CredentialsError, match=f"for another {where.owner}"):
            vault.decrypt(encrypted, where)


def test_a_rekey_binds_no_token_to_where_it_was_moved(ledger: Engine) -> None:
    for name in SHOPS:
        add(ledger, name)
    swap(ledger)
    before = kept(ledger)
    with pytest.raises(CredentialsError) as refused, ledger.begin() as db:
        binding.rekey(db, vault)

    assert str(refused.value).startswith("Nothing is changed, because of connection shop-")
    assert "was encrypted for another connection" in str(refused.value)
    assert before == kept(ledger)


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_rekey_that_is_interrupted_has_changed_nothing_and_may_be_repeated(ledger: Engine, after: int) -> None:
    before, done = kept(ledger), []

    def interrupt() -> None:
        done.append(1)
        if len(done) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ledger.begin() as db:
        binding.rekey(db, vault, done=interrupt)
    assert before == kept(ledger)

    with ledger.begin() as db:
        binding.rekey(db, vault)
    assert ({True}, PLAIN) == (bound(ledger), read(ledger))


@pytest.mark.usefixtures("older")
def test_the_doctor_says_what_a_rekey_would_do(ledger: Engine) -> None:
    def said() -> list[tuple[str, str]]:
        return [(each.colour, each.said.split(":")[0]) for each in tokens_kept(kept(ledger), [NEW, OLD])]

    older = " tokens need an older key than the first"
    assert [("yellow", f"3{older}"), ("green", "5 tokens are in the form of releases before 0.2")] == said()

    with ledger.begin() as db:
        binding.rekey(db, TokenVault([OLD, NEW]))
    assert [("yellow", f"5{older}")] == said()

    with ledger.begin() as db:
        binding.rekey(db, vault)
    assert [] == said()
