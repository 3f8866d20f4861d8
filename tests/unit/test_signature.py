"""Signatures of Standard Webhooks: made as its own library makes them, and believed where nothing was altered."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from worker.cancellation.signature import ID, SIGNATURE, TIMESTAMP, Signer, bare_secrets, read_secrets


def secret(letter: str, length: int = 24) -> str:
    return "whsec_" + base64.b64encode(letter.encode() * length).decode()


OLD, NEW, OTHER = secret("a"), secret("b"), secret("c", 64)
NOW = datetime.now(UTC)
BODY = '{"id":"evt_7_1","note":"später"}'.encode()
SIGNED = Signer([NEW]).sign("evt_7_1", NOW, BODY)


def test_the_library_of_the_standard_verifies_what_is_signed() -> None:
    assert "später" == Webhook(NEW).verify(BODY, SIGNED)["note"]
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, SIGNED)


def test_what_was_signed_long_ago_is_believed_because_a_stream_may_be_read_late() -> None:
    then = Signer([NEW]).sign("evt_7_1", NOW - timedelta(days=300), BODY)

    assert Signer([NEW]).has_signed(then, BODY)


def test_an_instant_of_any_offset_is_signed_as_what_it_is() -> None:
    there = datetime.fromisoformat("2026-11-30T10:00:00+01:00")

    assert Signer([NEW]).sign("x", there.astimezone(UTC), BODY) == Signer([NEW]).sign("x", there, BODY)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({ID: "evt_8_1"}, id="another id"),
        pytest.param({TIMESTAMP: str(int(NOW.timestamp()) + 1)}, id="another time"),
        pytest.param({TIMESTAMP: f"0{SIGNED[TIMESTAMP]}"[:11] + "x"}, id="no time"),
        pytest.param({TIMESTAMP: "99999999999999"}, id="a time that no calendar has"),
        pytest.param({TIMESTAMP: "١٧٨٠٠٠٠٠٠٠"}, id="digits of another script"),
        pytest.param({SIGNATURE: ""}, id="no signature"),
        pytest.param({SIGNATURE: SIGNED[SIGNATURE].replace("v1,", "v2,")}, id="a version that is not known"),
        pytest.param({SIGNATURE: SIGNED[SIGNATURE].removeprefix("v1,")}, id="no version"),
        pytest.param({SIGNATURE: "v1,ü \udcff"}, id="no ASCII"),
        pytest.param({ID: "\udcff"}, id="no Unicode"),
    ],
)
def test_whatever_is_altered_is_not_believed(changed: dict[str, str]) -> None:
    assert Signer([NEW]).has_signed(SIGNED, BODY)
    assert not Signer([NEW]).has_signed({**SIGNED, **changed}, BODY)


@pytest.mark.parametrize("body", [BODY + b" ", BODY.replace(b"7", b"8"), b"", b"\xff"])
def test_an_altered_body_is_not_believed(body: bytes) -> None:
    assert not Signer([NEW]).has_signed(SIGNED, body)


@pytest.mark.parametrize("missing", SIGNED)
def test_a_missing_header_is_not_believed(missing: str) -> None:
    assert not Signer([NEW]).has_signed({name: SIGNED[name] for name in SIGNED if name != missing}, BODY)


def test_during_a_rotation_both_sides_may_change_first() -> None:
    both = Signer([NEW, OLD]).sign("evt_7_1", NOW, BODY)

    assert [True, True, False] == [Signer([each]).has_signed(both, BODY) for each in (OLD, NEW, OTHER)]
    assert Signer([NEW, OLD]).has_signed(Signer([OLD]).sign("evt_7_1", NOW, BODY), BODY)


@pytest.mark.parametrize("between", [" ", ",", ", ", "  "])
def test_two_secrets_may_be_stated(between: str) -> None:
    assert [NEW, OLD] == read_secrets(f"{NEW}{between}{OLD}")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param(" , ", id="commas"),
        pytest.param(NEW.removeprefix("whsec_"), id="without its prefix"),
        pytest.param(secret("a", 23), id="too short"),
        pytest.param(secret("a", 65), id="too long"),
        pytest.param(NEW[:-1] + "!", id="no base64"),
        pytest.param(f"{NEW} tuttifrutti", id="the second is none"),
        pytest.param(f"{NEW} {OLD} {OTHER}", id="three"),
        pytest.param("whsec_ü", id="no ASCII"),
    ],
)
def test_what_is_no_secret_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be whsec_ and base64|states 3 secrets") as refused:
        read_secrets(text)

    assert not [each for each in bare_secrets(text) if each in str(refused.value)]
