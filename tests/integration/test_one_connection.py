"""Name and owner of a connection, how it stands, and the link that mends its credentials; on both ledgers."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.raw_server import Play, RawServer, client_of, whole
from sqlalchemy import update

from worker.cancellation.answer import Reply
from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.request import CancelRequest
from worker.cli import main, parts
from worker.cli.times import moment
from worker.dev.sandbox import Sandbox
from worker.ledger import connections, freshness, holds, queries, transitions
from worker.ledger.connections import Affected
from worker.ledger.schema import cancellations
from worker.settings import load_settings
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine

    from worker.ledger.vault import TokenVault

NOW = datetime.now(UTC).replace(microsecond=0)
SOON = NOW + timedelta(hours=1)


class Shell:
    """Runs commands in this process on the ledger of a test; returns their exit code and what they said, in a line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str]:
        self.monkeypatch.setattr(sys, "argv", ["cancel-worker", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        written = self._capsys.readouterr()
        return int(ended.value.code or 0), " ".join((written.out + written.err).split())


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    redis_url: str,
    credential_key: str,
) -> Iterator[Shell]:
    monkeypatch.setattr(parts.console, "_width", 400)
    for name, value in {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "CREDENTIAL_KEYS": credential_key,
        "TRACKSTAR_API_KEY": "k",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    yield Shell(monkeypatch, capsys)
    load_settings.cache_clear()


def accept(ledger: Engine, order_id: str, connection_id: str = "shop-1", **fields: Any) -> str:
    request = CancelRequest(connection_id=connection_id, order_id=order_id, **fields)
    transitions.accept_batch(ledger, [request])
    return request.record_id


def hold(ledger: Engine, connection_id: str = "shop-1", reason: str = holds.CREDENTIALS) -> None:
    with ledger.begin() as db:
        holds.hold(db, {connection_id}, reason)


# ---- name and owner


@pytest.mark.usefixtures("shop")
def test_name_owner_and_system_are_changed_each_alone_and_an_empty_text_is_none(ledger: Engine) -> None:
    with ledger.begin() as db:
        connections.change(db, "shop-1", name="Acme", owner="Jane", integration_name="shiphero")
        connections.change(db, "shop-1", owner="Joe")
        row = connections.known(db, "shop-1")
    assert ("Acme", "Joe", "shiphero") == (row.name, row.owner, row.integration_name)

    with ledger.begin() as db:
        connections.change(db, "shop-1", owner="", name="")
        row = connections.known(db, "shop-1")
    assert (None, None, "shiphero") == (row.name, row.owner, row.integration_name)


def test_a_new_token_keeps_name_and_owner(ledger: Engine, vault: TokenVault) -> None:
    with ledger.begin() as db:
        connections.add(db, "shop-1", vault.encrypt("t"), name="Acme", owner="Jane")
        connections.add(db, "shop-1", vault.encrypt("new"))
        row = connections.known(db, "shop-1")

    assert ("Acme", "Jane") == (row.name, row.owner)


@pytest.mark.usefixtures("shop")
def test_name_and_owner_stand_beside_the_id_wherever_it_is_shown(ledger: Engine, shell: Shell) -> None:
    ended = accept(ledger, "o-1")
    with ledger.begin() as db:
        db.execute(update(cancellations).values(status="rejected", ended_at=NOW, verdict="unknown", attempts=0))
        seen = Crawls(status=CrawlStatus.DISABLED, began_at=NOW, ended_at=NOW, seen_at=NOW)
        freshness.keep(db, {"shop-1": seen})
    assert 0 == shell.run("connections", "set", "shop-1", "--name", "Acme", "--owner", "Jane")[0]
    called = "shop-1 (Acme, owner Jane)"

    assert called in shell.run("list")[1]
    assert called in shell.run("replay", "--status", "rejected", "--dry-run")[1]
    assert f"Order o-1 of connection {called}" in shell.run("show", ended)[1]
    assert f"Connection {called}" in shell.run("connections", "show", "shop-1")[1]
    assert "shop-1 Acme Jane" in shell.run("connections", "list")[1]
    with Sandbox("k") as sandbox:
        shell.monkeypatch.setenv("TRACKSTAR_BASE_URL", sandbox.url)
        load_settings.cache_clear()
        said = shell.run("doctor")[1]
    assert 2 == said.count(f"Connection {called}")  # what Trackstar says of it, and that its crawls do not come
    with ledger.connect() as db:
        found = queries.get(db, ended)
    assert found is not None
    assert ("Acme", "Jane") == (found.connection_name, found.connection_owner)
    assert '"connection_owner":"Jane"' in shell.run("list", "--json")[1]


def test_a_connection_without_a_name_of_its_own_is_called_by_its_id(ledger: Engine, shell: Shell) -> None:
    accept(ledger, "o-1", "nobody-added")

    assert "nobody-added (" not in shell.run("list")[1]


@pytest.mark.usefixtures("shop")
def test_a_name_that_no_column_holds_is_refused_with_a_sentence(shell: Shell) -> None:
    code, said = shell.run("connections", "set", "shop-1", "--owner", "x" * 256)

    assert (2, True) == (code, "have 255 characters" in said)
    assert 2 == shell.run("connections", "set", "shop-1")[0]


# ---- how one stands


@pytest.mark.usefixtures("shop")
def test_who_is_affected_is_counted_by_priority_with_the_earliest_send_by(ledger: Engine) -> None:
    later = SOON + timedelta(hours=1)
    accept(ledger, "o-1", priority="bulk")
    accept(ledger, "o-2", priority="urgent", send_by=later)
    accept(ledger, "o-3", priority="urgent", send_by=SOON)
    waits = accept(ledger, "o-4", priority="bulk", send_by=later)
    ended = accept(ledger, "o-5", priority="urgent")
    accept(ledger, "o-6", "another")
    with ledger.begin() as db:
        of = lambda name: update(cancellations).where(cancellations.c.id == name)  # noqa: E731
        db.execute(of(waits).values(status="waiting", run_at=SOON))
        db.execute(of(ended).values(status="rejected", verdict="unknown", ended_at=NOW))
        assert 1 == len(transitions.claim_next(db, {"shop-1": 1}, "w-1", 60)["shop-1"])  # o-3
        found = connections.affected(db, "shop-1")

    assert [Affected("urgent", 2, SOON), Affected("bulk", 2, later)] == found


@pytest.mark.usefixtures("shop")
def test_the_last_success_is_the_newest_that_succeeded(ledger: Engine) -> None:
    with ledger.connect() as db:
        assert connections.last_success(db, "shop-1") is None
    for hours, (status, verdict) in enumerate(
        [
            ("rejected", "cancelled"),  # by somebody else
            ("rejected", "not_cancelled"),
            ("succeeded", "accepted"),
            ("succeeded", "cancelled"),
        ]
    ):
        one = accept(ledger, f"o-{hours}")
        ended = {"status": status, "verdict": verdict, "ended_at": NOW - timedelta(hours=hours)}
        with ledger.begin() as db:
            db.execute(update(cancellations).where(cancellations.c.id == one).values(**ended))

    with ledger.connect() as db:
        assert NOW - timedelta(hours=2) == connections.last_success(db, "shop-1")


@pytest.mark.usefixtures("shop")
def test_a_held_connection_says_since_when_who_waits_and_what_to_do(ledger: Engine, shell: Shell) -> None:
    accept(ledger, "o-1", send_by=SOON)
    accept(ledger, "o-2", priority="urgent")
    hold(ledger)
    with ledger.begin() as db:
        held_at = connections.known(db, "shop-1").held_at
        connections.change(db, "shop-1", integration_name="shiphero")
    code, said = shell.run("connections", "show", "shop-1")

    assert 0 == code
    for line in (
        "Connection shop-1 warehouse system shiphero",
        f"hold credentials, since {moment(held_at)} token yes",
        f"not ended 2 (1 urgent, 1 normal), the earliest send_by {moment(SOON)}",
        "copy of its orders unknown",
        "pace 50 writes/s (WRITES_PER_SECOND) last success none",
        "what to do Give it a new token: `cancel-worker connections rotate shop-1`; or,",
        "`cancel-worker connections mend-link shop-1`.",
    ):
        assert line in said
    fields = json.loads(shell.run("connections", "show", "shop-1", "--json")[1])
    assert ("credentials", 2, True) == (fields["hold_reason"], fields["waiting"], fields["has_token"])
    assert [("urgent", 1), ("normal", 1)] == [(each["priority"], each["count"]) for each in fields["affected"]]
    assert SOON == datetime.fromisoformat(fields["earliest_send_by"])


@pytest.mark.usefixtures("shop")
def test_a_connection_that_is_well_has_nothing_to_do(shell: Shell) -> None:
    said = shell.run("connections", "show", "shop-1")[1]

    assert "hold none" in said
    assert "not ended nothing" in said
    assert said.endswith("what to do nothing")


@pytest.mark.usefixtures("shop")
def test_a_copy_that_is_not_renewed_says_what_to_do(ledger: Engine, shell: Shell) -> None:
    with ledger.begin() as db:
        seen = Crawls(status=CrawlStatus.ERROR, began_at=NOW, ended_at=NOW, frequency=3600.0, seen_at=NOW)
        freshness.keep(db, {"shop-1": seen})
    said = shell.run("connections", "show", "shop-1")[1]

    assert "copy of its orders crawls failing, copy of" in said
    assert "what to do See what Trackstar reports of the connection above" in said


@pytest.mark.usefixtures("shop")
def test_the_pace_is_that_which_workers_keep_to(ledger: Engine, shell: Shell, redis: Redis) -> None:
    pacing = Pacing(redis, "w")
    said = lambda: shell.run("connections", "show", "shop-1")[1]  # noqa: E731
    with ledger.begin() as db:
        connections.change(db, "shop-1", writes_per_second=20.0)
    assert "pace 20 writes/s (stated for it) last" in said()

    pacing.cap_rate("shop-1", 5.0)  # type: ignore[arg-type]
    pacing.pause("shop-1", 40.0)
    assert "pace 5 writes/s (Trackstar's own limit in the last ten minutes), paused for another " in said()
    redis.hset(pacing.key("shop-1"), "limit", "nonsense")
    assert "pace 20 writes/s (stated for it), paused" in said()
    redis.delete(pacing.key("shop-1"))
    redis.lpush(pacing.key("shop-1"), "nonsense")
    assert "pace 20 writes/s (stated for it) last" in said()

    shell.monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    load_settings.cache_clear()
    assert "pace 20 writes/s (stated for it); what Redis knows could not be read" in said()


def test_of_a_connection_that_nobody_knows_nothing_is_shown(shell: Shell, ledger: Engine) -> None:
    del ledger
    sentence = "There is no connection shop-9: see `cancel-worker connections list`."

    assert (2, sentence) == shell.run("connections", "show", "shop-9")
    assert (2, sentence) == shell.run("connections", "mend-link", "shop-9")


# ---- the link that mends its credentials


@pytest.fixture
def trackstar(shell: Shell) -> Iterator[Sandbox]:
    with Sandbox("k") as sandbox:
        shell.monkeypatch.setenv("TRACKSTAR_BASE_URL", sandbox.url)
        load_settings.cache_clear()
        sandbox.world.connect("shop-1", "t")
        yield sandbox


@pytest.mark.usefixtures("shop")
def test_the_link_of_a_connection_without_access_is_shown_as_text(
    ledger: Engine, shell: Shell, trackstar: Sandbox
) -> None:
    del trackstar
    hold(ledger)

    assert (
        0,
        "https://link.sandbox.invalid/shop-1 Give it to the customer of this connection alone. When they are done, a "
        "probe ends the hold by itself.",
    ) == shell.run("connections", "mend-link", "shop-1")


@pytest.mark.usefixtures("shop")
def test_the_link_is_that_of_trackstars_own_id_and_whoever_needs_none_is_told(
    ledger: Engine, shell: Shell, trackstar: Sandbox
) -> None:
    trackstar.world.connect("another", "t-2", trackstar_id="conn/7")
    with ledger.begin() as db:
        freshness.set_trackstar_id(db, "shop-1", "conn/7")
    code, said = shell.run("connections", "mend-link", "shop-1")

    assert (0, True) == (code, said.startswith("https://link.sandbox.invalid/conn%2F7 Connection shop-1 is not held"))


@pytest.mark.usefixtures("trackstar")
def test_a_link_of_a_connection_that_trackstar_does_not_know_is_one_sentence(ledger: Engine, shell: Shell) -> None:
    accept(ledger, "o-1", "elsewhere")
    code, said = shell.run("connections", "mend-link", "elsewhere")

    assert 1 == code
    assert said.startswith("Trackstar gives no link for connection elsewhere (404)")


@pytest.mark.usefixtures("shop")
def test_whatever_trackstar_answers_instead_of_a_link_is_one_sentence(shell: Shell) -> None:
    elsewhere = "use Trackstar's dashboard."
    plays: list[tuple[Play, int, str]] = [
        (whole(status=b"401 No"), 1, "Trackstar answers 401: correct TRACKSTAR_API_KEY."),
        (
            whole(b'{"error": "not [red]here"}', status=b"403 Forbidden"),
            1,
            f"Trackstar refuses a link (status 403: not [red]here); {elsewhere}",
        ),
        (whole(b"", status=b"500 Oh"), 1, f"Trackstar refuses a link (status 500); {elsewhere}"),
        (whole(b"", status=b"302 Found"), 1, f"Trackstar refuses a link (status 302); {elsewhere}"),
        (whole(b'{"url": "http://a.b"}'), 1, f"Trackstar's answer holds no https link: {elsewhere}"),
        (whole(b"<html>"), 1, f"Trackstar's answer holds no https link: {elsewhere}"),
        (
            lambda _: None,
            3,
            "Trackstar does not answer (connection_lost): check TRACKSTAR_BASE_URL and the network.",
        ),
    ]
    for play, code, sentence in plays:
        with RawServer(play) as server:
            shell.monkeypatch.setenv("TRACKSTAR_BASE_URL", server.url)
            load_settings.cache_clear()
            assert (code, sentence) == shell.run("connections", "mend-link", "shop-1")


@pytest.mark.usefixtures("shop")
def test_without_an_api_key_it_is_said_which_setting_is_missing(shell: Shell) -> None:
    shell.monkeypatch.delenv("TRACKSTAR_API_KEY")
    load_settings.cache_clear()
    code, said = shell.run("connections", "mend-link", "shop-1")

    assert (2, True) == (code, "TRACKSTAR_API_KEY" in said)


def test_what_asks_for_a_link_is_a_post_with_the_api_key_alone() -> None:
    with RawServer(whole(b'{"data": {"url": "https://a.b/c"}}')) as server, client_of(server.url) as client:
        answer = client.magic_link('shop "1"')

    assert isinstance(answer, Reply)
    assert "https://a.b/c" == answer.link
    assert server.heads[0].startswith(b"POST /magic-links HTTP/1.1\r\n")
    assert b"x-trackstar-api-key: " in server.heads[0]
    assert b"access-token" not in server.heads[0]
    assert b"Content-Type: application/json\r\n" in server.heads[0]
    assert {"connection_id": 'shop "1"'} == json.loads(server.bodies[0])
