"""Entries, ids and answers of Redis that nobody planned for: each ends as a row or a dead letter, or is named."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.messages import JOB, envelope
from redis import Redis
from sqlalchemy import func, select, update

from worker import AlreadyEndedError, CancelClient, InboxUnavailableError
from worker.cancellation.request import CancelRequest
from worker.dev.embedded import embedded_redis
from worker.inputs.entries import KEPT_BYTES, MAX_BATCH_BYTES, MAX_ENTRY_BYTES
from worker.ledger import dead_letters as letters
from worker.ledger import filters, sessions
from worker.ledger.database import open_ledger
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.dialects import db_now
from worker.ledger.schema import cancellations, dead_letters, events, metadata
from worker.runtime import inbox_reader
from worker.runtime.celery_inbox import ARRIVED, UNACKED, UNACKED_INDEX, CeleryInbox
from worker.runtime.inbox_reader import BATCH, InboxReader
from worker.runtime.intake import Intake
from worker.runtime.relay import Relay
from worker.streams import CELERY_LIST, DEAD_LETTERS, EVENTS, GROUP, INBOX, INBOX_AHEAD, put_jobs, wait_unread
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Logged, Postgres
    from sqlalchemy import Engine

HUGE = 30 * 2**20
LAST_ID = "18446744073709551615-18446744073709551615"


def raw(order_id: str, **fields: Any) -> bytes:
    return json.dumps({"connection_id": "shop-1", "order_id": order_id, **fields}).encode()


@pytest.fixture
def inbox(redis: Redis) -> Any:
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    return redis


@pytest.fixture
def vitals() -> Vitals:
    return Vitals()


@pytest.fixture
def intake(inbox: Any, ledger: Engine, vitals: Vitals) -> Intake:
    return Intake(inbox, ledger, "w-1", lambda _: None, vitals)


def orders(ledger: Engine) -> set[str]:
    with ledger.connect() as db:
        return set(db.execute(select(cancellations.c.order_id)).scalars())


def kept(ledger: Engine) -> list[tuple[str, str, int]]:
    """Return source, reason and size of all dead letters."""
    with ledger.connect() as db:
        rows = db.execute(select(dead_letters).order_by(dead_letters.c.id)).all()
    return [(row.source, row.reason, len(row.raw)) for row in rows]


def told(ledger: Engine) -> list[dict[str, Any]]:
    with ledger.connect() as db:
        rows = db.execute(select(events.c.type, events.c.payload).order_by(events.c.id)).all()
    return [{"type": row.type, **json.loads(row.payload)} for row in rows]


def settled(redis: Any) -> bool:
    return (0, 0) == (redis.xlen(INBOX), redis.xpending(INBOX, GROUP)["pending"]) and not redis.exists(INBOX_AHEAD)


# ---- A9: size


@contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("taken", ["at once", "after a wait"])
@pytest.mark.parametrize("field", ["job", "celery", "celery_unacked", "strange"])
def test_an_entry_of_any_length_never_gets_into_the_process_and_is_kept_with_its_beginning(
    inbox: Any, ledger: Engine, intake: Intake, field: str, taken: str
) -> None:
    if taken == "after a wait":
        assert 0 == intake.take()  # from now on it waits
    inbox.xadd(INBOX, {field: b"[" * HUGE})
    put_jobs(inbox, [raw("good")])

    with little_memory(8):
        while intake.take():
            pass
    ((_, reason, size),) = kept(ledger)
    assert ("too_large", KEPT_BYTES) == (reason, size)
    with ledger.connect() as db:
        assert str(HUGE + len(field)) in db.execute(select(dead_letters.c.error)).scalar_one()
    assert {"good"} == orders(ledger)
    assert settled(inbox)


def test_an_entry_of_very_many_small_fields_counts_by_all_of_them(inbox: Any, ledger: Engine, intake: Intake) -> None:
    inbox.xadd(INBOX, {f"f{number}": "x" for number in range(100_000)})
    put_jobs(inbox, [raw("good")])

    with little_memory(8):
        intake.take()
    assert [(INBOX, "too_large", KEPT_BYTES)] == kept(ledger)
    assert {"good"} == orders(ledger)


def test_a_batch_is_bounded_by_bytes_as_well(inbox: Any) -> None:
    put_jobs(inbox, [b"[" * (MAX_ENTRY_BYTES - 10)] * 60)
    reader, sizes = InboxReader(inbox, "w-1"), []
    while batch := reader.take():
        sizes.append(sum(len(entry.raw) for entry in batch))
        reader.settle(batch)

    assert 60 * (MAX_ENTRY_BYTES - 10) == sum(sizes)
    assert max(sizes) <= MAX_BATCH_BYTES + 8 * MAX_ENTRY_BYTES


def test_what_the_wait_delivers_is_not_sent_to_who_waits(inbox: Any) -> None:
    put_jobs(inbox, [b"[" * HUGE])

    with little_memory(1):
        wait_unread(inbox, "XREADGROUP", "GROUP", GROUP, "w-1", "COUNT", 1, "BLOCK", 100, "STREAMS", INBOX, ">")
    assert 1 == inbox.xpending(INBOX, GROUP)["pending"]
    assert inbox.ping()  # the next command gets its own reply


def unacked(redis: Any, message: bytes, list_name: str = CELERY_LIST) -> None:
    redis.hset(UNACKED, "tag", b'[{"body": "' + message + b'"}, "", "' + list_name.encode() + b'"]')
    redis.zadd(UNACKED_INDEX, {"tag": 0})


PUTS: dict[str, Callable[[Any, bytes], Any]] = {
    "on the list": lambda redis, message: redis.lpush(CELERY_LIST, message),
    "on a list of priority": lambda redis, message: redis.lpush(f"{CELERY_LIST}\x06\x169", message),
    "arrived": lambda redis, message: redis.lpush(ARRIVED, message),
    "unacknowledged": unacked,
}


@pytest.mark.parametrize("place", PUTS)
def test_a_celery_message_of_any_length_never_gets_into_the_process(
    inbox: Any, ledger: Engine, intake: Intake, place: str
) -> None:
    PUTS[place](inbox, b"{}," * (HUGE // 3))
    inbox.lpush(CELERY_LIST, envelope())
    celery_inbox = CeleryInbox(inbox)

    with little_memory(8):
        while celery_inbox.move():
            pass
        intake.take()
    assert [(CELERY_LIST, "too_large", KEPT_BYTES)] == kept(ledger)
    assert {JOB["order_id"]} == orders(ledger)
    assert 0 == inbox.exists(CELERY_LIST, ARRIVED, UNACKED, UNACKED_INDEX)


def test_a_long_message_that_another_application_has_in_hand_is_left_to_it(redis: Any) -> None:
    unacked(redis, b"{}," * (HUGE // 3), "mails")

    assert 0 == CeleryInbox(redis).move()
    assert 1 == redis.hlen(UNACKED)


# ---- what kills its reader


def die_with_all(inbox: Any, times: int) -> None:
    """Let so many readers, one after the other, take all that nobody has settled, and die."""
    inbox.xreadgroup(GROUP, "dead-1", {INBOX: ">"}, count=BATCH)
    ids = [entry["message_id"] for entry in inbox.xpending_range(INBOX, GROUP, "-", "+", BATCH)]
    inbox.xclaim(INBOX, GROUP, f"dead-{times}", 0, ids, retrycount=times, idle=60_000, justid=True)


def test_what_has_killed_its_reader_three_times_is_set_aside(inbox: Any, ledger: Engine, intake: Intake) -> None:
    put_jobs(inbox, [b"x" * 10_000])
    die_with_all(inbox, 3)
    put_jobs(inbox, [raw("good")])

    assert 2 == intake.take()
    assert [(INBOX, "kills_its_reader", KEPT_BYTES)] == kept(ledger)
    assert {"good"} == orders(ledger)
    assert settled(inbox)


def test_who_was_in_one_batch_with_it_is_taken_alone_and_goes_on(inbox: Any, ledger: Engine, intake: Intake) -> None:
    put_jobs(inbox, [raw(f"o-{number}") for number in range(5)])
    die_with_all(inbox, 2)
    reader = InboxReader(inbox, "w-2")
    alone = reader.take(idle=1000)

    assert (1, 1) == (len(alone), len(reader.suspects))
    reader.settle(alone)
    assert 4 == intake.take()
    assert {"o-1", "o-2", "o-3", "o-4"} == orders(ledger)
    assert [] == kept(ledger)


def test_a_reader_that_could_not_store_them_has_killed_nobody(
    inbox: Any, ledger: Engine, intake: Intake, ledger_switch: Any
) -> None:
    put_jobs(inbox, [raw("o-1"), raw("o-2")])
    for _ in range(6):
        ledger_switch.away()
        with pytest.raises(Exception, match="away"):
            intake.take()
        ledger_switch.back()

    assert 2 == intake.take()
    assert {"o-1", "o-2"} == orders(ledger)
    assert [] == kept(ledger)


def test_a_clock_of_redis_that_was_set_back_keeps_no_entry_with_a_dead_reader(
    inbox: Any, ledger: Engine, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_jobs(inbox, [raw("o-1")])
    ((_, ((entry_id, _),)),) = inbox.xreadgroup(GROUP, "dead", {INBOX: ">"})
    monkeypatch.setattr(inbox_reader, "TAKE_OVER_AFTER_MS", 3_000)
    monkeypatch.setattr(inbox_reader, "TAKE_OVER_EVERY_SECONDS", 0.05)
    deadline = time.monotonic() + 20
    while True:
        # By such a clock it was delivered just now, whenever one asks.
        inbox.xclaim(INBOX, GROUP, "dead", 0, [entry_id], idle=0, justid=True)
        if intake.take():
            break
        assert time.monotonic() < deadline

    assert {"o-1"} == orders(ledger)
    assert settled(inbox)


# ---- A10: ids


AHEAD: dict[str, Callable[[Any], Any]] = {
    "the last id of all": lambda r: r.xadd(INBOX, {"job": "x"}, id=LAST_ID),
    "an id of next year": lambda r: r.xadd(INBOX, {"job": "x"}, id=f"{hours_ahead(9000)}-5"),
    "an hour, as after a clock was set back": lambda r: r.xadd(INBOX, {"job": "x"}, id=f"{hours_ahead(1)}-0"),
    "set without an entry": lambda r: r.execute_command("XSETID", INBOX, LAST_ID),
    "a group set to the end": lambda r: r.xgroup_setid(INBOX, GROUP, LAST_ID),
    "a group set past what is there": lambda r: r.xgroup_setid(INBOX, GROUP, "$"),
}


def hours_ahead(hours: float) -> int:
    return int((datetime.now(UTC) + timedelta(hours=hours)).timestamp() * 1000)


@pytest.mark.parametrize("name", AHEAD)
def test_an_inbox_whose_ids_or_group_are_ahead_is_repaired_and_nothing_of_it_is_lost(
    inbox: Any, ledger: Engine, intake: Intake, name: str, logged: Logged
) -> None:
    put_jobs(inbox, [raw("before")])
    AHEAD[name](inbox)
    while intake.take():
        pass
    put_jobs(inbox, [raw("after")])
    intake._repaired_at = -100.0
    while intake.take():
        pass

    assert {"before", "after"} == orders(ledger)
    (repaired,) = [event for event in told(ledger) if event["type"] == "stream.repaired"]
    assert (INBOX, "group_ahead" if "group" in name else "ids_ahead") == (repaired["stream"], repaired["problem"])
    assert "stream.repaired" in logged.events()
    intake._repaired_at = -100.0
    intake.take()
    assert settled(inbox)
    assert int(inbox.xadd(INBOX, {"job": "y"}).partition(b"-")[0]) < hours_ahead(0.1)


@pytest.mark.parametrize("stream", [EVENTS, DEAD_LETTERS])
def test_a_stream_of_events_whose_ids_are_ahead_takes_events_again_and_keeps_those_it_has(
    inbox: Any, ledger: Engine, intake: Intake, stream: str
) -> None:
    inbox.xadd(stream, {"event_id": 1})
    inbox.xgroup_create(stream, "oms", id="0")
    inbox.xadd(stream, {"event_id": 2}, id=f"{hours_ahead(2)}-0")
    inbox.xadd(stream, {"a stranger's": 3}, id=LAST_ID)
    inbox.xgroup_create(stream, "late", id=LAST_ID)
    intake.take()
    inbox.xadd(stream, {"event_id": 4})

    assert [b"1", b"2", b"4"] == [fields[b"event_id"] for _, fields in inbox.xrange(stream)]
    for reader, seen in {"oms": 3, "late": 2}.items():
        ((_, found),) = inbox.xreadgroup(reader, "r", {stream: ">"})
        assert seen == len(found) - (reader == "late" and len(found) > 2)
    assert [{"type": "stream.repaired", "stream": stream, "problem": "ids_ahead"}] == told(ledger)


# ---- A11, B7, B8: what Redis refuses


@contextmanager
def another_type(redis: Any) -> Iterator[None]:
    redis.delete(INBOX)
    redis.lpush(INBOX, "x")
    yield
    redis.delete(INBOX)


@contextmanager
def full(redis: Any) -> Iterator[None]:
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def unable_to_save(redis: Any) -> Iterator[None]:
    snapshot = Path(redis.config_get("dir")["dir"], redis.config_get("dbfilename")["dbfilename"])
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()  # in its place: the file cannot be written
    redis.config_set("save", "3600 1")
    save(redis, "err")
    yield
    snapshot.rmdir()
    redis.config_set("save", "")
    save(redis, "ok")


def save(redis: Any, status: str) -> None:
    redis.bgsave()
    deadline = time.monotonic() + 20
    while True:
        facts = redis.info("persistence")
        if (0, status) == (facts["rdb_bgsave_in_progress"], facts["rdb_last_bgsave_status"]):
            return
        assert time.monotonic() < deadline


@contextmanager
def a_replica(redis: Any) -> Iterator[None]:
    redis.replicaof("127.0.0.1", "1")
    yield
    redis.replicaof("NO", "ONE")


REFUSALS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "another type": (another_type, "WRONGTYPE", "cancellations:inbox holds a list, not a stream: rename or delete it"),
    "full": (full, "OOM", "maxmemory"),
    "unable to save": (unable_to_save, "MISCONF", "cannot save"),
    "a replica": (a_replica, "READONLY", "primary"),
}


@pytest.mark.parametrize("name", ["another type", "unable to save", "a replica"])
def test_what_redis_refuses_is_named_until_it_is_over_and_nothing_is_lost(
    inbox: Any, ledger: Engine, intake: Intake, vitals: Vitals, logged: Logged, name: str
) -> None:
    refuses, word, remedy = REFUSALS[name]
    with refuses(inbox):
        intake.loop.start()
        line = logged.wait_for("redis.refuses")
        assert ("The inbox", word) == (line["part"], line["error"])
        assert remedy in line["remedy"]
        assert word == logged.wait_for("intake.unavailable")["error"]
        assert [f"The inbox: {line['remedy']}."] == vitals.problems()
    logged.wait_for("intake.recovered", 20)
    put_jobs(inbox, [raw("o-1")])
    logged.wait_for("cancellation.requested")
    intake.stop()

    assert [] == vitals.problems()
    assert {"o-1"} == orders(ledger)


def test_a_producer_and_a_celery_list_hear_that_redis_is_full_and_nothing_is_lost(
    inbox: Any, redis_url: str, ledger: Engine, intake: Intake, vitals: Vitals, logged: Logged
) -> None:
    inbox.lpush(CELERY_LIST, envelope())
    celery_inbox, client = CeleryInbox(inbox, vitals), CancelClient(redis_url)
    with full(inbox):
        celery_inbox.loop.start()
        line = logged.wait_for("redis.refuses")
        assert ("The Celery list", "OOM") == (line["part"], line["error"])
        with pytest.raises(InboxUnavailableError, match=r"maxmemory.*enqueue again"):
            client.enqueue("shop-1", "o-1")
    logged.wait_for("celery_inbox.recovered", 20)
    celery_inbox.stop()
    intake.take()
    client.close()

    assert {JOB["order_id"]} == orders(ledger)
    assert [] == vitals.problems()


def test_a_user_without_the_right_to_run_a_script_is_told_which_right(
    inbox: Any, redis_url: str, ledger: Engine, vitals: Vitals, logged: Logged
) -> None:
    inbox.execute_command(
        "ACL", "SETUSER", "w", "on", ">p", "~*", "&*", "+@all", "-@dangerous", "-@admin", "-@scripting"
    )
    put_jobs(inbox, [raw("o-1")])
    with Redis.from_url(redis_url, username="w", password="p") as limited:
        intake = Intake(limited, ledger, "w-1", lambda _: None, vitals)
        intake.loop.start()
        line = logged.wait_for("redis.refuses")
        inbox.execute_command("ACL", "SETUSER", "w", "+@scripting")
        logged.wait_for("cancellation.requested", 20)
        intake.stop()
    inbox.execute_command("ACL", "DELUSER", "w")

    assert "NOPERM" == line["error"]
    assert "lacks the right to run EVALSHA" in line["remedy"]


def test_a_relay_whose_stream_is_of_another_type_says_so_and_publishes_afterwards(
    redis: Any, ledger: Engine, vitals: Vitals, logged: Logged
) -> None:
    redis.set(EVENTS, "x")
    relay = Relay(redis, ledger, vitals)
    with ledger.begin() as db:
        queries_letter = DeadLetter(source=INBOX, entry_id="1-0", raw=b"{", reason="not_json", error="No.")
        insert_dead_letters(db, [queries_letter])
        db.execute(update(events).values(type="stream.repaired"))  # an event of that stream
    relay.wake()
    relay.loop.start()
    line = logged.wait_for("redis.refuses")
    assert f"{EVENTS} holds a string, not a stream" in line["remedy"]
    redis.delete(EVENTS)
    logged.wait_for("relay.recovered", 20)
    with ledger.begin() as db:
        db.execute(update(events).values(publish_at=db_now()))  # the lease of the failed try has ended
    relay.wake()
    redis.xread({EVENTS: "0"}, block=10_000)
    relay.loop.stop(5)

    assert 1 == redis.xlen(EVENTS)
    assert [] == vitals.problems()


def test_a_replica_that_is_behind_is_waited_for_or_the_producer_is_told() -> None:
    with ExitStack() as stack:
        one, two = stack.enter_context(embedded_redis()), stack.enter_context(embedded_redis())
        primary, replica = (stack.enter_context(Redis.from_url(server.url)) for server in (one, two))
        replica.replicaof("127.0.0.1", str(one.port))
        wait_until_online(primary)
        client = CancelClient(one.url)
        client.enqueue("shop-1", "o-1")
        assert 1 == replica.xlen(INBOX)
        assert two.process is not None
        two.process.send_signal(19)  # SIGSTOP: it is still connected, and confirms nothing
        try:
            with pytest.raises(InboxUnavailableError, match=r"0 of 1 replicas.*enqueue again"):
                client.enqueue("shop-1", "o-2")
        finally:
            two.process.send_signal(18)
        client.enqueue("shop-1", "o-2")
        assert 3 == replica.xlen(INBOX)
        client.close()


def wait_until_online(primary: Any) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=20)
    while not primary.execute_command("ROLE")[2]:
        assert datetime.now(UTC) < deadline
    assert 1 == primary.wait(1, 10_000)


# ---- A12, A13, A14


@pytest.mark.parametrize(
    "stated",
    ["0001-01-02T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", None, "2031-01-01T00:00:00+14:00"],
)
def test_a_stated_time_is_never_after_now_nor_more_than_an_hour_ago(
    inbox: Any, ledger: Engine, intake: Intake, stated: str | None
) -> None:
    put_jobs(inbox, [raw("o-1", **({"requested_at": stated} if stated else {}))])
    intake.take()
    with ledger.connect() as db:
        (found,) = filters.find(db)

    assert timedelta(0) <= found.received_at - found.requested_at <= timedelta(hours=1, seconds=1)


def test_a_time_of_the_last_hour_is_believed(inbox: Any, ledger: Engine, intake: Intake) -> None:
    stated = datetime.now(UTC) - timedelta(minutes=30)
    put_jobs(inbox, [raw("o-1", requested_at=stated.isoformat())])
    intake.take()
    with ledger.connect() as db:
        (found,) = filters.find(db)

    assert stated == found.requested_at


def end(ledger: Engine, status: str = "expired", verdict: str = "not_cancelled") -> None:
    values = {"status": status, "verdict": verdict, "ended_at": datetime.now(UTC), "outcome_reason": "send_by_passed"}
    with ledger.begin() as db:
        db.execute(update(cancellations).values(**values))


def test_an_intent_that_is_stated_again_after_its_end_is_told_as_it_stands(
    inbox: Any, ledger: Engine, intake: Intake
) -> None:
    put_jobs(inbox, [raw("o-1")] * 2)
    intake.take()
    assert [] == told(ledger)  # while it lives, a repetition is no news
    end(ledger)
    for _ in range(3):
        put_jobs(inbox, [raw("o-1")])
        intake.take()

    (event,) = told(ledger)
    assert "cancellation.already_ended" == event["type"]
    assert ("o-1", "expired", "not_cancelled", "no") == tuple(
        event[name] for name in ("order_id", "status", "verdict", "safe_to_refund")
    )
    assert {"o-1"} == orders(ledger)


def test_a_producer_hears_that_its_intent_has_ended_and_the_others_are_enqueued(
    inbox: Any, redis_url: str, database_url: str, ledger: Engine, intake: Intake
) -> None:
    client = CancelClient(redis_url, database_url)
    ended = client.enqueue("shop-1", "o-1")
    assert ended == client.enqueue("shop-1", "o-1")  # it lives
    intake.take()
    end(ledger)

    with pytest.raises(AlreadyEndedError, match=r"'o-1'.*expired.*replay") as one:
        client.enqueue("shop-1", "o-1")
    assert [("expired", "o-1")] == [(found.status, found.order_id) for found in one.value.cancellations]
    assert 0 == inbox.xlen(INBOX)
    with pytest.raises(AlreadyEndedError) as many:
        client.enqueue_many({"connection_id": "shop-1", "order_id": f"o-{number}"} for number in range(3))
    assert (3, [ended]) == (len(many.value.ids), [found.id for found in many.value.cancellations])
    assert 2 == inbox.xlen(INBOX)
    with ledger.begin() as db, pytest.raises(AlreadyEndedError):
        client.enqueue("shop-1", "o-1", session=db)
    assert client.enqueue("shop-1", "o-1", idempotency_key="again") != ended
    client.close()


# ---- A17, A18


NAME = "Ada-Lovelace-4711"


@pytest.mark.parametrize(
    "fields",
    [
        {"job": raw("o-1", **{NAME: 1})},
        {"job": raw("o-1", priority=NAME)},
        {"job": f'"{NAME}"'},
        {NAME: NAME},
        {"unreadable": NAME, "reason": NAME, "error": NAME},
        {"celery": f'{{"task": "{NAME}"}}'},
        {"celery": NAME},
        {"celery_unacked": f'["{NAME}"]'},
        {"job": raw(NAME * 20)},
    ],
    ids=str,
)
def test_neither_log_nor_event_repeats_a_word_of_a_stranger(
    inbox: Any, ledger: Engine, intake: Intake, logged: Logged, fields: dict[str, Any]
) -> None:
    inbox.xadd(INBOX, fields)
    intake.take()

    lines = [logged.get() for _ in range(logged.qsize())]
    assert ["dead_letter.kept"] == [line["event"] for line in lines]
    assert NAME not in str(lines) + str(told(ledger))


def test_a_flood_of_bad_entries_is_bounded_everywhere_and_told_as_a_count(
    inbox: Any, ledger: Engine, intake: Intake, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters, "MAX_UNREADABLE_PER_HOUR", 700)
    monkeypatch.setattr(letters, "MAX_PER_HOUR", 800)
    put_jobs(inbox, [b"{" * 5000] * 2000)
    inbox.xadd(INBOX, {"job": raw("o-1", idempotency_key="k")})
    inbox.xadd(INBOX, {"job": raw("o-2", idempotency_key="k")})
    while intake.take():
        pass

    found = kept(ledger)
    assert (700, 1) == (len([1 for _, reason, _ in found if reason != "key_conflict"]), len(orders(ledger)))
    assert (INBOX, "key_conflict") == found[-1][:2]
    assert {5000, KEPT_BYTES} == {size for _, reason, size in found if reason != "key_conflict"}
    counted = [event for event in told(ledger) if event.get("reason") != "key_conflict"]
    assert (2000, 700) == (sum(event["count"] for event in counted), sum(event["kept"] for event in counted))
    assert len(told(ledger)) <= 20
    assert len(logged.events()) <= 20
    relay = Relay(inbox, ledger)
    relay.wake()
    relay.loop.start()
    relay.loop.stop(10)
    assert (0, len(told(ledger))) == (inbox.xlen(EVENTS), inbox.xlen(DEAD_LETTERS))


# ---- B6: a ledger that cannot hold each character


def test_a_row_that_the_encoding_of_the_ledger_cannot_hold_holds_up_nobody(
    inbox: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_unsuitable", lambda *_: "")  # such a ledger is refused at the start of a session
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    ledger = open_ledger(postgres._url.set(database="latin").render_as_string(hide_password=False), plan_once=True)
    metadata.create_all(ledger)
    put_jobs(inbox, [raw("before"), raw("中文"), raw("o-1", priority="中文"), raw("after"), raw("Ä")])
    try:
        assert 5 == Intake(inbox, ledger, "w-1", lambda _: None, Vitals()).take()
        assert {"before", "after", "Ä"} == orders(ledger)
        assert {"refused_by_ledger", "invalid_job"} == {reason for _, reason, _ in kept(ledger)}
        with ledger.connect() as db:
            assert 2 == db.execute(select(func.count()).select_from(dead_letters)).scalar_one()
    finally:
        ledger.dispose()
        postgres.execute("DROP DATABASE latin WITH (FORCE)")
    assert settled(inbox)


def test_the_record_of_a_job_without_a_key_stays_what_it_was() -> None:
    request = CancelRequest(connection_id="shop-1", order_id="A-1001")

    assert "ae2eb129-eda5-5aaf-b4a0-1fb965d9c339" == request.record_id
