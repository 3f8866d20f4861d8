"""A worker's own list: what it puts there, Celery takes off for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Connection, ConnectionPool, Redis

from worker.broker.transport import RedisAMQP, celery_address
from worker.broker.worker_queue import ATTEMPT_BATCH, WorkerQueue
from worker.inputs.addresses import parse_redis_url
from worker.streams import redis_options

if TYPE_CHECKING:
    from kombu.message import Message

IDS = ["00000000-0000-5000-8000-000000000001"]


def test_a_message_of_a_workers_own_list_is_taken_off_for_good(redis: Redis, redis_url: str) -> None:
    own = WorkerQueue(redis, "w-1")
    with Celery("taker", broker=redis_url, set_as_current=False) as app, app.connection_for_read() as connection:
        for settle in ("ack", "reject"):
            own.put(IDS)
            taken: list[Message] = []
            with app.amqp.Consumer(connection, [own.queue], on_message=taken.append):
                connection.drain_events(timeout=5)
            (message,) = taken
            kept = redis.exists("unacked", "unacked_index")
            getattr(message, settle)()

            assert [[IDS], 0] == [message.payload[0], kept]
            assert ATTEMPT_BATCH == message.headers["task"]
            assert 0 == redis.exists("unacked", "unacked_index")


def test_the_list_of_a_worker_that_is_gone_goes_by_itself(redis: Redis) -> None:
    own = WorkerQueue(redis, "w-1")
    own.put(IDS)

    assert 0 < redis.ttl(own.queue.name) <= 600


def test_what_is_put_back_as_its_worker_ends_is_on_no_list_for_ever(redis: Redis, redis_url: str) -> None:
    """Celery stops to consume, and then takes the message for which it has asked already."""
    own = WorkerQueue(redis, "w-1")
    own.put(IDS)
    options = celery_address(parse_redis_url(redis_url), redis_options(redis_url, "taker"))
    with Celery("taker", amqp=RedisAMQP, set_as_current=False) as app:
        app.conf.update(options)
        with app.connection_for_read() as connection, app.amqp.Consumer(connection, [own.queue]):
            transport: Any = connection.transport
            transport._callbacks.clear()
            connection.drain_events(timeout=5)

    assert 1 == redis.llen(own.queue.name)
    assert 0 < redis.ttl(own.queue.name) <= 600


class Killed(BaseException):
    """The worker's process is gone."""


class KilledWhileSending(Connection):
    """A connection whose process is killed once it has sent the first part of what it has to send."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        super().send_packed_command(command[:1], check_health)  # type: ignore[no-untyped-call]
        if len(command) > 1:
            raise Killed


def test_a_worker_that_is_killed_while_it_hands_out_leaves_no_list_for_ever(redis: Redis) -> None:
    pool = ConnectionPool(KilledWhileSending, **redis.connection_pool.connection_kwargs)
    with Redis(connection_pool=pool) as killed, pytest.raises(Killed):
        WorkerQueue(killed, "w-1").put(IDS * 400)

    assert -1 != redis.ttl(WorkerQueue(redis, "w-1").queue.name)
