"""Huey on Redis.

Tuned: threads, results not kept, a blocking pop.
Does not keep: **a job is popped before it runs, so a worker that dies drops it** (nothing here is acknowledged).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from huey import RedisHuey

from bench.peers.settings import REDIS_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

huey = RedisHuey("cancellations", url=REDIS_URL, results=False, blocking=True)


@huey.task()
def cancel(job_id: str) -> None:
    from bench.peers.sync_body import cancel as run  # noqa: PLC0415 - a producer needs no database

    run(job_id)


def put(cancellations: Sequence[dict[str, str]]) -> None:
    for cancellation in cancellations:
        cancel(cancellation["id"])
