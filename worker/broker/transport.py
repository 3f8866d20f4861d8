"""Celery's way to Redis: its connections are given the very options of every other part. Knows kombu; no setting.

By itself kombu reads an address differently: it verifies no server of `rediss://`, has no `protocol`, and fails at
`?db=`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP
from kombu.connection import Connection, ConnectionPool, PooledConnection
from kombu.transport.redis import Channel, Transport

from worker.broker.worker_queue import QUEUE_KEPT_SECONDS

if TYPE_CHECKING:
    from worker.inputs.addresses import RedisAddress

HUB_SECONDS = 25  # between looks at the connections, where health checks are off: 0 would be a hot loop
# The default of 10 lost a message for ever.
MAX_CONNECTIONS = 100


class RedisChannel(Channel):
    from_transport_options: tuple[str, ...] = (*Channel.from_transport_options, "redis_options")  # type: ignore[assignment]
    redis_options: dict[str, Any] = {}  # noqa: RUF012 - kombu sets it on each channel

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if primary := self.redis_options.get("primary"):
            self.connection_class = self.connection_class_ssl = primary.connection_class
        # Of kombu's own only the class remains, which it prepares for its event loop.
        connection = super()._connparams(asynchronous)["connection_class"]  # type: ignore[no-untyped-call]
        return {**self.redis_options, "connection_class": connection}

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        # What comes while its worker ends is put back: on a list that nobody reads any more, and that would stay.
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)  # type: ignore[no-untyped-call]
        for queue in self._lookup(exchange, routing_key):  # type: ignore[no-untyped-call]
            pipe.expire(queue, QUEUE_KEPT_SECONDS)


class RedisTransport(Transport):
    Channel = RedisChannel


class RedisConnection(Connection):
    def get_transport_cls(self) -> type[RedisTransport]:
        return RedisTransport

    def Pool(self, limit: int | None = None, **_: Any) -> RedisPool:  # noqa: N802 - kombu's name
        return RedisPool(self, limit)  # type: ignore[no-untyped-call]


class PooledRedisConnection(PooledConnection):
    def get_transport_cls(self) -> type[RedisTransport]:
        return RedisTransport


class RedisPool(ConnectionPool):
    """Of what Celery publishes remote commands with, and their answers: kombu's own pool knows no password of ours."""

    def new(self) -> PooledRedisConnection:
        same = dict(self.connection._info(resolve=False))  # noqa: SLF001 - as kombu's pool does
        return PooledRedisConnection(self, **same)  # type: ignore[no-untyped-call]


class RedisAMQP(AMQP):  # type: ignore[misc]
    """What a Celery app is made with so that each of its connections is ours."""

    Connection = RedisConnection


def celery_address(address: RedisAddress, options: dict[str, Any]) -> dict[str, Any]:
    """Return Celery's settings for this Redis. Its URL names the place only, and no password."""
    if address.scheme == "unix":
        url = f"redis+socket://{address.place['path']}"
    elif address.sentinels:
        # The name stands for the place, in logs: the connections ask the sentinels.
        url = f"{'rediss' if address.tls else 'redis'}://{address.place['service']}/{options['db']}"
    else:
        host = address.place["host"]
        url = f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{address.place['port']}/{options['db']}"
    return {
        "broker_url": url,
        "broker_use_ssl": {"ssl_cert_reqs": "required"} if address.tls else None,
        "broker_transport_options": {
            "redis_options": {"max_connections": MAX_CONNECTIONS, **options},
            "health_check_interval": options["health_check_interval"] or HUB_SECONDS,
        },
    }
