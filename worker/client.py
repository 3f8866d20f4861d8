"""What an OMS imports: enqueue, ask, wait, withdraw. Needs Redis to enqueue and the ledger to ask.

Knows the inbox and the ledger's questions; does not know Celery, workers, HTTP or any setting of Trackstar's.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from redis import RedisError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.cancellation.lifecycle import Policy, SafeToRefund
from worker.cancellation.pace import DOCUMENTED_WRITES_PER_SECOND
from worker.cancellation.request import CancelRequest, Priority, make_request
from worker.environment import SettingsError, from_environment
from worker.errors import InboxUnavailableError, KeyConflictError, LedgerUnavailableError
from worker.inputs.values import problem_of_number
from worker.ledger import queries, transitions
from worker.ledger.database import open_ledger, read_only
from worker.ledger.queries import Cancellation
from worker.streams import connect_redis, put_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

Answer = TypeVar("Answer")

CHUNK = 1_000  # entries in one round trip


class CancelClient:
    """Enqueues cancels and answers for them. Safe to share between threads; make one per process.

    `redis_url` and `database_url` default to REDIS_URL and DATABASE_URL. Without a database it can only enqueue.
    """

    def __init__(self, redis_url: str | None = None, database_url: str | None = None) -> None:
        self._redis_url = redis_url or from_environment("REDIS_URL") or "redis://localhost:6379/0"
        self._database_url = database_url or from_environment("DATABASE_URL")
        self._writes_per_second = _writes_per_second()

    @cached_property
    def _redis(self) -> Any:
        redis = connect_redis(self._redis_url, socket_timeout=5.0)
        redis.set_retry(Retry(ExponentialBackoff(cap=0.5, base=0.05), 3))
        return redis

    @cached_property
    def _ledger(self) -> Engine:
        if self._database_url is None:
            raise LedgerUnavailableError("Set DATABASE_URL (or pass database_url) to ask about cancellations.")
        return open_ledger(self._database_url, pool_size=4, plan_once=True)

    def enqueue(
        self,
        connection_id: str,
        order_id: str,
        *,
        idempotency_key: str | None = None,
        send_by: datetime | str | None = None,
        priority: Priority = "normal",
        requested_by: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str | int | float | bool | None] | None = None,
        session: Session | Connection | None = None,
    ) -> str:
        """Ask for one order to be cancelled; return the record's id.

        With `session` the row is inserted in the caller's own transaction: it is accepted when that commits. Otherwise
        one entry is added to the inbox in Redis. Raises InvalidRequest, KeyConflictError or InboxUnavailableError.
        """
        fields = {
            "connection_id": connection_id,
            "order_id": order_id,
            "idempotency_key": idempotency_key,
            "send_by": send_by,
            "priority": priority,
            "requested_by": requested_by,
            "reason": reason,
            "metadata": dict(metadata) if metadata is not None else None,
        }
        request = _request(fields)
        if session is None:
            self._send([request])
        else:
            _insert(session, request)
        return request.record_id

    def enqueue_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Enqueue many jobs, each a mapping with the fields of `enqueue`; return their ids in the same order.

        All are checked before the first is sent. After InboxUnavailableError some may have been sent: send all again.
        """
        requests = [_request(job) for job in jobs]
        for start in range(0, len(requests), CHUNK):
            self._send(requests[start : start + CHUNK])
        return [request.record_id for request in requests]

    def get(self, cancellation_id: str) -> Cancellation | None:
        """Return the cancellation as it stands, or None while the ledger does not know it."""
        return self._ask(queries.get, cancellation_id)

    def wait(self, cancellation_id: str, timeout: float | None = None) -> Cancellation:
        """Wait until the cancellation has ended, for `timeout` seconds at most (None: for ever).

        Raises TimeoutError with what is known so far. Its verdict may still rise later; see `safe_to_refund`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.02
        while True:
            found = self.get(cancellation_id)
            if found is not None and found.ended:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                state = f"is {found.status}" if found else "is not in the ledger yet"
                raise TimeoutError(
                    f"Cancellation {cancellation_id} {state} after {timeout:g} s; it goes on: ask again."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def expected_at(self, cancellation_id: str) -> datetime | None:
        """Return when it is sent, by the backlog ahead of it and its connection's pace; None where nobody can tell."""
        return self._ask(queries.expected_at, cancellation_id, self._writes_per_second)

    def next_turn(self, connection_id: str, priority: str = "normal") -> tuple[datetime | None, str | None]:
        """Return when a job that is enqueued now would be sent, and the reason of its connection's hold, if any."""
        return self._ask(queries.next_turn, connection_id, priority, self._writes_per_second)

    def withdraw(self, cancellation_id: str) -> None:
        """Take back a cancel that was not sent yet. Raises TooLateError or UnknownCancellationError."""
        self.get(cancellation_id)  # a connection that was cut is replaced here, where to ask twice is harmless
        with _ledger_errors(), self._ledger.begin() as db:
            transitions.withdraw(db, cancellation_id, Policy())

    def safe_to_refund(self, cancellation_id: str) -> SafeToRefund:
        """Answer the one question of support: yes, no, or not yet."""
        found = self.get(cancellation_id)
        return found.safe_to_refund if found else SafeToRefund.NOT_YET

    def close(self) -> None:
        """Close every connection that was opened."""
        if "_redis" in self.__dict__:
            self._redis.close()
        if "_ledger" in self.__dict__:
            self._ledger.dispose()

    def _ask(self, question: Callable[..., Answer], *about: object) -> Answer:
        with _ledger_errors():
            try:
                return self._ask_once(question, *about)
            except DBAPIError as error:
                # An idle connection that was cut is noticed by its use; to try each one first is a round trip more.
                if not error.connection_invalidated:
                    raise
            return self._ask_once(question, *about)

    def _ask_once(self, question: Callable[..., Answer], *about: object) -> Answer:
        with read_only(self._ledger) as db:
            return question(db, *about)

    def _send(self, requests: Sequence[CancelRequest]) -> None:
        self._refuse_conflicts(requests)
        try:
            put_jobs(self._redis, [request.to_json() for request in requests])
        except RedisError as error:
            raise InboxUnavailableError(
                f"Redis could not be reached ({type(error).__name__}), so it is not certain that all was enqueued: "
                "enqueue again, the same intent stays one record."
            ) from error

    def _refuse_conflicts(self, requests: Sequence[CancelRequest]) -> None:
        if self._database_url is None:
            return  # the intake judges it, and keeps a conflict as a dead letter
        try:
            conflicts = self._ask(queries.find_conflicts, requests)
        except LedgerUnavailableError:
            return  # a ledger that is away does not stop anyone from enqueuing
        _raise_conflict(requests, conflicts)


def _writes_per_second() -> float:
    given = from_environment("WRITES_PER_SECOND")
    if given and ((problem := problem_of_number(given)) or float(given) <= 0):
        raise SettingsError(f"WRITES_PER_SECOND: {problem or 'must be above 0'}.")
    return float(given or DOCUMENTED_WRITES_PER_SECOND)


@contextmanager
def _ledger_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise LedgerUnavailableError(
            f"The ledger could not be asked ({type(error).__name__}): check DATABASE_URL, that the database runs and "
            "that `cancel-worker migrate` has run."
        ) from error


def _request(fields: Mapping[str, Any]) -> CancelRequest:
    stated = {name: value for name, value in fields.items() if value is not None}
    return make_request({"requested_at": datetime.now(UTC), **stated})


def _insert(session: Session | Connection, request: CancelRequest) -> None:
    db = session if isinstance(session, Connection) else session.connection()
    transitions.accept(db, [request])
    _raise_conflict([request], queries.find_conflicts(db, [request]))


def _raise_conflict(requests: Sequence[CancelRequest], conflicts: Mapping[str, str]) -> None:
    for request in requests:
        if (known := conflicts.get(request.record_id)) and known != request.order_id:
            raise KeyConflictError(queries.key_conflict(request, known))
