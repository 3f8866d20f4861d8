"""Producers with a name: each has a stream of its own, what it may is judged there, and a flood stays its author's."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis, ResponseError
from sqlalchemy import select

from worker import CancelClient
from worker.errors import InboxUnavailableError
from worker.ledger import filters, producers, queries
from worker.ledger.database import read_only
from worker.ledger.schema import dead_letters as kept_letters
from worker.runtime import inbox_reader
from worker.runtime.inbox_reader import BATCH, Inbox, InboxReader
from worker.runtime.intake import Intake
from worker.streams import GROUP, INBOX, aside_of, inbox_of, put_jobs
from worker.telemetry.health import Vitals
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from conftest import Logged
    from sqlalchemy import Engine

OMS, SHOP = inbox_of("oms-a"), inbox_of("oms-b")
LAST_ID = "18446744073709551615-18446744073709551615"


def job(order_id: str, connection_id: str = "shop-1", **fields: Any) -> bytes:
    return json.dumps({"connection_id": connection_id, "order_id": order_id, **fields}).encode()


def jobs(prefix: str, count: int) -> list[bytes]:
    return [job(f"{prefix}-{number}") for number in range(count)]


def add(ledger: Engine, name: str = "oms-a", **rights: Any) -> None:
    with ledger.begin() as db:
        producers.add(db, name, by="Bea", **rights)


def orders(ledger: Engine) -> dict[str, str | None]:
    """Return whose each accepted order is."""
    with ledger.connect() as db:
        return {row.order_id: row.producer for row in filters.find(db, limit=10_000)}


def refused(ledger: Engine) -> list[tuple[str, str]]:
    with ledger.connect() as db:
        found = db.execute(select(kept_letters).order_by(kept_letters.c.id))
        return [(row.source, row.reason) for row in found]


def intake_of(redis: Redis, ledger: Engine, name: str = "w-1", metrics: Metrics | None = None) -> Intake:
    return Intake(redis, ledger, name, lambda _: None, Vitals(), metrics)


def empty(intake: Intake) -> None:
    """Let all inboxes be looked up, and read until nothing comes."""
    intake._repaired_at = -100.0
    while intake.take():
        pass


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intake with nothing to do says so at once."""
    monkeypatch.setattr(inbox_reader, "BLOCK_MS", 50)


@pytest.fixture
def intake(redis: Redis, ledger: Engine) -> Intake:
    intake = intake_of(redis, ledger)
    intake._reader.make_groups()
    return intake


def left(redis: Any, stream: str) -> tuple[int, int]:
    """Return entries on a stream, and those that a reader has taken and not settled."""
    return redis.xlen(stream), redis.xpending(stream, GROUP)["pending"]


def test_the_stream_says_whose_a_cancellation_is_and_the_record_keeps_it(
    redis: Redis, ledger: Engine, intake: Intake
) -> None:
    add(ledger)
    put_jobs(redis, [job("of-a")], inbox=OMS)
    put_jobs(redis, [job("of-nobody")])
    empty(intake)

    assert {"of-a": "oms-a", "of-nobody": None} == orders(ledger)
    with read_only(ledger) as db:
        found = queries.get(db, next(row.id for row in filters.find(db) if row.order_id == "of-a"))
    assert found is not None
    assert "oms-a" == found.producer
    assert ((0, 0), (0, 0)) == (left(redis, OMS), left(redis, INBOX))


def test_nothing_inside_a_job_names_another_producer(redis: Redis, ledger: Engine, intake: Intake) -> None:
    add(ledger)
    put_jobs(redis, [job("o-1", producer="oms-b")], inbox=OMS)
    redis.xadd(OMS, {"celery": b"{}", "producer": "oms-b"})
    empty(intake)

    assert {} == orders(ledger)
    assert [OMS, OMS] == [source for source, _ in refused(ledger)]
    assert "invalid_job" in {reason for _, reason in refused(ledger)}


REFUSED = {
    "another's connection": (job("o-1", "shop-2"), "connection_not_allowed"),
    "urgent": (job("o-1", priority="urgent"), "urgent_not_allowed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_producer_may_not_is_a_dead_letter_with_its_reason_and_the_next_goes_on(
    redis: Redis, ledger: Engine, name: str
) -> None:
    bad, reason = REFUSED[name]
    metrics = Metrics()
    add(ledger, connections=["shop-1"])
    put_jobs(redis, [bad, job("good")], inbox=OMS)
    empty(intake_of(redis, ledger, metrics=metrics))

    assert {"good": "oms-a"} == orders(ledger)
    assert [(OMS, reason)] == refused(ledger)
    assert f'cancel_worker_dead_letters_total{{reason="{reason}"}} 1.0' in metrics.render().decode()
    assert (0, 0) == left(redis, OMS)


def test_with_the_right_to_it_a_producer_may(redis: Redis, ledger: Engine, intake: Intake) -> None:
    add(ledger, urgent=True)
    put_jobs(redis, [job("o-1", "shop-2", priority="urgent")], inbox=OMS)
    empty(intake)

    assert {"o-1": "oms-a"} == orders(ledger)
    assert [] == refused(ledger)


def test_an_inbox_of_nobody_is_emptied_into_dead_letters_and_goes(
    redis: Redis, ledger: Engine, intake: Intake
) -> None:
    put_jobs(redis, [job("o-1"), job("o-2")], inbox=SHOP)
    redis.lpush(f"{INBOX}:wrong", "x")
    put_jobs(redis, [job("o-3")], inbox=f"{INBOX}:Not A Name")
    empty(intake)
    intake._repaired_at = -100.0
    intake.take()

    assert [(SHOP, "unknown_producer")] * 2 == refused(ledger)
    assert {} == orders(ledger)
    assert 0 == redis.exists(SHOP)
    assert 2 == redis.exists(f"{INBOX}:wrong", f"{INBOX}:Not A Name")


def test_what_a_person_changes_is_followed_by_who_runs_already(redis: Redis, ledger: Engine, intake: Intake) -> None:
    add(ledger, connections=["shop-1"])
    empty(intake)
    with ledger.begin() as db:
        producers.change(db, "oms-a", connections=["shop-2"], urgent=True)
    put_jobs(redis, [job("of-2", "shop-2", priority="urgent")], inbox=OMS)
    assert 1 == intake.take()  # a right that was given counts at once: nothing is refused by what was known before

    put_jobs(redis, [job("of-1", "shop-1")], inbox=OMS)
    empty(intake)
    with ledger.begin() as db:
        producers.remove(db, "oms-a")
    put_jobs(redis, [job("late", "shop-2")], inbox=OMS)
    empty(intake)

    assert {"of-2": "oms-a"} == orders(ledger)
    assert [(OMS, "connection_not_allowed"), (OMS, "unknown_producer")] == refused(ledger)


def test_a_producer_that_has_just_been_added_is_not_taken_for_a_stranger(
    redis: Redis, ledger: Engine, intake: Intake
) -> None:
    put_jobs(redis, [job("o-1")], inbox=OMS)
    intake._inboxes.refresh()  # the stream is seen, and its producer is not there
    intake._reader.watch(intake._inboxes.to_read(()))
    add(ledger)
    while intake.take():
        pass

    assert {"o-1": "oms-a"} == orders(ledger)
    assert [] == refused(ledger)


# ---- a flood stays its author's


def test_a_flood_takes_its_part_of_a_batch_and_the_others_are_read_beside_it(redis: Redis) -> None:
    streams = [INBOX, OMS, SHOP]
    for each in streams:
        redis.xgroup_create(each, GROUP, id="0", mkstream=True)
    put_jobs(redis, jobs("flood", 3 * BATCH), inbox=OMS)
    put_jobs(redis, jobs("b", 3), inbox=SHOP)
    put_jobs(redis, jobs("n", 400))
    reader = InboxReader(redis, "w-1")
    reader.watch([Inbox(each) for each in streams])

    found = reader.next()
    counts = {each: sum(entry.stream == each for entry in found) for each in streams}
    assert BATCH == len(found)
    assert 3 == counts[SHOP]
    assert min(counts[OMS], counts[INBOX]) >= BATCH // 3


def test_what_is_waited_for_on_any_inbox_comes_in_one_trip(redis: Redis) -> None:
    streams = [INBOX, OMS, SHOP]
    for each in streams:
        redis.xgroup_create(each, GROUP, id="0", mkstream=True)
    reader = InboxReader(redis, "w-1")
    reader.watch([Inbox(each) for each in streams])
    assert [] == reader.next()  # from now on it waits
    put_jobs(redis, [job("o-1")], inbox=SHOP)
    asked_before: Any = redis.info("commandstats")

    (entry,) = reader.next()
    asked: Any = redis.info("commandstats")
    calls = {
        name: asked[f"cmdstat_{name}"]["calls"] - asked_before.get(f"cmdstat_{name}", {"calls": 0})["calls"]
        for name in ("evalsha", "xpending")
    }
    assert (SHOP, {"evalsha": 1, "xpending": 3}) == (entry.stream, calls)


def test_a_rate_is_kept_by_all_workers_together_and_the_rest_waits_on_its_own_stream(
    redis: Redis, ledger: Engine
) -> None:
    rate, seconds = 20.0, 2.0
    add(ledger, per_second=rate)
    put_jobs(redis, jobs("flood", 500), inbox=OMS)
    workers = [intake_of(redis, ledger, f"w-{number}") for number in range(3)]
    began, looks = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        for each in workers:
            each.take()
            looks += 1
    passed = time.monotonic() - began

    taken = len(orders(ledger))
    assert rate * seconds * 0.5 <= taken <= rate * passed + rate + 1 + 2 * len(workers)
    assert 500 - taken == redis.xlen(OMS)
    assert [] == refused(ledger)
    assert looks < 400  # it waits, and does not ask all the time


def test_a_rate_delays_no_other_producer(redis: Redis, ledger: Engine, intake: Intake) -> None:
    add(ledger, per_second=1)
    add(ledger, "oms-b")
    put_jobs(redis, jobs("flood", 500), inbox=OMS)
    intake.take()
    taken = len(orders(ledger))
    put_jobs(redis, jobs("b", 100), inbox=SHOP)
    put_jobs(redis, jobs("n", 100))
    for _ in range(3):
        intake.take()

    found = list(orders(ledger).values())
    assert (100, 100) == (found.count("oms-b"), found.count(None))
    assert 1 <= taken <= found.count("oms-a") <= 8


ODD_RATES: dict[str, Any] = {
    "another type": lambda r, key: r.lpush(key, "x"),
    "no number": lambda r, key: r.set(key, "soon"),
    "far ahead": lambda r, key: r.set(key, str(10**18)),
    "nan": lambda r, key: r.set(key, "nan"),
}


@pytest.mark.parametrize("name", ODD_RATES)
def test_a_rate_that_nobody_wrote_by_this_clock_begins_anew(
    redis: Redis, ledger: Engine, intake: Intake, name: str
) -> None:
    add(ledger, per_second=100)
    ODD_RATES[name](redis, Inbox(OMS).pace_key)
    put_jobs(redis, jobs("o", 5), inbox=OMS)
    empty(intake)

    assert 5 == len(orders(ledger))
    assert 15 == len(redis.get(Inbox(OMS).pace_key) or b"") - 1


# ---- each inbox is as safe as the one without a name


def test_what_a_dead_reader_left_on_a_named_inbox_is_taken_over(redis: Any, ledger: Engine, intake: Intake) -> None:
    add(ledger, per_second=1)
    redis.xgroup_create(OMS, GROUP, id="0", mkstream=True)
    put_jobs(redis, jobs("o", 5), inbox=OMS)
    ((_, entries),) = redis.xreadgroup(GROUP, "dead", {OMS: ">"}, count=5)
    redis.xclaim(OMS, GROUP, "dead", 0, [entry_id for entry_id, _ in entries], idle=60_000)
    intake.take()

    assert 5 == len(orders(ledger))
    assert (0, 0) == left(redis, OMS)


def test_nothing_of_a_named_inbox_is_settled_while_the_ledger_cannot_store_it(
    redis: Redis, ledger: Engine, intake: Intake, ledger_switch: Any
) -> None:
    add(ledger)
    empty(intake)
    put_jobs(redis, [job("o-1"), job("o-2", priority="urgent")], inbox=OMS)
    put_jobs(redis, [job("o-3")])
    for _ in range(4):
        ledger_switch.away()
        with pytest.raises(Exception, match="away"):
            intake.take()
        ledger_switch.back()
    assert ((2, 2), (1, 1)) == (left(redis, OMS), left(redis, INBOX))
    empty(intake)

    assert {"o-1": "oms-a", "o-3": None} == orders(ledger)
    assert [(OMS, "urgent_not_allowed")] == refused(ledger)


def test_what_kills_its_reader_on_a_named_inbox_is_set_aside_and_its_neighbours_go_on(
    redis: Any, ledger: Engine, intake: Intake
) -> None:
    add(ledger)
    redis.xgroup_create(OMS, GROUP, id="0", mkstream=True)
    put_jobs(redis, jobs("o", 3), inbox=OMS)
    redis.xreadgroup(GROUP, "dead", {OMS: ">"}, count=5)
    ids = [entry["message_id"] for entry in redis.xpending_range(OMS, GROUP, "-", "+", 5)]
    redis.xclaim(OMS, GROUP, "dead", 0, ids[:1], retrycount=3, idle=60_000, justid=True)
    redis.xclaim(OMS, GROUP, "dead", 0, ids[1:], retrycount=2, idle=60_000, justid=True)
    put_jobs(redis, jobs("n", 600))
    empty(intake)

    assert [(OMS, "kills_its_reader")] == refused(ledger)
    assert {"o-1", "o-2"} == {order for order, name in orders(ledger).items() if name == "oms-a"}
    assert 600 == list(orders(ledger).values()).count(None)


def test_an_emptied_redis_takes_named_jobs_again(redis: Redis, ledger: Engine, intake: Intake) -> None:
    add(ledger)
    empty(intake)
    redis.flushall()
    put_jobs(redis, [job("o-1")], inbox=OMS)
    put_jobs(redis, [job("o-2")])
    intake.loop.start()
    deadline = time.monotonic() + 20
    while len(orders(ledger)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    intake.stop()

    assert {"o-1": "oms-a", "o-2": None} == orders(ledger)


@pytest.mark.parametrize("last", [LAST_ID, "an hour ahead"])
def test_a_named_inbox_whose_ids_are_ahead_is_read_to_its_end_and_takes_jobs_again(
    redis: Redis, ledger: Engine, intake: Intake, last: str
) -> None:
    add(ledger, per_second=100)
    put_jobs(redis, [job("before")], inbox=OMS)
    redis.xadd(OMS, {"job": job("ahead")}, id=last.replace("an hour ahead", f"{int(time.time() + 3600)}000-0"))
    empty(intake)
    put_jobs(redis, [job("after")], inbox=OMS)
    empty(intake)
    empty(intake)

    assert {"before": "oms-a", "ahead": "oms-a", "after": "oms-a"} == orders(ledger)
    assert 0 == redis.exists(aside_of(OMS))


def test_an_inbox_of_another_type_stops_no_other_and_is_named(redis: Redis, ledger: Engine) -> None:
    vitals = Vitals()
    intake = Intake(redis, ledger, "w-1", lambda _: None, vitals)
    add(ledger)
    redis.lpush(OMS, "x")
    put_jobs(redis, [job("o-1")])
    intake._reader.make_groups()
    while not orders(ledger):
        intake._tick()
    intake._tick()

    (problem, *_) = vitals.problems()
    assert f"{OMS} holds a list, not a stream: rename or delete it" in problem
    redis.delete(OMS)
    put_jobs(redis, [job("o-2")], inbox=OMS)
    deadline = time.monotonic() + 20
    while len(orders(ledger)) < 2 and time.monotonic() < deadline:
        intake._tick()
    assert ({"o-1": None, "o-2": "oms-a"}, []) == (orders(ledger), vitals.problems())


def test_what_redis_refuses_of_all_inboxes_is_an_outage_as_with_one_and_nothing_is_lost(
    redis: Any, ledger: Engine, intake: Intake, logged: Logged
) -> None:
    add(ledger)
    empty(intake)
    put_jobs(redis, [job("o-1")], inbox=OMS)
    redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(ResponseError):
            intake._tick()
    finally:
        redis.replicaof("NO", "ONE")
    assert "READONLY" == logged.wait_for("redis.refuses")["error"]
    empty(intake)

    assert {"o-1": "oms-a"} == orders(ledger)


# ---- who enqueues


def test_a_client_with_a_name_needs_the_right_to_its_inbox_and_has_no_other(
    redis: Any, redis_url: str, ledger: Engine, intake: Intake
) -> None:
    from worker.cli.producers import acl_line  # noqa: PLC0415 - the line that a person is shown

    add(ledger)
    _, user, _, _, *rights = acl_line("oms-a").split(" ")
    redis.execute_command("ACL", "SETUSER", user, "on", ">secret", *rights)
    try:
        url = redis_url.replace("redis://", f"redis://{user}:secret@")
        client = CancelClient(url, producer="oms-a")
        many = [{"connection_id": "shop-1", "order_id": "o-2"}]
        ids = [client.enqueue("shop-1", "o-1"), *client.enqueue_many(many)]
        for other in (None, "oms-b"):
            with pytest.raises(InboxUnavailableError):
                CancelClient(url, producer=other).enqueue("shop-1", "o-3")
        stranger: Any = Redis.from_url(url)
        for words in (("XADD", INBOX, "*", "job", "x"), ("XRANGE", OMS, "-", "+"), ("DEL", OMS), ("KEYS", "*")):
            with pytest.raises(ResponseError, match="permissions"):
                stranger.execute_command(*words)
        stranger.close()
    finally:
        redis.execute_command("ACL", "DELUSER", user)
    empty(intake)

    assert {"o-1": "oms-a", "o-2": "oms-a"} == orders(ledger)
    assert 2 == len(set(ids))


@pytest.mark.parametrize("name", ["", "a:b", "ahead", "wrong", "A", "a*", "-a", "a b", "a" * 41, "ä", "a\n"])
def test_a_name_that_no_producer_can_have_is_refused_everywhere(ledger: Engine, name: str) -> None:
    with pytest.raises(ValueError, match="producer"):
        CancelClient("redis://nowhere", producer=name)
    with pytest.raises(ValueError, match="name"):
        add(ledger, name)


def test_there_are_at_most_a_hundred(ledger: Engine) -> None:
    for number in range(100):
        add(ledger, f"p{number}")
    with pytest.raises(ValueError, match="100 producers"):
        add(ledger, "one-more")
    with pytest.raises(ValueError, match="there already"):
        add(ledger, "p1")


@pytest.mark.parametrize("rate", [0.01, -1, float("nan"), 1e9])
def test_a_rate_that_cannot_be_kept_is_refused(ledger: Engine, rate: float) -> None:
    with pytest.raises(ValueError, match="per-second"):
        add(ledger, per_second=rate)
