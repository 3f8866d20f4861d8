"""The job with aiohttp and asyncpg, for queues that run coroutines.

Tuned: one session and one pool for all, sized to what runs at once; asyncpg's prepared statements; the claim as one
statement of its own (asyncpg commits it in one round trip); orjson.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp
import asyncpg
import orjson

from bench.peers.settings import CONCURRENCY, CONNECT_SECONDS, DATABASE_URL, HEADERS, READ_SECONDS, TRACKSTAR_URL

# More would only wait for the two cores' commits.
DATABASE_CONNECTIONS = min(CONCURRENCY, 20)

_CLAIM = """
UPDATE cancellations SET status = 'in_flight', attempts = attempts + 1, claimed_at = $2
WHERE id = $1 AND ended_at IS NULL RETURNING order_id, attempts
"""
_RECORD = """
UPDATE cancellations SET status = 'succeeded', ended_at = $2, order_status = $3, order_snapshot = $4 WHERE id = $1
"""
_ATTEMPT = """
INSERT INTO attempts (cancellation_id, number, started_at, duration_ms, status, request_id)
VALUES ($1, $2, $3, $4, $5, $6)
"""


class Body:
    """What the jobs of one process share."""

    pool: asyncpg.Pool
    session: aiohttp.ClientSession

    async def start(self) -> None:
        """Open the pool and the session, inside of the running loop."""
        self.pool = await asyncpg.create_pool(
            DATABASE_URL, min_size=DATABASE_CONNECTIONS, max_size=DATABASE_CONNECTIONS
        )
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=READ_SECONDS, connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        await self.session.close()
        await self.pool.close()

    async def cancel(self, job_id: str) -> None:
        """Do one job. What another delivery has already ended is left alone."""
        claimed = await self.pool.fetchrow(_CLAIM, job_id, datetime.now(UTC))
        if claimed is None:
            return
        began, started = datetime.now(UTC), time.monotonic()
        async with self.session.put(
            f"{TRACKSTAR_URL}/wms/orders/{quote(claimed['order_id'], safe='')}/cancel",
            headers={"Idempotency-Key": job_id},
            raise_for_status=True,
        ) as response:
            content = await response.read()
        order = orjson.loads(content)["data"]
        took = round((time.monotonic() - started) * 1000)
        request_id = response.headers.get("X-Request-Id")
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(_RECORD, job_id, datetime.now(UTC), order["status"], content.decode())
            await connection.execute(_ATTEMPT, job_id, claimed["attempts"], began, took, response.status, request_id)


body = Body()
