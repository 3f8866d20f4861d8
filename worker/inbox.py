"""The two streams that other systems touch: names, fields, limits. Knows Redis commands; knows no rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterable

INBOX = "cancellations:inbox"
EVENTS = "cancellations:events"
JOB_FIELD = b"job"
GROUP = "ledger"

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


def put_jobs(redis: Redis, jobs: Iterable[bytes]) -> None:
    """Add one entry per job, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    for job in jobs:
        pipeline.xadd(INBOX, {JOB_FIELD: job})
    pipeline.execute()
