"""What other systems touch in Redis: the two streams and the Celery list. Names, fields, limits; no rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterable

INBOX = "cancellations:inbox"
EVENTS = "cancellations:events"
JOB_FIELD = b"job"
GROUP = "ledger"

# The Celery list is a second inbox: its messages are moved into the stream, each under one of these fields. The second
# is a message that a Celery worker had taken and not acknowledged when it died.
CELERY_LIST = "cancellations"
CELERY_FIELD = b"celery"
UNACKED_FIELD = b"celery_unacked"

# The events stream keeps about this many: a reader that is further behind asks the ledger.
EVENTS_KEPT = 100_000


def connect_redis(url: str, *, socket_timeout: float = 10.0) -> Redis:
    """Make a client whose every wait is bounded. Raises ValueError for a URL that is none."""
    return Redis.from_url(
        url,
        socket_timeout=socket_timeout,
        socket_connect_timeout=5,
        socket_keepalive=True,
        health_check_interval=25,
        client_name="cancel-worker",
    )


# Every restart brings a reader of a new name. One that was not heard of for an hour and left nothing is forgotten;
# asked and done in one step, or an entry taken in between would be lost with its reader.
_FORGET_READERS = """
for _, reader in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for i = 1, #reader, 2 do about[reader[i]] = reader[i + 1] end
  if about.pending == 0 and about.idle > 3600000 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
  end
end
"""


def forget_readers(redis: Redis) -> None:
    """Drop the names of readers that are gone."""
    redis.eval(_FORGET_READERS, 1, INBOX, GROUP)


def put_jobs(redis: Redis, jobs: Iterable[bytes]) -> None:
    """Add one entry per job, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    for job in jobs:
        pipeline.xadd(INBOX, {JOB_FIELD: job})
    pipeline.execute()
