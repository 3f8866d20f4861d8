"""Inbox to ledger: read a batch, validate, insert what is new at once, then acknowledge and delete.

Knows the stream and how a job gets into the ledger; does not know what happens to it there. All of it is safe to do
twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog
from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.celery_message import UnacceptableMessage, read_message, read_unacknowledged
from worker.cancellation.request import CancelRequest, InvalidRequest, parse_request
from worker.ledger.database import refuses_the_row
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.queries import find_conflicts, key_conflict
from worker.ledger.transitions import accept_batch
from worker.runtime.loop import Loop
from worker.streams import CELERY_FIELD, CELERY_LIST, GROUP, INBOX, JOB_FIELD, UNACKED_FIELD, forget_readers
from worker.telemetry.health import REDIS

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.telemetry.health import Vitals

log = structlog.get_logger()

BATCH = 500
BLOCK_MS = 2_000  # an idle intake asks this often; a new entry wakes it at once
# An entry that its reader has not settled for this long is taken over: its reader is dead or cut off.
TAKE_OVER_AFTER_MS = 5_000
TAKE_OVER_EVERY_SECONDS = 2.0

Entry = tuple[bytes, dict[bytes, bytes]]
Candidate = tuple[Entry, CancelRequest]


class Intake:
    """One thread that empties the inbox into the ledger."""

    def __init__(
        self, redis: Redis, ledger: Engine, name: str, on_accepted: Callable[[set[str]], None], vitals: Vitals
    ) -> None:
        self._redis: Any = redis  # redis-py's own types promise an awaitable everywhere
        self._ledger = ledger
        self._name = name
        self._on_accepted = on_accepted
        self._vitals = vitals
        self._taken_over_at = -TAKE_OVER_EVERY_SECONDS
        self.loop = Loop("intake", self._tick, expected=(RedisError, SQLAlchemyError))

    def stop(self) -> None:
        """Take nothing new, and wait until what was taken is settled or left for another worker."""
        self.loop.stop(BLOCK_MS / 1000 + 5)

    def _tick(self) -> float:
        try:
            self.take()
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._make_group()
        return 0.0

    def take(self) -> int:
        """Take one batch: what a lost reader left first, then what is new. Return how many entries were settled."""
        entries = self._left_by_others() or self._new_entries()
        self._vitals.responded(REDIS)
        if entries:
            self._store_and_ack(entries)
        return len(entries)

    def _new_entries(self) -> list[Entry]:
        answer = self._redis.xreadgroup(GROUP, self._name, {INBOX: ">"}, count=BATCH, block=BLOCK_MS)
        if not answer:
            return []
        found = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
        # The newer protocol nests the entries of a stream once more.
        return [
            entry
            for group in found
            for entry in (group[0] if group and isinstance(group[0], list) else group)
            if entry
        ]

    def _left_by_others(self) -> list[Entry]:
        if time.monotonic() - self._taken_over_at < TAKE_OVER_EVERY_SECONDS:
            return []
        self._taken_over_at = time.monotonic()
        answer = self._redis.xautoclaim(INBOX, GROUP, self._name, TAKE_OVER_AFTER_MS, "0-0", count=BATCH)
        forget_readers(self._redis)
        return [entry for entry in answer[1] if entry and entry[1] is not None]

    def _make_group(self) -> None:
        try:
            self._redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _store_and_ack(self, entries: list[Entry]) -> None:
        requests, dead_letters = sort_out(entries)
        accepted = self._store(requests, dead_letters)
        if accepted:
            self._on_accepted({request.connection_id for request in accepted})
            time.sleep(0)  # gives up the GIL: the dispatcher goes first, an acknowledgement can wait
        # Only now: what is acknowledged is in the ledger.
        ids = [entry_id for entry_id, _ in entries]
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xack(INBOX, GROUP, *ids)
        pipeline.xdel(INBOX, *ids)
        pipeline.execute()
        for request in accepted:
            log.info(
                "cancellation.requested",
                id=request.record_id,
                connection_id=request.connection_id,
                order_id=request.order_id,
            )

    def _store(self, requests: list[Candidate], dead_letters: list[DeadLetter]) -> list[CancelRequest]:
        try:
            return self._commit(requests, dead_letters)
        except SQLAlchemyError as error:
            if not refuses_the_row(error):
                raise
        # One job that the ledger refuses for good, whatever we thought of it, may not stop the others.
        self._commit([], dead_letters)
        return [request for candidate in requests for request in self._store_alone(candidate)]

    def _store_alone(self, candidate: Candidate) -> list[CancelRequest]:
        try:
            return self._commit([candidate], [])
        except SQLAlchemyError as error:
            if not refuses_the_row(error):
                raise
            sentence = f"The ledger refused it: {type(error).__name__}."
        return self._commit([], [_dead_letter(candidate[0], "refused_by_ledger", sentence)])

    def _commit(self, requests: list[Candidate], dead_letters: list[DeadLetter]) -> list[CancelRequest]:
        candidates = [request for _, request in requests]
        new_ids = accept_batch(self._ledger, candidates)
        # A record that was there already, or came twice in this batch, may be for another order.
        repeated = len(new_ids) < len(candidates)
        if repeated or dead_letters:
            self._keep_dead_letters(requests if repeated else [], dead_letters)
        first_of_each = {request.record_id: request for request in reversed(candidates)}
        return [request for record_id, request in first_of_each.items() if record_id in new_ids]

    def _keep_dead_letters(self, repeated: list[Candidate], unreadable: list[DeadLetter]) -> None:
        with self._ledger.begin() as db:
            conflicts = find_conflicts(db, [request for _, request in repeated])
            clashing = [
                _dead_letter(entry, "key_conflict", key_conflict(request, conflicts[request.record_id]))
                for entry, request in repeated
                if conflicts.get(request.record_id, request.order_id) != request.order_id
            ]
            insert_dead_letters(db, [*unreadable, *clashing])
        for each in (*unreadable, *clashing):
            # Not the error: it may quote the job.
            log.warning("dead_letter.kept", entry_id=each.entry_id, reason=each.reason)


def sort_out(entries: list[Entry]) -> tuple[list[Candidate], list[DeadLetter]]:
    """Validate entries: what can become a cancellation, and what is kept as a dead letter."""
    requests: list[Candidate] = []
    dead_letters: list[DeadLetter] = []
    for entry in entries:
        try:
            requests.append((entry, parse_request(_job_of(entry))))
        except UnacceptableMessage as error:
            dead_letters.append(_dead_letter(entry, error.reason, str(error), source=CELERY_LIST))
        except InvalidRequest as error:
            dead_letters.append(_dead_letter(entry, error.reason, str(error)))
    return requests, dead_letters


def _job_of(entry: Entry) -> bytes:
    fields = entry[1]
    if (job := fields.get(JOB_FIELD)) is not None:
        return job
    if (message := fields.get(CELERY_FIELD)) is not None:
        return read_message(message)
    if (message := fields.get(UNACKED_FIELD)) is not None:
        return read_unacknowledged(message)
    raise InvalidRequest("no_job_field", "The entry has no field `job`.")


def _dead_letter(
    entry: Entry, reason: str, error: str, *, source: str = INBOX, raw: bytes | None = None
) -> DeadLetter:
    entry_id, fields = entry
    if raw is None:
        known = (fields[name] for name in (JOB_FIELD, CELERY_FIELD, UNACKED_FIELD) if name in fields)
        raw = next(known, b"\n".join(name + b": " + value for name, value in fields.items()))
    return DeadLetter(source=source, entry_id=entry_id.decode(), raw=raw, reason=reason, error=error)
