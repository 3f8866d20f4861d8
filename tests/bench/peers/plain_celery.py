"""A plain Celery task, as everyone writes it: one message, one task, one order.

Tuned: threads (prefork needs 2 GB for as many calls at once), no result backend, acknowledged late so that nothing is
lost with a worker, a Redis connection for every thread. Task events are on (`-E`), for Flower.
Does not keep: a job whose worker dies between pop and registration; a run longer than the visibility timeout is run
twice; a retry with a countdown lives in a worker's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Celery

from bench.peers.settings import REDIS_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

app = Celery("plain", broker=REDIS_URL)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=4,
    task_send_sent_event=True,
    broker_transport_options={"max_connections": 200},
    broker_connection_retry_on_startup=True,
)


@app.task(name="cancel")
def cancel(job_id: str) -> None:
    from bench.peers.sync_body import cancel as run  # noqa: PLC0415 - a producer needs no database

    run(job_id)


def put(cancellations: Sequence[dict[str, str]]) -> None:
    for cancellation in cancellations:
        cancel.apply_async((cancellation["id"],))
