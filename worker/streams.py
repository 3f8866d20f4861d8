"""What other systems touch in Redis: the streams and the Celery list. Names, fields, limits; no rules.

And how Redis is reached: `redis_options` says it for every part, also for Celery and Flower.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Connection, ConnectionPool, Redis, RedisError, SSLConnection, UnixDomainSocketConnection
from redis.credentials import CredentialProvider

from worker.environment import from_environment
from worker.inputs.addresses import RedisAddress, parse_redis_url
from worker.inputs.faults import remedy_of, word_of
from worker.inputs.text import as_text
from worker.sentinel import Primary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

INBOX = "cancellations:inbox"  # of the one producer that needs no name; a producer with a name has `inbox_of(name)`
EVENTS = "cancellations:events"
DEAD_LETTERS = "cancellations:dead-letters"  # events about them: a flood of bad messages pushes no outcome off
HINTS = "cancellations:hints"  # look again at this order, or at this connection, now
JOB_FIELD = b"job"
GROUP = "ledger"

# The Celery list is a second inbox: its messages are moved into the stream, under fields of their own.
CELERY_LIST = "cancellations"

REPLICATION_MS = 2_000  # what a replica has to confirm an entry, below the time-out of a producer's connection

# The events stream keeps about this many: a reader that is further behind asks the ledger.
EVENTS_KEPT = 100_000


def inbox_of(producer: str | None) -> str:
    """Return the stream of a producer: who may write there is that producer, so its name stands in no job."""
    return INBOX if producer is None else f"{INBOX}:{producer}"


def aside_of(inbox: str) -> str:
    """Return where an inbox is put whose ids were ahead of the clock, until it is read to its end."""
    return f"{inbox}:ahead"


def producer_of(stream: str) -> str | None:
    """Return whose inbox this is, or was until it was put aside; None for the one without a name."""
    name = stream.removeprefix(INBOX).removesuffix(":ahead")
    return name[1:] or None


INBOX_AHEAD = aside_of(INBOX)


CONNECTIONS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}


def connect_redis(url: str, *, socket_timeout: float = 10.0) -> Redis:
    """Make a client whose every wait is bounded; what the URL says goes first.

    Raises ValueError, with a sentence, for a URL that cannot be followed.
    """
    options = redis_options(url, "cancel-worker", socket_timeout=socket_timeout)
    connection: Any = options["primary"].connection_class if "primary" in options else _connection_class(url)
    return Redis.from_pool(ConnectionPool(connection_class=connection, **options))


def _connection_class(url: str) -> Any:
    return CONNECTIONS[parse_redis_url(url).scheme]


def redis_options(url: str, client_name: str, *, socket_timeout: float = 10.0) -> dict[str, Any]:
    """Return the arguments of each connection to this Redis. Raises ValueError as `connect_redis` does."""
    address = parse_redis_url(url)
    for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"):
        if (path := address.options.get(name)) and not os.access(path, os.R_OK):
            raise ValueError(f"REDIS_URL: {name} names {Path(path)}, which cannot be read: correct it.")
    usual = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": 5,
        "health_check_interval": 25,
        "client_name": client_name,
    }
    if address.scheme != "unix":
        usual["socket_keepalive"] = True
    place = {"primary": Primary(address)} if address.sentinels else address.place
    return {**usual, **place, **address.options, "credential_provider": RedisCredentials(url, address)}


class RedisCredentials(CredentialProvider):
    """Who asks. Where REDIS_URL_FILE says it, each new connection reads that anew: passwords are rotated there."""

    def __init__(self, url: str, address: RedisAddress) -> None:
        self._known = address.credentials
        self._in_a_file = "REDIS_URL_FILE" in os.environ and url == from_environment("REDIS_URL")

    def get_credentials(self) -> Any:
        """Return what AUTH is given, also while the file is being replaced; empty where nobody is named."""
        if self._in_a_file:
            try:
                self._known = parse_redis_url(from_environment("REDIS_URL") or "").credentials
            except ValueError:
                return self._known
        return self._known

    async def get_credentials_async(self) -> Any:
        """Return the same where asyncio asks; redis-py's own warns of itself."""
        return self.get_credentials()

    def __json__(self) -> str:
        """Stand in the answer of a worker to `inspect stats`, which names the options of its connection."""
        return "REDIS_URL"


def wait_unread(redis: Any, *command: str | int, then: Sequence[str | int | float] = ("PING",)) -> Any:
    """Run a command that waits, then another, in one round trip; return the reply of the second.

    Redis drops the reply of the first, however long that would be, and so its error as well.
    """
    pool = redis.connection_pool
    connection = pool.get_connection()
    try:
        words = [("CLIENT", "REPLY", "OFF"), command, ("CLIENT", "REPLY", "ON"), then]
        connection.send_packed_command(connection.pack_commands(words))
        connection.read_response()
        return connection.read_response()
    except BaseException:
        connection.disconnect()  # or its replies would be taken for those of the next command
        raise
    finally:
        pool.release(connection)


def refusal(redis: Any, error: RedisError, keys: Mapping[str, str]) -> str | None:
    """Say what Redis refuses and what to do, without a full stop; `keys` are ours, with their types.

    None where Redis has refused nothing: it did not answer.
    """
    if word_of(error) == "WRONGTYPE":
        for name, right in keys.items():
            with suppress(RedisError):
                found = as_text(redis.type(name))
                if found not in {right, "none"}:
                    return f"{name} holds {_article(found)}, not {_article(right)}: rename or delete it"
    return remedy_of(error)


def _article(kind: str) -> str:
    return f"a {_TYPES.get(kind, kind)}"


_TYPES = {"zset": "sorted set"}


# Every restart brings a reader of a new name. One that was not heard of for an hour and left nothing is forgotten;
# asked and done in one step, or an entry taken in between would be lost with its reader.
_FORGET_READERS = """
for _, inbox in ipairs(KEYS) do
  local readers = redis.pcall('XINFO', 'CONSUMERS', inbox, ARGV[1])
  for _, reader in ipairs(readers.err and {} or readers) do
    local about = {}
    for i = 1, #reader, 2 do about[reader[i]] = reader[i + 1] end
    if about.pending == 0 and about.idle > 3600000 then
      redis.call('XGROUP', 'DELCONSUMER', inbox, ARGV[1], about.name)
    end
  end
end
"""


def forget_readers(redis: Redis, inboxes: Sequence[str] = (INBOX,)) -> None:
    """Drop the names of readers that are gone."""
    redis.eval(_FORGET_READERS, len(inboxes), *inboxes, GROUP)


def forget_events(redis: Any, numbers: AbstractSet[int]) -> int:
    """Delete these events from the stream of events; return how many were still there. Raises RedisError."""
    gone, start, ours = 0, "-", {str(number).encode() for number in numbers}
    while entries := redis.xrange(EVENTS, start, "+", count=1_000):
        found = [entry for entry, fields in entries if fields.get(b"event_id") in ours]
        gone += redis.xdel(EVENTS, *found) if found else 0
        start = f"({as_text(entries[-1][0])}"
    return gone


class NotReplicatedError(RedisError):
    """Redis has the entries, and its replicas do not have them yet: a failover now would lose them."""


def put_jobs(redis: Redis, jobs: Sequence[bytes], replicas: int = 0, *, inbox: str = INBOX) -> None:
    """Add one entry per job, in one round trip; return when so many replicas have them. Raises NotReplicatedError."""
    if not jobs:
        return
    pipeline = redis.pipeline(transaction=False)
    for job in jobs:
        pipeline.xadd(inbox, {JOB_FIELD: job})
    if replicas:
        pipeline.wait(replicas, REPLICATION_MS)
    answers = pipeline.execute()
    if replicas and answers[-1] < replicas:
        raise NotReplicatedError(
            f"Redis took it, but {answers[-1]} of {replicas} replicas had it after {REPLICATION_MS / 1000:g} s: a "
            "failover could lose it"
        )
