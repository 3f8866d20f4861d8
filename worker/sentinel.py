"""Redis behind Sentinel: each new connection asks the sentinels who the primary is, and goes there.

One connection class does it, so that pools of redis-py, Celery's and Flower's need to know nothing of it. Knows
redis-py and the form of an address; knows no key of ours and no setting.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from redis import Connection, ConnectionPool, Redis, RedisError, SSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.retry import Retry

from worker.inputs.text import as_text

if TYPE_CHECKING:
    from worker.inputs.addresses import RedisAddress

ASK_SECONDS = 1.0  # of one sentinel, which is small and near; the next is asked then
# A server that has just been made a replica ends every wait for an entry with the first, and may answer the second.
DEMOTED = ("UNBLOCKED", "MASTERDOWN")


class NoPrimaryError(RedisConnectionError):
    """No sentinel has named a primary that says itself that it is one."""


class Primary:
    """Which server is the primary of a service: asked anew for each connection, for a failover moves it."""

    def __init__(self, address: RedisAddress) -> None:
        self.sentinels = address.sentinels
        self.service: str = address.place["service"]
        self.tls = address.tls
        self.connection_class = PrimarySSLConnection if self.tls else PrimaryConnection
        self._class = SSLConnection if self.tls else Connection
        tls = {name: value for name, value in address.options.items() if name.startswith("ssl_")}
        self._options = {**address.sentinel_credentials, **tls}
        self._last = self.sentinels[0]  # that answered

    def find(self) -> tuple[str, int]:
        """Return the primary's host and port as the first sentinel that answers says. Raises NoPrimaryError."""
        for sentinel in sorted(self.sentinels, key=self._last.__ne__):
            try:
                found = self.ask(sentinel)
            except RedisError:
                continue
            if found:
                self._last = sentinel
                return found
        raise NoPrimaryError(f"No sentinel names a primary of {self.service}.")

    def ask(self, sentinel: tuple[str, int]) -> tuple[str, int] | None:
        """Return what one sentinel says; None where it does not know the service. Raises RedisError."""
        with closing(self._client(sentinel)) as redis:
            found = redis.sentinel_get_master_addr_by_name(self.service)
        return (as_text(found[0]), int(found[1])) if found else None

    def _client(self, sentinel: tuple[str, int]) -> Any:
        host, port = sentinel
        times = {"socket_timeout": ASK_SECONDS, "socket_connect_timeout": ASK_SECONDS}
        options: dict[str, Any] = {"host": host, "port": port, **times, **self._options}
        pool = ConnectionPool(connection_class=self._class, retry=Retry(NoBackoff(), 0), **options)
        return Redis.from_pool(pool)

    def __json__(self) -> str:
        """Stand in the answer of a worker to `inspect stats`, which names the options of its connection."""
        return f"the primary of {self.service}"


class PrimaryConnection(Connection):
    """A connection to whoever is the primary when it is made; it ends when that one is no primary any more."""

    def __init__(self, *, primary: Primary, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._primary = primary

    def _connect(self) -> Any:
        self.host, self.port = self._primary.find()
        return super()._connect()  # type: ignore[no-untyped-call]

    def on_connect_check_health(self, check_health: bool = True) -> None:
        super().on_connect_check_health(check_health=check_health)
        # A sentinel may not have heard of a failover yet; the server itself has.
        self.send_command("ROLE", check_health=False)  # type: ignore[no-untyped-call]
        try:
            role = super().read_response()
        except ResponseError:
            return  # no right to ask: its first write will tell
        if as_text(role[0]) != "master":
            raise NoPrimaryError(
                f"The server that a sentinel names as the primary of {self._primary.service} is none."
            )

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not isinstance(error, ReadOnlyError) and not str(error).startswith(DEMOTED):
                raise
            # Closed, so that the next use asks the sentinels again.
            self.disconnect()  # type: ignore[no-untyped-call]
            raise RedisConnectionError("The server was made a replica.") from error


class PrimarySSLConnection(PrimaryConnection, SSLConnection):
    """The same, to servers and sentinels that speak TLS."""
