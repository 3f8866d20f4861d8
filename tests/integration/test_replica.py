"""Questions to a PostgreSQL that repeats another: no write is tried, and the answers are true of the past."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.answered import cancelled
from harness.commands import Run, in_process
from harness.parts import START_SECONDS, PostgresServer, open_folder

from worker import CancelClient, LedgerUnavailableError
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import SafeToRefund
from worker.ledger import connections, feed, migrations, results, transitions
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
ENDED = {"cancellation.ended", "refund.released"}
VIEWS = ("cancellation_outcomes_v1", "attempts_v1", "connections_v1")
OF_VIEWS = [f"SELECT count(*) FROM {each}" for each in VIEWS]  # noqa: S608
TURNED = "UPDATE cancellations SET verdict = 'not_cancelled', as_of = now() WHERE id = '{}'"  # the order has shipped


class Pair:
    """A server that takes writes, and one that repeats them."""

    def __init__(self, folder: Path, vault: TokenVault) -> None:
        self.primary = PostgresServer.create(folder / "data")
        self.primary.start()
        self.ledger = open_ledger(self.primary.url)
        migrations.migrate(self.ledger)
        with self.ledger.begin() as db:
            connections.add(db, SHOP, vault.encrypt("token"))
        self.replica = self.primary.replicate(folder / "replica" / "data")
        self.replica.start()
        self.log = folder / "replica" / "postgres.log"

    def close(self) -> None:
        self.ledger.dispose()
        self.replica.stop()
        self.primary.stop()

    def catch_up(self) -> None:
        """Wait until the replica has all that is written."""
        ((written,),) = self.primary.execute("SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + START_SECONDS
        while not self.replica.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn")[0][0]:
            assert time.monotonic() < deadline, "The replica does not catch up."

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Let the replica have what is written now, and no more until the end."""
        self.catch_up()
        self.replica.execute("SELECT pg_wal_replay_pause()")
        yield
        self.replica.execute("SELECT pg_wal_replay_resume()")
        self.catch_up()

    def accept(self, order_id: str) -> str:
        job = CancelRequest(connection_id=SHOP, order_id=order_id)
        with self.ledger.begin() as db:
            transitions.accept(db, [job])
        return job.record_id

    def end(self) -> None:
        claimed, _ = transitions.claim_shares(self.ledger, {SHOP: 9}, "w-1", 60, {})
        with self.ledger.begin() as db:
            results.commit_results(db, [cancelled(claim) for claim in claimed[SHOP]])

    def give_places(self) -> None:
        """Do what each reader of the feed does on the server that takes writes."""
        with self.ledger.begin() as db:
            feed.give_places(db)


@pytest.fixture(scope="module")
def servers(vault: TokenVault) -> Iterator[Pair]:
    with open_folder("cancel-worker-pair-") as folder, closing(Pair(folder, vault)) as made:
        yield made


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    """The pair, of which the replica was asked to write nothing."""
    asked = servers.log.read_text()
    yield servers
    assert "read-only transaction" not in servers.log.read_text().removeprefix(asked)


@pytest.fixture
def client(pair: Pair, redis_url: str) -> Iterator[CancelClient]:
    with closing(CancelClient(redis_url, pair.replica.url)) as made:
        yield made


@pytest.fixture
def run(pair: Pair, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("DATABASE_URL", pair.replica.url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    return in_process(monkeypatch, capsys)


def told(client: CancelClient, **options: Any) -> list[tuple[str, str | None]]:
    """Return the types of events that are there, and of which order each is."""
    found = client.events(**{"timeout": 0.0, **options})
    return [(each.event.type, getattr(each.event, "order_id", None)) for each in found]


def test_people_and_dashboards_ask_a_replica_and_nothing_is_written(pair: Pair, run: Run) -> None:
    id_ = pair.accept("o-asked")
    pair.end()
    pair.give_places()
    pair.catch_up()
    for words, expected in {
        ("show", "o-asked"): "o-asked",
        ("show", id_, "--json"): '"safe_to_refund":"yes"',
        ("list", "--json"): id_,
        ("list", "--status", "succeeded", "-c", SHOP): "o-asked",
        ("events", "list", "--since", "1h"): "refund.released",
        ("connections", "list"): SHOP,
        ("batches", "list"): "",
        ("audit", "list"): "",
        ("dead-letters", "list"): "",
        ("migrate", "--check"): "as this version needs it",
    }.items():
        code, said = run(*words)
        assert (0, True) == (code, expected.replace(" ", "") in said.replace(" ", "")), (words, said)
    for query in OF_VIEWS:
        assert pair.replica.execute(query)[0][0]


def test_the_feed_is_read_on_a_replica_once_its_events_have_places(pair: Pair, client: CancelClient) -> None:
    pair.accept("o-fed")
    pair.end()
    pair.give_places()
    pair.catch_up()
    assert ENDED == {kind for kind, order_id in told(client) if order_id == "o-fed"}

    *_, last = client.events(timeout=0.0)
    pair.accept("o-later")
    pair.end()
    pair.catch_up()
    with pytest.raises(LedgerUnavailableError, match="have no place in the feed yet"):
        told(client, after=last.cursor)
    pair.give_places()
    pair.catch_up()
    assert ENDED == {kind for kind, order_id in told(client, after=last.cursor) if order_id == "o-later"}


def test_a_consumer_is_refused_by_a_replica_that_cannot_keep_its_place(client: CancelClient) -> None:
    with pytest.raises(LedgerUnavailableError, match="the place of a consumer cannot be kept"):
        told(client, consumer="oms")


def test_a_replica_that_lags_tells_what_was_true_and_of_which_instant(pair: Pair, client: CancelClient) -> None:
    id_ = pair.accept("o-lags")
    with pair.behind():
        pair.end()
        not_yet = client.safe_to_refund(id_)
    yes = client.safe_to_refund(id_)
    with pair.behind():
        pair.primary.execute(TURNED.format(id_))
        still_yes = client.safe_to_refund(id_)
    no = client.safe_to_refund(id_)

    assert [SafeToRefund.NOT_YET, SafeToRefund.YES, SafeToRefund.YES, SafeToRefund.NO] == [not_yet, yes, still_yes, no]
    assert (None, yes.as_of) == (not_yet.as_of, still_yes.as_of)
    assert yes.as_of
    assert no.as_of
    assert yes.as_of < no.as_of


def test_an_act_is_refused_by_a_replica_with_a_sentence(
    servers: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", servers.replica.url)
    code, said = in_process(monkeypatch, capsys)("connections", "hold", SHOP, "--reason", "r")

    assert (3, True) == (code, "let DATABASE_URL name the primary server" in said), said
