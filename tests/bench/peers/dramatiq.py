"""Dramatiq on Redis, with its default middleware.

Tuned: two processes, threads by trial. It acknowledges after the job, and gives back what a dead worker held after
its heartbeat has been missing for a minute.
Does not keep: one record per intent (every send is a message of its own); retries wait in the worker's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.peers.settings import REDIS_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

broker = RedisBroker(url=REDIS_URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def cancel(job_id: str) -> None:
    from bench.peers.sync_body import cancel as run  # noqa: PLC0415 - a producer needs no database

    run(job_id)


def put(cancellations: Sequence[dict[str, str]]) -> None:
    for cancellation in cancellations:
        cancel.send(cancellation["id"])
