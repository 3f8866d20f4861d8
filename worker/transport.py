"""The door of the Celery list: every message is read before Celery sees it, and what no worker can run is set aside.

Without it one malformed message makes Celery lose it, reconnect for ever, or end, again and again, on every worker.
Knows Redis and kombu's Redis transport; what a good message is, `envelope` knows.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import structlog
from celery import Celery
from celery.worker.consumer.consumer import STOP_CONDITIONS, Consumer
from kombu.entity import Exchange, Queue
from kombu.transport import redis as kombu_redis
from redis import Redis, RedisError

from worker.envelope import ATTEMPT_BATCH, QUEUE, Call, UnacceptableMessage, read_call, write_call
from worker.inbox import INBOX, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kombu.connection import Connection

log = structlog.get_logger()

RESTART_SECONDS = 1.0
OWN_LIST_SECONDS = 600


class Door(Redis):
    """A Redis client whose BRPOP answers hold good messages only. Bad ones go on to the inbox, as dead letters.

    They are written to the inbox and not to the ledger: Redis has just answered, so they are safe at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._aside: deque[dict[str, bytes]] = deque()  # more than one only while Redis fails between two commands

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """Read one answer; None, as if nothing had come, in place of a message that was set aside."""
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP":
            return answer
        good = self._vet(answer) if answer else None
        self._put_aside()
        return good

    def _vet(self, answer: Any) -> Any:
        name, raw = answer
        try:
            return name, write_call(read_call(raw))
        except UnacceptableMessage as problem:
            self._aside.append(unreadable(raw, source=QUEUE, reason=problem.reason, error=str(problem)))
            return None

    def _put_aside(self) -> None:
        while self._aside:
            try:
                self.xadd(INBOX, self._aside[0])  # type: ignore[arg-type]
            except RedisError as error:
                log.warning("celery_message.not_set_aside_yet", error=type(error).__name__, kept=len(self._aside))
                return
            self._aside.popleft()


class Deliveries(kombu_redis.QoS):
    """What was delivered and not settled. From a worker's own list nothing is kept: `OwnList` says why."""

    def ack(self, delivery_tag: str) -> None:
        if delivery_tag in self._delivered:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]


class Channel(kombu_redis.Channel):
    QoS = Deliveries

    def _get_client(self) -> type[Redis]:
        return Door


class Transport(kombu_redis.Transport):
    Channel = Channel


class OwnList:
    """The list on which a worker hands out to itself, beside the common one: it takes what it has room for.

    Written as the door would write it, and taken off for good: to whom else should a message come back? Its rows are
    offered anew when their short lease ends. The list goes by itself when its worker has been dead for a while.
    """

    def __init__(self, redis: Redis, owner: str) -> None:
        self._redis = redis
        name = f"{QUEUE}.{owner}"
        self.queue = Queue(name, Exchange(""), routing_key=name, no_ack=True, expires=OWN_LIST_SECONDS)  # type: ignore[no-untyped-call]

    def put(self, ids: Sequence[str]) -> None:
        """Hand these out, in one message. Raises RedisError."""
        call = Call(task=ATTEMPT_BATCH, id=str(uuid4()), args=[list(ids)], kwargs={})
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.lpush(self.queue.name, write_call(call))
        pipeline.expire(self.queue.name, OWN_LIST_SECONDS)
        pipeline.execute()


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """A consumer that no error ends.

    Celery goes on after the errors that it knows. One that it does not expect, as when a broken connection breaks once
    more while it is being closed, would end the whole worker.
    """

    def start(self) -> None:
        while True:
            try:
                super().start()
            except Exception as error:
                if self.blueprint.state in STOP_CONDITIONS:
                    raise
                log.exception("consumer.restarted", error=type(error).__name__)
                with suppress(Exception):  # what is half broken may not be possible to close
                    self.on_close()
                self.blueprint.restart(self)
                time.sleep(RESTART_SECONDS)
            else:
                return


class CancelApp(Celery):  # type: ignore[misc]
    """A Celery app whose workers read through the door. Producers and Flower connect as usual."""

    def connection_for_read(self, *args: Any, **kwargs: Any) -> Connection:
        connection: Connection = super().connection_for_read(*args, **kwargs)
        if connection.transport_cls in {"redis", "rediss"}:
            connection.transport_cls = Transport
        return connection
