"""How Flower's own questions reach Redis behind Sentinel: with asyncio, so by a connection class of their own.

Knows redis-py's asyncio; which server is the primary, `worker.sentinel` knows.
"""

from __future__ import annotations

from asyncio import to_thread
from typing import TYPE_CHECKING, Any

from redis.asyncio import Connection, SSLConnection

if TYPE_CHECKING:
    from worker.sentinel import Primary


class AsyncPrimaryConnection(Connection):
    """A connection to whoever is the primary when it is made."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)
        self._primary = primary

    async def _connect(self) -> None:
        self.host, self.port = await to_thread(self._primary.find)
        await super()._connect()  # type: ignore[no-untyped-call]


class AsyncPrimarySSLConnection(AsyncPrimaryConnection, SSLConnection):
    """The same with TLS."""


def async_class(primary: Primary) -> type[AsyncPrimaryConnection]:
    """Return the class of connections to this primary."""
    return AsyncPrimarySSLConnection if primary.tls else AsyncPrimaryConnection
