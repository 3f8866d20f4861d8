"""What Celery runs: a batch of ids to attempt, and the door for producers that speak Celery."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from celery.exceptions import Reject
from redis import RedisError

from worker.celery_app import CancelMachinery, app
from worker.envelope import ATTEMPT_BATCH, CANCEL_ORDER
from worker.inbox import connect_redis, put_jobs
from worker.settings import load_settings

if TYPE_CHECKING:
    from redis import Redis

log = structlog.get_logger()


@cache
def _redis() -> Redis:
    return connect_redis(load_settings().redis_url)


@app.task(name=ATTEMPT_BATCH, send_events=False)  # type: ignore[untyped-decorator]
def attempt_batch(ids: list[str]) -> None:
    """Claim these cancellations and hand them to the request threads. Flower follows them, not this message."""
    machinery = CancelMachinery.running
    if machinery is not None:  # otherwise this process is ending, and the rows' short lease brings them back
        machinery.attempt_all(ids)


@app.task(name=CANCEL_ORDER, send_events=False)  # type: ignore[untyped-decorator]
def cancel_order(**job: Any) -> None:
    """Put one job on the inbox, where every job is judged alike. Fields as in the inbox's JSON object."""
    try:
        put_jobs(_redis(), [msgspec.json.encode(job)])
    except RedisError as error:
        log.warning("cancel_order.redis_away", error=type(error).__name__)
        raise Reject(requeue=True) from error  # back on the list, and no text of the job in any log
