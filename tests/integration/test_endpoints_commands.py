"""The commands about endpoints, as a person types them; and what is told of a secret that cannot be read."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from cryptography.fernet import Fernet
from harness.commands import settings_of_commands, with_lines
from harness.receiver import Receiver

from worker.cli.doctor import look_at_connections
from worker.ledger import audit, connections, deliveries, delivery_notes, endpoints, feed
from worker.ledger.database import read_only
from worker.ledger.outbox import add_events
from worker.ledger.vault import CredentialsError, TokenVault, of_endpoint
from worker.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import MakeDatabase
    from sqlalchemy import Engine

WHY = ("--reason", "asked by phone", "--as", "Bea")
URL = "https://oms.example/hook?key=secret-of-a-query"
SECRET = re.compile(r"^(whsec_\S+)$", re.MULTILINE)
HELD = (None, "connection.held", {"connection_id": "shop-1", "reason": "operator"})
Run = tuple[int, str]


@pytest.fixture
def database_url(make_database: MakeDatabase) -> str:
    """One kind only: the statements are shown on both elsewhere."""
    return make_database("sqlite")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    redis_url: str,
    credential_key: str,
) -> Iterator[Callable[..., Run]]:
    """Run a command in this process; return its exit code and what it said."""
    values = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "CREDENTIAL_KEYS": credential_key,
        "WEBHOOK_ALLOW_PRIVATE": "true",
    }
    with settings_of_commands(monkeypatch, values):
        yield with_lines(monkeypatch, capsys)


def added(run: Callable[..., Run], url: str = URL, *more: str) -> tuple[str, str]:
    """Add an endpoint; return its id and its secret."""
    code, said = run("endpoints", "add", url, *more, *WHY)
    assert 0 == code, said
    return re.findall(r"ep_\w+", said)[0], SECRET.findall(said)[0]


def acts(ledger: Engine, id_: str) -> list[tuple[str, str, str | None]]:
    with ledger.connect() as db:
        found = audit.find(db, target_id=id_)
    return [(each.action, each.actor, each.reason) for each in reversed(found)]


def kept(ledger: Engine, id_: str, vault: TokenVault) -> str:
    with ledger.connect() as db:
        return vault.decrypt(endpoints.encrypted_secret(db, id_), of_endpoint(id_))


def test_a_secret_is_shown_when_it_is_made_and_never_again(
    run: Callable[..., Run], ledger: Engine, shop: str, vault: TokenVault
) -> None:
    id_, secret = added(run, URL, "--type", "refund.released", "--connection", shop)
    listed = [run("endpoints", "list")[1], run("endpoints", "show", id_)[1], run("endpoints", "list", "--json")[1]]
    code, said = run("endpoints", "rotate", id_, *WHY)
    (new,) = SECRET.findall(said)

    assert secret == secret.strip() != new
    assert 0 == code
    assert new == kept(ledger, id_, vault)
    assert not [each for each in listed if secret in each or "whsec_" in each]
    assert ["refund.released"] == json.loads(listed[2])["types"]
    assert "both sign until" in run("endpoints", "show", id_)[1]
    with ledger.connect() as db:
        told = str([each.after for each in audit.find(db, target_id=id_)])
    assert "https://oms.example" in told
    assert not any(word in told for word in ("whsec_", "secret-of-a-query", "gAAAA"))  # as what is encrypted begins


def test_several_are_named_with_commas_and_an_id_may_hold_one(
    run: Callable[..., Run], ledger: Engine, shop: str
) -> None:
    with ledger.begin() as db:
        connections.add(db, "a,b", "encrypted")
        connections.add(db, "other", "encrypted")
    added(run, URL, "--types", "refund.released, refund.recalled", "--connections", f"{shop},other", "-c", "a,b")
    code, said = run("endpoints", "add", URL, "--connections", f"{shop},nobody")
    (one,) = map(json.loads, run("endpoints", "list", "--json")[1].splitlines())
    assert 2 == code
    assert "There is no connection nobody" in said
    assert [shop, "other", "a,b"] == one["connections"]
    assert ["refund.released", "refund.recalled"] == one["types"]


def test_each_act_is_kept_with_who_and_why(run: Callable[..., Run], ledger: Engine) -> None:
    id_, _ = added(run)
    for word in ("rotate", "pause", "resume", "remove"):
        assert 0 == run("endpoints", word, id_, *WHY)[0]

    expected = ["add", "rotate", "pause", "resume", "remove"]
    assert [(word, "Bea", "asked by phone") for word in expected] == acts(ledger, id_)


def test_one_who_pauses_and_resumes_sees_it(run: Callable[..., Run]) -> None:
    id_, _ = added(run)
    assert "is paused" in run("endpoints", "pause", id_)[1]
    assert "was already paused" in run("endpoints", "pause", id_)[1]
    assert re.search(r"^state +paused", run("endpoints", "show", id_)[1], re.MULTILINE)
    run("endpoints", "resume", id_)
    assert re.search(r"^state +active", run("endpoints", "show", id_)[1], re.MULTILINE)


def test_a_test_event_is_sent_now_signed_and_its_answer_shown(run: Callable[..., Run], ledger: Engine) -> None:
    with Receiver() as receiver:
        id_, secret = added(run, receiver.url)
        accepted = run("endpoints", "test", id_, *WHY)
        receiver.answer = lambda _: (503, {})
        refused = run("endpoints", "test", id_)

    assert (0, 1) == (accepted[0], refused[0])
    assert "delivered, status 200" in accepted[1]
    assert "http_503, status 503" in refused[1]
    assert "endpoint.test" == receiver.received[0].verified(secret)["type"]
    assert ("test", "Bea", "asked by phone") in acts(ledger, id_)


def test_what_waits_and_was_tried_is_shown(run: Callable[..., Run], ledger: Engine) -> None:
    id_, _ = added(run)
    with ledger.begin() as db:
        add_events(db, [HELD])
        feed.give_places(db)
        (lane,) = deliveries.take(db, "w-1", 60, [])
        deliveries.fan_out(db, [lane])
        (due,) = deliveries.choose(db, [lane], 5)
        facts = {"at": feed.read_feed(db, 0)[0].event.at, "duration_ms": 15_000, "status": None, "reason": "timeout"}
        delivery_notes.note(db, [delivery_notes.Note(due=due, **facts, delivered=False, wait=5.0)])
    said = run("endpoints", "show", id_)[1]
    document = json.loads(run("endpoints", "show", id_, "--json")[1])

    assert "1 wait, 0 are set aside, 0 events are not looked at so far" in said
    assert "timeout" in said
    assert "after 1 tries, next try" in said
    assert [("timeout", 1)] == [(each["reason"], each["try_"]) for each in document["last_tries"]]


def test_a_replay_says_what_or_since_when(run: Callable[..., Run], ledger: Engine) -> None:
    with ledger.begin() as db:
        add_events(db, [HELD])
        feed.give_places(db)
        (told,) = feed.read_feed(db, 0)
    id_, _ = added(run)
    assert 2 == run("endpoints", "replay", id_)[0]
    assert 2 == run("endpoints", "replay", id_, "--since", "1h", "--id", told.event.id)[0]
    assert 2 == run("endpoints", "replay", id_, "--id", "evt_999_1")[0]
    assert 2 == run("endpoints", "replay", id_, "--since", "soon")[0]
    assert 0 == run("endpoints", "replay", id_, "--id", told.event.id, *WHY)[0]
    with read_only(ledger) as db:
        assert 1 == endpoints.known(db, id_).waiting
    assert 0 == run("endpoints", "replay", id_, "--since", "1h", *WHY)[0]
    with read_only(ledger) as db:
        assert 1 == endpoints.known(db, id_).behind
    assert ["add", "replay", "replay"] == [action for action, *_ in acts(ledger, id_)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("add", "http://oms.example/"), None),
        (("add", "https://user:pass@oms.example/"), "without a user"),
        (("add", URL, "--type", "refund.relased"), "is no type"),
        (("add", URL, "--connection", "nobody"), "There is no connection nobody"),
        (("show", "ep_0"), "There is no endpoint ep_0"),
        (("rotate", "ep_0"), "There is no endpoint ep_0"),
        (("pause", "ep_0"), "There is no endpoint ep_0"),
        (("resume", "ep_0"), "There is no endpoint ep_0"),
        (("remove", "ep_0", *WHY), "There is no endpoint ep_0"),
        (("remove", "ep_0"), "say why"),
        (("test", "ep_0"), "There is no endpoint ep_0"),
        (("replay", "ep_0", "--since", "1h"), "There is no endpoint ep_0"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str | None
) -> None:
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "false")
    code, said = run("endpoints", *words)

    assert 2 == code
    assert (says or "An endpoint is https://") in said
    assert "user:pass" not in said


def test_without_a_key_it_is_said_how_to_make_one(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIAL_KEYS", "")
    code, said = run("endpoints", "add", URL)

    assert 2 == code
    assert "Fernet.generate_key" in said


def test_rekey_covers_secrets_and_then_the_old_key_can_go(
    run: Callable[..., Run], ledger: Engine, monkeypatch: pytest.MonkeyPatch, credential_key: str
) -> None:
    id_, old = added(run)
    run("endpoints", "rotate", id_)
    new_key = Fernet.generate_key().decode()
    monkeypatch.setenv("CREDENTIAL_KEYS", f"{new_key},{credential_key}")
    load_settings.cache_clear()
    code, said = run("connections", "rekey", "--force")
    with ledger.connect() as db:
        secrets = endpoints.secrets_of_all(db)[id_]

    assert 0 == code
    assert "the secrets of 1 endpoints" in said
    assert old == TokenVault([new_key]).decrypt(secrets[1], of_endpoint(id_))
    assert TokenVault([new_key]).decrypt(secrets[0], of_endpoint(id_)).startswith("whsec_")
    with pytest.raises(CredentialsError):
        TokenVault([credential_key]).decrypt(secrets[0], of_endpoint(id_))


def test_the_doctor_names_an_endpoint_whose_secret_cannot_be_read(
    run: Callable[..., Run], ledger: Engine, monkeypatch: pytest.MonkeyPatch, vault: TokenVault
) -> None:
    id_, _ = added(run)
    with ledger.begin() as db:
        connections.add(db, "shop-1", vault.encrypt("token"))
    monkeypatch.setenv("TRACKSTAR_API_KEY", "key-of-a-test")
    monkeypatch.setenv("TRACKSTAR_BASE_URL", "http://127.0.0.1:9")
    load_settings.cache_clear()
    well = [each for each in look_at_connections(load_settings()) if "Endpoint" in each.part]
    monkeypatch.setenv("CREDENTIAL_KEYS", Fernet.generate_key().decode())
    load_settings.cache_clear()
    found = [each for each in look_at_connections(load_settings()) if "Endpoint" in each.part]

    assert [] == well
    assert [(f"Endpoint {id_}", "red")] == [(each.part, each.colour) for each in found]
