"""The Celery list on which a worker hands out to itself: it takes what it has threads for.

Nobody else writes it or reads it. Knows the form of a Celery message; what its ids mean, the executor knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec
from kombu.entity import Exchange, Queue

from worker.streams import CELERY_LIST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

ATTEMPT_BATCH = "worker.attempt_batch"
QUEUE_KEPT_SECONDS = 600  # after its last message; then its worker is dead


class WorkerQueue:
    """One worker's own list.

    `no_ack`: no other worker reads this list, so nothing is redelivered; a message that is lost is noticed by the
    executor, and its claims are given back.
    """

    def __init__(self, redis: Redis, owner: str) -> None:
        self._redis = redis
        name = f"{CELERY_LIST}.{owner}"
        self.queue = Queue(name, Exchange(""), routing_key=name, no_ack=True, expires=QUEUE_KEPT_SECONDS)  # type: ignore[no-untyped-call]

    def put(self, ids: Sequence[str]) -> None:
        """Hand these out, in one message. Raises RedisError."""
        # redis-py sends a long message and what follows it one after the other: a worker that is killed in between
        # would leave a list for ever.
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.lpush(self.queue.name, batch_message(self.queue.name, ids))
        pipeline.expire(self.queue.name, QUEUE_KEPT_SECONDS)
        pipeline.execute()


def batch_message(queue: str, ids: Sequence[str]) -> bytes:
    """Write the message as Celery's protocol 2 has it: its own producer takes longer than Redis does.

    What is shown of its arguments is their number, never a value.
    """
    call_id = str(uuid4())
    return msgspec.json.encode(
        {
            "body": msgspec.json.encode([[ids], {}, {}]).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {
                "lang": "py",
                "task": ATTEMPT_BATCH,
                "id": call_id,
                "root_id": call_id,
                "retries": 0,
                "argsrepr": f"{len(ids)} cancellations",
                "kwargsrepr": "{}",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": call_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "delivery_tag": call_id,
            },
        }
    )
