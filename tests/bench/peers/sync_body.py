"""The job with `requests` and SQLAlchemy Core, for queues that run functions in threads.

Tuned: one session for all threads with a connection for each, no look at proxies and netrc on every call
(`trust_env`), statements built once, a database connection for each thread, the body's charset not guessed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from sqlalchemy import Engine, bindparam, create_engine, event, insert, make_url, update

from bench.peers.settings import CONCURRENCY, CONNECT_SECONDS, DATABASE_URL, HEADERS, READ_SECONDS, TRACKSTAR_URL
from bench.peers.tables import attempts, cancellations

c = cancellations.c

_CLAIM = (
    update(cancellations)
    .where(c.id == bindparam("job"), c.ended_at.is_(None))
    .values(status="in_flight", attempts=c.attempts + 1, claimed_at=bindparam("now"))
    .returning(c.order_id, c.attempts)
)
_RECORD = (
    update(cancellations)
    .where(c.id == bindparam("job"))
    .values(
        status="succeeded",
        ended_at=bindparam("now"),
        order_status=bindparam("seen"),
        order_snapshot=bindparam("document"),
    )
)
_ATTEMPT = insert(attempts)


def _open_engine() -> Engine:
    url = make_url(DATABASE_URL)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite()
    return create_engine(url.set(drivername="postgresql+psycopg"), pool_size=CONCURRENCY, max_overflow=0)


def _open_sqlite() -> Engine:
    engine = create_engine(DATABASE_URL, connect_args={"timeout": 60}, pool_size=CONCURRENCY, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # as durable as the worker's own

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _open_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.headers.update(HEADERS)
    session.mount("http://", HTTPAdapter(pool_maxsize=CONCURRENCY))
    return session


_engine = _open_engine()
_session = _open_session()


def cancel(job_id: str) -> None:
    """Do one job. What another delivery has already ended is left alone."""
    with _engine.begin() as connection:
        claimed = connection.execute(_CLAIM, {"job": job_id, "now": datetime.now(UTC)}).one_or_none()
    if claimed is None:
        return
    began, started = datetime.now(UTC), time.monotonic()
    response = _session.put(
        f"{TRACKSTAR_URL}/wms/orders/{quote(claimed.order_id, safe='')}/cancel",
        headers={"Idempotency-Key": job_id},
        timeout=(CONNECT_SECONDS, READ_SECONDS),
    )
    response.raise_for_status()
    order = response.json()["data"]
    attempt = {
        "cancellation_id": job_id,
        "number": claimed.attempts,
        "started_at": began,
        "duration_ms": round((time.monotonic() - started) * 1000),
        "status": response.status_code,
        "request_id": response.headers.get("X-Request-Id"),
    }
    outcome = {
        "job": job_id,
        "now": datetime.now(UTC),
        "seen": order["status"],
        "document": response.content.decode(),
    }
    with _engine.begin() as connection:
        connection.execute(_RECORD, outcome)
        connection.execute(_ATTEMPT, attempt)
