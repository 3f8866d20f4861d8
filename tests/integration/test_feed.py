"""The feed: every event once, in an order that stays, through whatever is away; on both databases."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
from harness.parts import PostgresServer, open_folder
from sqlalchemy import Engine, func, insert, select, update

from worker import CancelClient, CursorError, LedgerUnavailableError
from worker.cancellation.request import CancelRequest
from worker.ledger import feed, holds, migrations, retention, transitions
from worker.ledger.changes import Change, change
from worker.ledger.database import open_ledger
from worker.ledger.outbox import add_events, mark_published
from worker.ledger.schema import cursors, events
from worker.runtime.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from worker.ledger.feed_reader import FeedEvent

HELD = "trackstar.held"
PROGRAM = Path(sys.executable).with_name("cancel-worker")
SOON = 30.0  # more than any of this takes


def write(ledger: Engine, *numbers: int) -> None:
    """Write an event for each number, in a transaction of its own."""
    for number in numbers:
        with ledger.begin() as db:
            add_events(db, [(None, HELD, {"connections": number})])


@pytest.fixture
def client(database_url: str, redis_url: str) -> Iterator[CancelClient]:
    with closing(CancelClient(redis_url, database_url)) as made:
        yield made


def read(client: CancelClient, **options: Any) -> list[int]:
    """Return the numbers of all events that are there."""
    return [number_of(each) for each in client.events(**{"timeout": 0.0, **options})]


def number_of(told: FeedEvent) -> int:
    return int(getattr(told.event, "connections", 0))


def places(ledger: Engine) -> list[int | None]:
    with ledger.connect() as db:
        return list(db.execute(select(events.c.place).order_by(events.c.place)).scalars())


# ---- the order


def test_each_event_is_told_once_in_order_and_its_cursor_leads_to_the_next(
    ledger: Engine, client: CancelClient
) -> None:
    write(ledger, 1, 2, 3)
    found = list(client.events(timeout=0.0))

    assert [1, 2, 3] == [number_of(each) for each in found]
    assert [2, 3] == read(client, after=found[0].cursor)
    write(ledger, 4)
    assert [4] == read(client, after=found[-1].cursor)
    assert 4 == len({each.event.id for each in client.events(timeout=0.0)})


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite lets one transaction write at a time
def test_an_event_that_is_committed_late_under_a_smaller_number_is_not_missed(
    ledger: Engine, client: CancelClient
) -> None:
    with ledger.connect() as slow, slow.begin():
        add_events(slow, [(None, HELD, {"connections": 1})])
        write(ledger, 2)
        (early,) = client.events(timeout=0.0)
    (late,) = client.events(after=early.cursor, timeout=0.0)

    assert [2, 1] == [number_of(early), number_of(late)]
    assert [2, 1] == read(client)  # and so it stays


@pytest.mark.usefixtures("shop")
def test_events_of_one_cancellation_keep_their_order_while_many_write_and_read(
    ledger: Engine, client: CancelClient
) -> None:
    jobs = [CancelRequest(connection_id="shop-1", order_id=f"o-{number}") for number in range(6)]
    with ledger.begin() as db:
        transitions.accept(db, jobs)
    began, times = datetime.now(UTC), 15

    def change_often(job: CancelRequest) -> None:
        for number in range(times):
            with ledger.begin() as db:
                change(db, [job.record_id], Change(send_by=began + timedelta(hours=1 + number)))

    threads = [threading.Thread(target=change_often, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    told: dict[str, list[datetime]] = {job.record_id: [] for job in jobs}
    for each in islice(client.events(types=["cancellation.changed"], timeout=SOON), len(jobs) * times):
        told[each.event.cancellation_id].append(each.event.send_by)  # type: ignore[union-attr, arg-type]
    for thread in threads:
        thread.join(SOON)

    in_order = [began + timedelta(hours=1 + number) for number in range(times)]
    assert [in_order] * len(jobs) == list(told.values())


def test_many_readers_at_once_give_each_event_one_place_without_a_gap(
    ledger: Engine, client: CancelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_PLACED", 7)
    count, together, found = 100, threading.Barrier(4), SimpleQueue[list[int]]()

    def read_all() -> None:
        together.wait(SOON)
        found.put([number_of(each) for each in islice(client.events(timeout=SOON), count)])

    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    write(ledger, *range(40))
    together.wait(SOON)
    write(ledger, *range(40, count))
    for thread in threads:
        thread.join(SOON)

    assert [list(range(count))] * 3 == [found.get(timeout=1) for _ in threads]
    assert list(range(1, count + 1)) == places(ledger)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has no locks of rows
def test_a_row_that_another_transaction_holds_is_not_waited_for_nor_passed_over(
    ledger: Engine, client: CancelClient
) -> None:
    write(ledger, 1, 2, 3)
    with ledger.connect() as marking, marking.begin():
        mark_published(marking, [2])
        assert [1] == read(client, after="0")[:1] == read(client)

    assert [1, 2, 3] == read(client)


def test_what_is_pruned_beside_a_reader_is_left_out_and_ends_nothing(ledger: Engine, client: CancelClient) -> None:
    write(ledger, 1, 2, 3, 4)
    following = client.events(timeout=0.0)
    first = next(following)
    with ledger.begin() as db:
        db.execute(update(events).values(publish_at=None))
        db.execute(update(events).where(events.c.place == 4).values(created_at=datetime.now(UTC)))
        db.execute(update(events).where(events.c.place != 4).values(created_at=datetime(2020, 1, 1, tzinfo=UTC)))
        assert 3 == retention.prune_events(db, 3600)

    assert [1, 2, 3, 4] == [number_of(first), *map(number_of, following)]  # it had them in hand
    assert [4] == read(client, after=first.cursor) == read(client)
    write(ledger, 5)
    assert [4, 5] == read(client)


MANY = 100_000


def test_a_hundred_thousand_old_events_get_their_places_in_steps(
    ledger: Engine, client: CancelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"type": HELD, "payload": "{}", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    with ledger.begin() as db:
        db.execute(insert(events), [old] * MANY)
    given: list[int] = []
    give = feed.give_places

    def note(db: Any) -> int:
        given.append(give(db))
        return given[-1]

    monkeypatch.setattr(feed, "give_places", note)
    assert [] == read(client, after="now")

    assert (MANY, feed.MAX_PLACED) == (sum(given), max(given))
    with ledger.connect() as db:
        found = db.execute(select(func.min(events.c.place), func.max(events.c.place))).one()
    assert (1, MANY) == tuple(found)


# ---- where to begin


def test_a_named_consumer_goes_on_where_it_stopped_and_knows_nothing_of_others(
    ledger: Engine, client: CancelClient
) -> None:
    write(ledger, 1, 2, 3)
    assert [1, 2, 3] == read(client, consumer="oms-a")
    write(ledger, 4)

    assert [4] == read(client, consumer="oms-a")
    assert [] == read(client, consumer="oms-a")
    assert [1, 2, 3, 4] == read(client, consumer="oms-b")


def test_a_consumer_that_dies_over_an_event_is_told_it_again_and_misses_none(
    ledger: Engine, client: CancelClient
) -> None:
    write(ledger, 1, 2, 3)
    dying = client.events(consumer="oms-a", timeout=0.0)
    assert [1, 2] == [number_of(next(dying)), number_of(next(dying))]
    dying.close()  # type: ignore[attr-defined] # as an exception of the consumer's does

    assert [2, 3] == read(client, consumer="oms-a")


KILLED = """
import sys
from worker import CancelClient
for told in CancelClient("redis://localhost", sys.argv[1]).events(consumer="oms-a"):
    print(told.event.connections, flush=True)
"""


def test_a_consumer_that_is_killed_is_told_some_again_and_misses_none(
    ledger: Engine, client: CancelClient, database_url: str
) -> None:
    write(ledger, *range(1, 51))
    with subprocess.Popen([sys.executable, "-c", KILLED, database_url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        process.wait(SOON)
        seen += [int(line) for line in process.stdout.read().splitlines()]
    again = read(client, consumer="oms-a")

    assert seen == list(range(1, len(seen) + 1))
    assert again == list(range(51 - len(again), 51))
    assert 51 - len(again) <= len(seen) + 1


@pytest.mark.usefixtures("shop")
def test_types_and_connections_leave_out_the_others_for_which_a_consumer_does_not_come_back(
    ledger: Engine, client: CancelClient
) -> None:
    write(ledger, 1)
    with ledger.begin() as db:
        holds.hold(db, ["shop-1"], "operator")
        add_events(db, [(None, "connection.held", {"connection_id": "shop-2", "reason": "outage"})])
    held = {"types": ["connection.held"], "timeout": 0.0}

    assert ["shop-1", "shop-2"] == [each.event.connection_id for each in client.events(**held)]  # type: ignore[arg-type, union-attr]
    assert ["shop-2"] == [each.event.connection_id for each in client.events(**held, connections=["shop-2"])]  # type: ignore[arg-type, union-attr]
    assert [] == read(client, connections=["shop-3"], consumer="oms-a")
    assert [] == read(client, consumer="oms-a")


def test_now_begins_with_what_comes_and_since_with_what_was_written_then(ledger: Engine, client: CancelClient) -> None:
    write(ledger, 1)
    with ledger.begin() as db:
        db.execute(update(events).values(created_at=datetime.now(UTC) - timedelta(hours=2)))
    write(ledger, 2)
    coming = client.events(after="now", timeout=SOON)
    write(ledger, 3)

    assert 3 == number_of(next(coming))
    assert [2, 3] == read(client, since=datetime.now(UTC) - timedelta(hours=1))
    assert [1, 2, 3] == read(client, since=datetime.now(UTC) - timedelta(hours=3))


def test_who_waits_is_told_what_comes(ledger: Engine, client: CancelClient) -> None:
    came = SimpleQueue[int]()
    reader = threading.Thread(target=lambda: [came.put(number_of(each)) for each in client.events(timeout=2.0)])
    reader.start()
    write(ledger, 1)
    assert 1 == came.get(timeout=SOON)
    write(ledger, 2)
    assert 2 == came.get(timeout=SOON)
    reader.join(SOON)

    assert not reader.is_alive()  # nothing came for two seconds


@pytest.mark.parametrize("cursor", ["4", "", "-1", "1.0", "\u0661", "999999999999999999999", "newest", "now "])
def test_a_cursor_that_is_none_or_lies_beyond_the_end_is_refused_at_once(
    ledger: Engine, client: CancelClient, cursor: str
) -> None:
    write(ledger, 1, 2, 3)
    read(client)

    with pytest.raises(CursorError):
        client.events(after=cursor)
    assert [3] == read(client, after="2")


@pytest.mark.parametrize("name", ["", " ", "a\x00b", "x" * 256])
def test_a_consumer_without_a_usable_name_is_refused_at_once(ledger: Engine, client: CancelClient, name: str) -> None:
    write(ledger, 1)
    assert [1] == read(client)

    with pytest.raises(CursorError, match="The name of the consumer"):
        client.events(consumer=name)
    with ledger.connect() as db:
        assert [("", 1)] == [(row.consumer, row.place) for row in db.execute(select(cursors))]


def test_a_database_that_is_away_from_the_start_is_said_at_once() -> None:
    nobody = "postgresql://nobody@127.0.0.1:1/none"
    with closing(CancelClient("redis://localhost", nobody)) as client, pytest.raises(LedgerUnavailableError):
        client.events()


# ---- what is away meanwhile


@contextmanager
def own_server() -> Iterator[PostgresServer]:
    with open_folder("cancel-worker-feed-pg-") as folder:
        server = PostgresServer.create(folder / "data")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_reader_outlives_a_database_that_is_stopped_and_started_again(how: signal.Signals) -> None:
    with own_server() as server, closing(CancelClient("redis://localhost", server.url)) as client:
        ledger = open_ledger(server.url)
        migrations.migrate(ledger)
        came = SimpleQueue[int]()

        def follow() -> None:
            for each in islice(client.events(consumer="oms-a"), 4):
                came.put(number_of(each))

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        write(ledger, 1, 2)
        assert [1, 2] == [came.get(timeout=SOON) for _ in range(2)]

        server.stop(how)
        server.start()
        ledger.dispose()
        write(ledger, 3)

        assert 3 == came.get(timeout=SOON)
        assert reader.is_alive()
        write(ledger, 4)
        assert 4 == came.get(timeout=SOON)
        reader.join(SOON)
        ledger.dispose()


def test_a_redis_that_is_emptied_takes_nothing_from_the_feed(
    ledger: Engine, client: CancelClient, redis: Redis
) -> None:
    write(ledger, 1, 2)
    relay = Relay(redis, ledger)
    relay.wake()
    relay.loop.start()
    assert relay.loop.stop(SOON)
    assert 2 == redis.xlen("cancellations:events")
    redis.flushall()

    assert [1, 2] == read(client)


# ---- the commands


@pytest.fixture
def environment(database_url: str, redis_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "PATH": ""}


def test_the_command_lists_what_was_told_since_a_time_as_json_lines(
    ledger: Engine, environment: dict[str, str]
) -> None:
    write(ledger, 1)
    with ledger.begin() as db:
        db.execute(update(events).values(created_at=datetime.now(UTC) - timedelta(hours=2)))
    write(ledger, 2, 3, 4)
    words = [PROGRAM, "events", "list", "--since", "1h", "--json"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]

    assert [(2, "2"), (3, "3"), (4, "4")] == [(each["connections"], each["cursor"]) for each in told]
    assert {HELD} == {each["type"] for each in told}
    done = subprocess.run([*words, "--limit", "2"], env=environment, capture_output=True, text=True, check=True)
    assert (2, True) == (len(done.stdout.splitlines()), done.stderr.startswith("There are more, from "))
    refused = subprocess.run([*words, "--type", "odd"], env=environment, capture_output=True, text=True, check=False)
    assert 2 == refused.returncode
    assert "is no type of an event" in refused.stderr


def test_the_command_shows_events_as_they_come_until_it_is_stopped(
    ledger: Engine, environment: dict[str, str]
) -> None:
    write(ledger, 1)
    words = [PROGRAM, "events", "tail", "--json"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout
        lines, first = SimpleQueue[str](), ""
        threading.Thread(target=lambda: [lines.put(each) for each in tail.stdout or ()], daemon=True).start()
        for number in range(2, 1000):
            write(ledger, number)  # from when on it follows, nobody says
            with suppress(Empty):
                first = lines.get(timeout=0.1)
                break
        tail.terminate()  # Ctrl-C is ignored by what a shell has started in the background, tests too

    assert json.loads(first)["connections"] > 1  # which was there before
