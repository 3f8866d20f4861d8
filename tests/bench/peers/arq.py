"""arq, with a coroutine per job.

Tuned: uvloop, results not kept and not logged, a poll every 10 ms instead of every half second.
Does not keep: a job whose worker dies comes back only when its in-progress key has expired (the job's time-out).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import uvloop
from arq import create_pool
from arq.connections import RedisSettings

from bench.peers.settings import CONCURRENCY, REDIS_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
redis_settings = RedisSettings.from_dsn(REDIS_URL)
AT_ONCE = 50  # jobs being enqueued at the same time


async def cancel(_context: dict[str, Any], job_id: str) -> None:
    from bench.peers.async_body import body  # noqa: PLC0415 - a producer needs no database

    await body.cancel(job_id)


async def _start(_context: dict[str, Any]) -> None:
    from bench.peers.async_body import body  # noqa: PLC0415

    await body.start()


async def _stop(_context: dict[str, Any]) -> None:
    from bench.peers.async_body import body  # noqa: PLC0415

    await body.stop()


class WorkerSettings:
    functions: ClassVar = [cancel]
    redis_settings = redis_settings
    on_startup = _start
    on_shutdown = _stop
    max_jobs = CONCURRENCY
    poll_delay = 0.01
    keep_result = 0
    log_results = False


_pools: list[Any] = []


async def put_async(cancellations: Sequence[dict[str, str]]) -> None:
    if not _pools:
        _pools.append(await create_pool(redis_settings))
    for start in range(0, len(cancellations), AT_ONCE):
        group = cancellations[start : start + AT_ONCE]
        await asyncio.gather(*(_pools[0].enqueue_job("cancel", job["id"]) for job in group))
