"""The Celery list as a second inbox: what a producer puts there is on the list or in the stream, and never nowhere."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from harness.messages import JOB, envelope
from kombu import Queue
from redis import ResponseError

from worker.cancellation.request import CancelRequest
from worker.ledger import filters
from worker.runtime.celery_inbox import ARRIVED, BATCH, UNACKED, UNACKED_INDEX, UNACKED_SECONDS, CeleryInbox
from worker.runtime.intake import Intake
from worker.streams import CELERY_LIST, GROUP, INBOX
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis
    from sqlalchemy import Engine

RECORD_ID = CancelRequest(**JOB).record_id


@pytest.fixture
def celery_inbox(redis: Redis) -> CeleryInbox:
    return CeleryInbox(redis)


@pytest.fixture
def producer(redis_url: str) -> Iterator[Celery]:
    with Celery("oms", broker=redis_url, set_as_current=False) as app:
        yield app


def taken_in(redis: Redis, ledger: Engine) -> list[str]:
    """Bring what is on the inbox into the ledger; return the ids of all that is there."""
    redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
    Intake(redis, ledger, "w-1", lambda _: None, Vitals()).take()
    with ledger.connect() as db:
        return [row.id for row in filters.find(db)]


@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_a_job_of_a_celery_producer_becomes_a_row_whatever_its_priority(
    redis: Redis, ledger: Engine, celery_inbox: CeleryInbox, producer: Celery, priority: int
) -> None:
    producer.send_task("worker.cancel_order", kwargs=JOB, queue=CELERY_LIST, priority=priority)

    assert 1 == celery_inbox.move()
    assert [RECORD_ID] == taken_in(redis, ledger)
    assert [] == redis.keys(f"{CELERY_LIST}\x06*") + redis.keys(CELERY_LIST)


def test_what_a_killed_celery_worker_had_taken_and_not_acknowledged_becomes_a_row(
    redis: Any, ledger: Engine, celery_inbox: CeleryInbox, producer: Celery
) -> None:
    producer.send_task("worker.cancel_order", kwargs=JOB, queue=CELERY_LIST)
    with producer.connection_for_read() as connection:
        taken: list[Any] = []
        with producer.amqp.Consumer(connection, [Queue(CELERY_LIST)], on_message=taken.append):
            connection.drain_events(timeout=5)
        (tag,) = redis.hkeys(UNACKED)  # as a worker leaves it that is killed now
        too_young = celery_inbox.move()
        redis.zincrby(UNACKED_INDEX, -UNACKED_SECONDS - 1, tag)

        assert [0, 1] == [too_young, celery_inbox.move()]
        assert 0 == redis.exists(UNACKED, UNACKED_INDEX)
        assert [RECORD_ID] == taken_in(redis, ledger)


def test_what_another_application_has_not_acknowledged_is_left_to_it(redis: Any, celery_inbox: CeleryInbox) -> None:
    for tag, kept in {"theirs": json.dumps([{}, "", "mails"]), "rubbish": "{", "none": None}.items():
        if kept is not None:
            redis.hset(UNACKED, tag, kept)
        redis.zadd(UNACKED_INDEX, {tag: 0})

    assert 0 == celery_inbox.move()
    assert (2, 3) == (redis.hlen(UNACKED), redis.zcard(UNACKED_INDEX))


def test_a_redis_that_is_full_keeps_the_message_where_it_is(
    redis: Any, ledger: Engine, celery_inbox: CeleryInbox
) -> None:
    redis.lpush(CELERY_LIST, envelope())
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            celery_inbox.move()
        assert (1, 0) == (redis.llen(CELERY_LIST), redis.exists(INBOX))
    finally:
        redis.config_set("maxmemory", 0)

    assert 1 == celery_inbox.move()
    assert [RECORD_ID] == taken_in(redis, ledger)


def test_a_message_that_had_arrived_when_its_worker_died_is_moved_by_the_next(
    redis: Any, ledger: Engine, celery_inbox: CeleryInbox
) -> None:
    redis.lpush(CELERY_LIST, envelope())
    redis.lmove(CELERY_LIST, ARRIVED, "RIGHT", "LEFT")

    assert 1 == celery_inbox.move()
    assert [RECORD_ID] == taken_in(redis, ledger)


def test_many_messages_keep_their_order_and_are_moved_in_batches(redis: Any, celery_inbox: CeleryInbox) -> None:
    for number in range(BATCH + 1):
        redis.lpush(CELERY_LIST, str(number))

    assert [BATCH, 1, 0] == [celery_inbox.move() for _ in range(3)]
    moved = [fields[b"celery"] for _, fields in redis.xrange(INBOX)]
    assert [str(number).encode() for number in range(BATCH + 1)] == moved


def test_a_new_message_is_moved_at_once(redis: Any, celery_inbox: CeleryInbox) -> None:
    celery_inbox.loop.start()
    arrived = threading.Event()
    watch = threading.Thread(target=lambda: redis.xread({INBOX: "0"}, block=10_000) and arrived.set())
    watch.start()
    redis.lpush(CELERY_LIST, envelope())

    assert arrived.wait(10)
    celery_inbox.stop()
    watch.join()


def test_a_key_of_another_type_in_its_place_costs_nothing_but_itself(redis: Any, celery_inbox: CeleryInbox) -> None:
    redis.set(f"{CELERY_LIST}\x06\x163", "no list")
    redis.lpush(CELERY_LIST, envelope())
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        celery_inbox.move()

    assert (0, 1) == (redis.llen(CELERY_LIST), redis.xlen(INBOX))
