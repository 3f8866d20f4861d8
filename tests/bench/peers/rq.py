"""RQ, which runs one job at a time in each worker.

Tuned: `SimpleWorker` (the default forks a process per job: a tenth of the speed), as many workers as help, results
not kept, a JSON serializer, `enqueue_many` in one pipeline. Two processes would be two jobs at once, so this peer has
more: that is its best configuration.
Does not keep: a job whose worker dies is marked failed and waits for a person or a retry setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from bench.peers.settings import REDIS_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 500

queue = Queue("cancellations", connection=Redis.from_url(REDIS_URL), serializer=JSONSerializer)


def cancel(job_id: str) -> None:
    from bench.peers.sync_body import cancel as run  # noqa: PLC0415 - a producer needs no database

    run(job_id)


def put(cancellations: Sequence[dict[str, str]]) -> None:
    for start in range(0, len(cancellations), CHUNK):
        queue.enqueue_many(
            [
                Queue.prepare_data("bench.peers.rq.cancel", (cancellation["id"],), result_ttl=0)
                for cancellation in cancellations[start : start + CHUNK]
            ]
        )
