"""What an OMS imports: enqueue, ask, wait, change, withdraw, follow events.

Needs Redis to enqueue, and the ledger for all else. Knows the inbox and the ledger; does not know Celery, workers or
HTTP, and needs no credentials of Trackstar's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import UNSET, UnsetType
from redis import RedisError, ResponseError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from worker import shared_settings
from worker.cancellation.lifecycle import why_not_change
from worker.cancellation.policy import Policy
from worker.cancellation.producer import problem_of_producer
from worker.cancellation.refund import RefundAnswer
from worker.cancellation.request import CancelRequest, Priority, make_request
from worker.cancellation.signature import Signer, read_secrets
from worker.cancellation.status import SafeToRefund, Status
from worker.cancellation.stream_entry import read_entry
from worker.environment import from_environment
from worker.errors import (
    AlreadyEndedError,
    InboxUnavailableError,
    KeyConflictError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.inputs.addresses import SENTINEL_SCHEMES
from worker.ledger import audit, hints, queries, transitions
from worker.ledger.audit import Action, Kind
from worker.ledger.changes import Change, change
from worker.ledger.database import open_ledger, read_only
from worker.ledger.feed_reader import FeedReader
from worker.ledger.problems import ledger_errors
from worker.ledger.queries import Standing
from worker.streams import NotReplicatedError, connect_redis, inbox_of, put_jobs, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from worker.cancellation.event import Event
    from worker.ledger.feed_reader import FeedEvent
    from worker.ledger.record import Cancellation

Answer = TypeVar("Answer")

CHUNK = 1_000  # entries in one round trip
REPLICAS_ASKED_EVERY_SECONDS = 30.0


class CancelClient:
    """Enqueues cancels and answers for them. Safe to share between threads; make one per process.

    `redis_url` and `database_url` default to REDIS_URL and DATABASE_URL. Without a database it can only enqueue.
    `actor` is who acts by it, for the audit: a person where one is known, else the program. It defaults to
    CANCEL_ACTOR, else user@host. What is enqueued is accepted when so many `replicas` of Redis have it: by default one
    where there is one, and always one behind Sentinel, for a primary without any may be one that was replaced.
    `producer` is the name by which jobs are enqueued, on a stream of that producer's own (`cancel-worker producers
    add`); without one they go to the inbox that needs no name.

    Raises ValueError for a name that no producer can have.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        database_url: str | None = None,
        *,
        actor: str | None = None,
        replicas: int | None = None,
        producer: str | None = None,
    ) -> None:
        if producer is not None and (problem := problem_of_producer(producer)):
            raise ValueError(f"producer: {producer!r} {problem}.")
        self._inbox = inbox_of(producer)
        self._redis_url = redis_url or from_environment("REDIS_URL") or "redis://localhost:6379/0"
        self._database_url = database_url or from_environment("DATABASE_URL")
        self._replicas_wanted = replicas
        self._replicas, self._replicas_asked_at = 0, -REPLICAS_ASKED_EVERY_SECONDS
        self._writes_per_second = shared_settings.writes_per_second()
        self._policy = shared_settings.policy()
        self._actor = actor

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
        reference_id: str | None = None,
        order_number: str | None = None,
        batch: str | None = None,
        traceparent: str | None = None,
        session: Session | Connection | None = None,
    ) -> str:
        """Ask for one order to be cancelled; return the record's id.

        `traceparent` (W3C Trace Context) goes into each log line, alert and event of this cancellation, and never to
        Trackstar; a text that is none is dropped.

        With `session` the row is inserted in the caller's own transaction: it is accepted when that commits. Otherwise
        one entry is added to the inbox in Redis. Raises InvalidRequest, KeyConflictError or InboxUnavailableError, and
        AlreadyEndedError where the ledger can be asked and this intent has ended before: then nothing is sent.
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
            "reference_id": reference_id,
            "order_number": order_number,
            "batch": batch,
            "traceparent": traceparent,
        }
        request = _request(fields)
        if session is not None:
            _insert(session, request)
        elif ended := self._send_all([request]):
            raise _already_ended(ended, self._records(ended), [request.record_id])
        return request.record_id

    def enqueue_many(self, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Enqueue many jobs, each a mapping with the fields of `enqueue`; return their ids in the same order.

        All are checked before the first is sent: after InvalidRequest and KeyConflictError nothing was. After
        InboxUnavailableError some may have been sent: send all again. AlreadyEndedError comes last: what it does not
        name was enqueued.
        """
        requests = [_request(job) for job in jobs]
        ids = [request.record_id for request in requests]
        if ended := self._send_all(requests):
            raise _already_ended(ended, self._records(ended), ids)
        return ids

    def enqueue_unless_ended(self, jobs: Iterable[Mapping[str, Any]]) -> dict[str, Standing]:
        """Enqueue as `enqueue_many` does; return by id how those stand that have ended, instead of raising."""
        return self._send_all([_request(job) for job in jobs])

    def standing(self, jobs: Iterable[Mapping[str, Any]]) -> dict[str, Standing | None]:
        """Return how the records of these jobs stand, by id; None while the ledger does not know one."""
        requests = [_request(job) for job in jobs]
        known = self._ask(queries.find_standing, requests)
        return {request.record_id: known.get(request.record_id) for request in requests}

    def get(self, cancellation_id: str, *, snapshot: bool = False) -> Cancellation | None:
        """Return the cancellation as it stands, or None while the ledger does not know it.

        With `snapshot` also the order as Trackstar returned it last, which holds personal data.
        """
        return self._ask(partial(queries.get, snapshot=snapshot), cancellation_id, self._policy)

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
                raise not_ended(cancellation_id, found, timeout or 0.0)
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def expected_at(self, cancellation_id: str) -> datetime | None:
        """Return when it is sent, by the backlog ahead of it and its connection's pace; None where nobody can tell."""
        return self._ask(queries.expected_at, cancellation_id, self._writes_per_second)

    def next_turn(self, connection_id: str, priority: str = "normal") -> tuple[datetime | None, str | None]:
        """Return when a job that is enqueued now would be sent, and the reason of its connection's hold, if any."""
        return self._ask(queries.next_turn, connection_id, priority, self._writes_per_second)

    def withdraw(self, cancellation_id: str, *, reason: str | None = None) -> None:
        """Take back a cancel that was not sent yet; `reason` says why, and is kept with the client's `actor`.

        Raises TooLateError or UnknownCancellationError.
        """
        self.get(cancellation_id)  # a connection that was cut is replaced here, where to ask twice is harmless
        by = audit.acting(shared_settings.actor(self._actor), reason)
        with (
            ledger_errors(),
            self._ledger.begin() as db,
            audit.recorded(db, by, Action.WITHDRAW, Kind.CANCELLATION, [cancellation_id]),
        ):
            transitions.withdraw(db, cancellation_id, Policy())

    def change(
        self,
        cancellation_id: str,
        *,
        priority: Priority | None = None,
        send_by: datetime | UnsetType | None = UNSET,
        now: bool = False,
        reason: str | None = None,
    ) -> None:
        """Change how a cancel is sent that waits for its turn; what is left out stays, and `send_by=None` lifts it.

        `now`: what waits for a retry is tried at once. Raises TooLateError or UnknownCancellationError.
        """
        found = self.get(cancellation_id)
        if found is None:
            raise UnknownCancellationError(f"No cancellation has the id {cancellation_id}.")
        wish = Change(priority=priority, send_by=send_by, now=now)
        by = audit.acting(shared_settings.actor(self._actor), reason)
        with (
            ledger_errors(),
            self._ledger.begin() as db,
            audit.recorded(db, by, Action.CHANGE, Kind.CANCELLATION, [cancellation_id]),
        ):
            changed = change(db, [cancellation_id], wish)
        if not changed:
            why = why_not_change(Status(found.status), None) or "its turn has just come"
            raise TooLateError(f"Cancellation {cancellation_id} cannot be changed: {why}.")

    def safe_to_refund(self, cancellation_id: str) -> RefundAnswer:
        """Answer the one question of support: yes, no, or not yet, and by when, or by whom, it is known."""
        found = self.get(cancellation_id)
        if found is None:
            return RefundAnswer(SafeToRefund.NOT_YET)
        return RefundAnswer(found.safe_to_refund, found.as_of, found.known_by, found.needs_person)

    def look_again(self, cancellation_id: str) -> bool:
        """Let the order be read now, because somebody has heard that it changed; what was heard is not believed.

        Return whether it is read: not where no later read can change what is known, nor while it is being read.
        Raises UnknownCancellationError.
        """
        found = self.get(cancellation_id)
        if found is None:
            raise UnknownCancellationError(f"No cancellation has the id {cancellation_id}.")
        with ledger_errors(), self._ledger.begin() as db:
            return hints.look_again(db, found.connection_id, found.order_id) > 0

    def events(
        self,
        *,
        after: str | None = None,
        since: datetime | None = None,
        consumer: str | None = None,
        types: Collection[str] = (),
        connections: Collection[str] = (),
        timeout: float | None = None,
    ) -> Iterator[FeedEvent]:
        """Yield what the ledger tells, in its order, and wait for what comes: the feed.

        It begins beyond `after` (the `cursor` of an event, or `now`), or at the instant `since`, or where the
        `consumer` of this name stopped, or with the oldest event that is kept. A consumer's place is kept in the
        ledger when the next event is asked for: after a crash some come again, and none is left out. `types` and
        `connections` leave out the others. It ends when nothing has come for `timeout` seconds (None: never), and
        waits while the database is away.

        Raises CursorError, and LedgerUnavailableError where the database is away from the start, or at the end.
        """
        reader = FeedReader(self._ledger, types=types, connections=connections, consumer=consumer)
        return reader.follow(reader.start(after, since), timeout)

    def close(self) -> None:
        """Close every connection that was opened."""
        if "_redis" in self.__dict__:
            self._redis.close()
        if "_ledger" in self.__dict__:
            self._ledger.dispose()

    def _ask(self, question: Callable[..., Answer], *about: object) -> Answer:
        with ledger_errors():
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

    def _send_all(self, requests: Sequence[CancelRequest]) -> dict[str, Standing]:
        """Send what has not ended; return what has, by record id. A conflict with any of them comes before all."""
        chunks = [requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK)]
        ended: dict[str, Standing] = {}
        for chunk in chunks:
            ended |= self._find_ended(chunk)
        for chunk in chunks:
            self._send([request for request in chunk if request.record_id not in ended])
        return ended

    def _send(self, requests: Sequence[CancelRequest]) -> None:
        try:
            jobs = [request.to_json() for request in requests]
            put_jobs(self._redis, jobs, inbox=self._inbox, replicas=self._replicas_to_wait_for())
        except NotReplicatedError as error:
            raise InboxUnavailableError(f"{error}; enqueue again, the same intent stays one record.") from error
        except RedisError as error:
            what = "Redis refused it" if isinstance(error, ResponseError) else "Redis could not be reached"
            why = refusal(self._redis, error, {self._inbox: "stream"}) or f"{what} ({type(error).__name__})"
            raise InboxUnavailableError(
                f"{why}. It is not certain that all was enqueued: enqueue again, the same intent stays one record."
            ) from error

    def _replicas_to_wait_for(self) -> int:
        """Return 1 where Redis has a replica: what that has too survives a failover."""
        if self._replicas_wanted is not None:
            return self._replicas_wanted
        if self._redis_url.startswith(SENTINEL_SCHEMES):
            return 1
        if time.monotonic() - self._replicas_asked_at > REPLICAS_ASKED_EVERY_SECONDS:
            try:
                role = self._redis.execute_command("ROLE")
            except ResponseError:
                role = ()  # who may not know, cannot wait
            self._replicas_asked_at = time.monotonic()
            self._replicas = min(1, len(role[2])) if role and role[0] in {b"master", "master"} else 0
        return self._replicas

    def _records(self, ids: Iterable[str]) -> list[Cancellation | None]:
        """Return these records; none where the ledger has gone away since it said that they have ended."""
        try:
            return [self.get(each) for each in ids]
        except LedgerUnavailableError:
            return []

    def _find_ended(self, requests: Sequence[CancelRequest]) -> dict[str, Standing]:
        if self._database_url is None:
            return {}  # the intake judges it: a conflict becomes a dead letter, and of what has ended an event tells
        try:
            known = self._ask(queries.find_standing, requests)
        except LedgerUnavailableError:
            return {}  # a ledger that is away does not stop anyone from enqueuing
        return _ended_of(requests, known)


def read_stream_event(fields: Mapping[Any, Any], secret: str | None = None) -> Event:
    """Read an entry of `cancellations:events` or `cancellations:dead-letters`, as any Redis client returns its fields.

    With a `secret` (`whsec_...`; two with a space between them while one takes the other's place), or where
    EVENT_SIGNING_SECRET is set, only what it has signed is read, whenever that was; without one nothing is checked.
    Rely on what is returned, not on the entry's own `type`, which is not signed. It comes at least once: drop an `id`
    that was seen. Of a release before 0.2, which did not sign, `schema` is 0 and `at` may be the epoch.

    Raises EventError, and ValueError where `secret` is none.
    """
    return read_entry(fields, shared_settings.event_signer() if secret is None else Signer(read_secrets(secret)))


def not_ended(cancellation_id: str, found: Cancellation | None, seconds: float) -> TimeoutError:
    """Return what `wait` raises after so many seconds."""
    state = f"is {found.status}" if found else "is not in the ledger yet"
    return TimeoutError(f"Cancellation {cancellation_id} {state} after {seconds:g} s; it goes on: ask again.")


def _request(fields: Mapping[str, Any]) -> CancelRequest:
    stated = {name: value for name, value in fields.items() if value is not None}
    return make_request({"requested_at": datetime.now(UTC), **stated})


def _insert(session: Session | Connection, request: CancelRequest) -> None:
    db = session if isinstance(session, Connection) else session.connection()
    transitions.accept(db, [request])
    if ended := _ended_of([request], queries.find_standing(db, [request])):
        raise _already_ended(ended, [queries.get(db, request.record_id)], [request.record_id])


def _already_ended(
    ended: Mapping[str, Standing], records: Iterable[Cancellation | None], ids: Sequence[str]
) -> AlreadyEndedError:
    first = next(iter(ended.values()))
    others = f" (and {len(ended) - 1} more)" if len(ended) > 1 else ""
    return AlreadyEndedError(
        f"The cancel of order {first.order_id!r} of connection {first.connection_id!r}{others} has ended already: "
        f"{first.status}, verdict {first.verdict}. Nothing is sent for it. To cancel the order again, run "
        f"`cancel-worker replay {first.id} --reason ...`, or enqueue it with a new idempotency key.",
        [found for found in records if found],
        ids,
    )


def _ended_of(requests: Sequence[CancelRequest], known: Mapping[str, Standing]) -> dict[str, Standing]:
    """Return what has ended already, by record id. Raises KeyConflictError for a key of another order."""
    for request in requests:
        if sentence := queries.conflict_of(request, known.get(request.record_id)):
            raise KeyConflictError(sentence)
    return {record_id: standing for record_id, standing in known.items() if standing.ended_at}
