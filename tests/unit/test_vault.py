"""Tokens that are bound to their place: what is read where, with which key, and what is said where it is not."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from cryptography.fernet import Fernet
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.ledger.vault import (
    BOUND_ELSEWHERE,
    LACKS_A_KEY,
    LACKS_THIS_KEY,
    NEWER_FORM,
    CredentialsError,
    Place,
    TokenVault,
    fingerprint,
    is_bound,
    of_connection,
    of_endpoint,
)

FIRST, SECOND = (urlsafe_b64encode(bytes([number]) * 32).decode() for number in (1, 2))
SHOP, HOOK = of_connection("shop-1"), of_endpoint("ep_0123456789abcdef")
TOKEN, SECRET = "token-of-shop-1", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
# Written by the release that brought the form; each later one has to read them.
VECTORS = [
    (FIRST, SHOP, TOKEN, "b1.9f96c53e428de9c6.AAECAwQFBgcICQoLP0MF59n4pHhOh5yZW5-zvovjKKFdbo1uyHmnFRxsJg=="),
    (
        FIRST,
        HOOK,
        SECRET,
        "b1.9f96c53e428de9c6.AAECAwQFBgcICQoLPEQd59SKil8mt7WBevTAdpdQoX814Ed6NVtlJ1Lc7GQQTWiSn4TetUyBdljJGLuH43yw638b",
    ),
    (SECOND, SHOP, TOKEN, "b1.92f42922c9065741.AAECAwQFBgcICQoLLPTBLG4bdiOtJIQ5Dnw5M0PV11YpRBNYR31d45N30A=="),
    (
        FIRST,
        SHOP,
        TOKEN,
        "gAAAAABlU_EAAAAAAAAAAAAAAAAAAAAAAORDiC1Rj0fG0A8SiEbb2axnAFPi8fKDjjiTKTg-wleaRYA3ns3cP3ziURULPjxt3g==",
    ),
]

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
places = st.builds(lambda of, id_: of(id_), st.sampled_from([of_connection, of_endpoint]), ids)
both = TokenVault([FIRST, SECOND])


def refusal(vault: TokenVault, encrypted: str, place: Place | None) -> str:
    with pytest.raises(CredentialsError) as refused:
        vault.decrypt(encrypted, place)
    return str(refused.value)


@pytest.mark.parametrize(("key", "place", "plain", "encrypted"), VECTORS)
def test_what_an_earlier_release_has_written_is_read(key: str, place: Place, plain: str, encrypted: str) -> None:
    assert plain == TokenVault([key]).decrypt(encrypted, place)
    assert plain == TokenVault([Fernet.generate_key().decode(), key]).decrypt(encrypted, place)


@given(st.text(st.characters(exclude_categories=["Cs"])), places)
def test_a_bound_token_is_read_in_its_place(plain: str, place: Place) -> None:
    encrypted = both.encrypt(plain, place)

    assert plain == both.decrypt(encrypted, place)
    assert is_bound(encrypted)
    assert encrypted.startswith(f"b1.{fingerprint(FIRST)}.")
    assert encrypted != both.encrypt(plain, place)


@given(places, places)
def test_a_bound_token_is_read_in_no_other_place(place: Place, other: Place) -> None:
    assume(place != other)
    said = refusal(both, both.encrypt(TOKEN, place), other)

    what = "The secret" if other.owner == "endpoint" else "The token"
    assert BOUND_ELSEWHERE.format(what=what, owner=other.owner) == said


def test_a_secret_and_a_token_of_the_same_id_are_not_taken_for_each_other() -> None:
    said = refusal(both, both.encrypt(SECRET, of_endpoint("same")), of_connection("same"))

    assert said.startswith("The token in the ledger was encrypted for another connection, or was changed since")


def test_a_bound_token_is_not_read_without_a_place() -> None:
    assert "another place" in refusal(both, both.encrypt(TOKEN, SHOP), None)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_bound_token_of_which_any_byte_was_changed_is_not_read(which: int, by: int) -> None:
    front, text = both.encrypt(TOKEN, SHOP).rsplit(".", 1)
    read = bytearray(urlsafe_b64decode(text))
    read[which % len(read)] ^= by

    assert "changed since" in refusal(both, f"{front}.{urlsafe_b64encode(read).decode()}", SHOP)


@given(st.text())
def test_whatever_follows_the_key_is_refused_with_a_sentence(text: str) -> None:
    assert "changed since" in refusal(both, f"b1.{fingerprint(FIRST)}.{text}", SHOP)


@given(st.text())
def test_whatever_is_kept_is_refused_with_a_sentence(text: str) -> None:
    for each in (text, f"b1.{text}"):
        assert refusal(both, each, SHOP)


def test_the_key_that_is_missing_is_named() -> None:
    said = refusal(TokenVault([FIRST]), TokenVault([SECOND]).encrypt(TOKEN, SHOP), SHOP)

    assert LACKS_THIS_KEY.format(key=fingerprint(SECOND)) == said


def test_a_token_is_not_read_with_another_key_than_it_names() -> None:
    text = TokenVault([SECOND]).encrypt(TOKEN, SHOP).rsplit(".", 1)[1]

    assert "changed since" in refusal(both, f"b1.{fingerprint(FIRST)}.{text}", SHOP)


def test_a_form_of_a_later_release_is_said_to_be_one() -> None:
    assert NEWER_FORM == refusal(both, "b2.0123456789abcdef.AAAA", SHOP)
    assert LACKS_A_KEY == refusal(both, "bound", SHOP)


@pytest.mark.parametrize("before", [None, SHOP], ids=["of a release before 0.2", "bound"])
@pytest.mark.parametrize("bound", [True, False])
def test_a_token_is_encrypted_anew_in_either_form(before: Place | None, *, bound: bool) -> None:
    anew = both.reencrypt(TokenVault([SECOND]).encrypt(TOKEN, before), SHOP, bound=bound)

    assert TOKEN == TokenVault([FIRST]).decrypt(anew, SHOP)
    assert bound is is_bound(anew)


def test_a_token_that_was_moved_is_not_bound_to_where_it_stands() -> None:
    moved = both.encrypt(TOKEN, of_connection("shop-2"))
    with pytest.raises(CredentialsError):
        both.reencrypt(moved, SHOP)
