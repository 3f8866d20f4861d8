"""procrastinate, whose queue is PostgreSQL itself, with a coroutine per job.

Tuned: jobs deferred in batches, finished ones deleted (its table then stays small), woken by NOTIFY.
Does not keep: a job whose worker dies stays `doing` until a task of one's own looks for stalled jobs.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING

from procrastinate import App, PsycopgConnector

from bench.peers.settings import DATABASE_URL

if TYPE_CHECKING:
    from collections.abc import Sequence

CHUNK = 500

app = App(connector=PsycopgConnector(conninfo=DATABASE_URL))


@cache
def _starting() -> asyncio.Task[None]:
    from bench.peers.async_body import body  # noqa: PLC0415 - a producer needs no such pool

    return asyncio.ensure_future(body.start())


@app.task(name="cancel", queue="cancellations")
async def cancel(job_id: str) -> None:
    from bench.peers.async_body import body  # noqa: PLC0415

    await _starting()
    await body.cancel(job_id)


_opened: list[bool] = []


async def put_async(cancellations: Sequence[dict[str, str]]) -> None:
    if not _opened:
        await app.open_async()
        _opened.append(True)
    for start in range(0, len(cancellations), CHUNK):
        await cancel.batch_defer_async(*({"job_id": job["id"]} for job in cancellations[start : start + CHUNK]))
