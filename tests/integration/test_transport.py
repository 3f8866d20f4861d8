"""What Redis keeps of a message that was taken off a Celery list, until it is settled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Queue

from worker.transport import CancelApp, OwnList

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.message import Message
    from redis import Redis

IDS = ["00000000-0000-5000-8000-000000000001"]


@pytest.fixture
def take(redis_url: str) -> Iterator[Callable[[Queue], Message]]:
    """Take one message off a list, as a worker does."""
    with CancelApp("taker", broker=redis_url, set_as_current=False) as app, app.connection_for_read() as connection:

        def take_one(of: Queue) -> Message:
            taken: list[Message] = []
            with app.amqp.Consumer(connection, [of], on_message=taken.append):
                connection.drain_events(timeout=5)
            return taken[0]

        yield take_one


def test_a_message_of_a_workers_own_list_is_taken_off_for_good(redis: Redis, take: Callable[[Queue], Message]) -> None:
    own = OwnList(redis, "w-1")
    for settle in ("ack", "reject"):
        own.put(IDS)
        message = take(own.queue)
        kept = redis.exists("unacked", "unacked_index")
        getattr(message, settle)()

        assert [[IDS], 0] == [message.payload[0], kept]
        assert 0 == redis.exists("unacked", "unacked_index")


def test_a_message_of_the_common_list_is_kept_until_it_is_settled(
    redis_url: str, redis: Redis, take: Callable[[Queue], Message]
) -> None:
    with Celery("producer", broker=redis_url, set_as_current=False) as producer:
        producer.send_task("worker.cancel_order", kwargs={}, queue="cancellations")
    message = take(Queue("cancellations"))
    kept: Any = redis.hlen("unacked")
    message.ack()

    assert 1 == kept
    assert 0 == redis.exists("unacked", "unacked_index")
