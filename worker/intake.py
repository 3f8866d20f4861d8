"""Inbox to ledger: read a batch, validate, insert what is new at once, then acknowledge and delete.

Knows the stream and the ledger's door; does not know what happens to a job afterwards. All of it is safe to do twice.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import structlog
from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.answer import printable
from worker.cancellation.request import CancelRequest, InvalidRequest, parse_request
from worker.health import REDIS
from worker.inbox import GROUP, INBOX, JOB_FIELD, UNREADABLE_FIELD, forget_readers
from worker.ledger.accepting import DeadLetter, accept, bury, find_conflicts, key_conflict
from worker.ledger.engine import one_statement, refuses_the_row
from worker.observability import report_bug
from worker.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.health import Vitals

log = structlog.get_logger()

BATCH = 500
BLOCK_MS = 2_000  # an idle intake asks this often; a new entry wakes it at once
# An entry that its reader has not settled for this long is taken over: its reader is dead or cut off.
TAKE_OVER_AFTER_MS = 5_000
TAKE_OVER_EVERY_SECONDS = 2.0

_TOLD = (b"source", b"reason", b"error")  # of a message that another door set aside

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
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._looked_at = -TAKE_OVER_EVERY_SECONDS

    def start(self) -> None:
        self.thread.start()

    def halt(self) -> None:
        """Take nothing new."""
        self._stop.set()

    def stop(self) -> None:
        """Take nothing new, and wait until what was taken is settled or left for another worker."""
        self.halt()
        self.thread.join(BLOCK_MS / 1000 + 5)

    def _run(self) -> None:
        pause = Pause(self._stop)
        while not self._stop.is_set():
            try:
                self.take()
                pause.over("intake.back")
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    pause.wait("intake.redis_refuses", error)
                    continue
                self._make_group(pause)
            except RedisError as error:
                pause.wait("intake.redis_away", error)
            except SQLAlchemyError as error:
                pause.wait("intake.ledger_away", error)
            except Exception as error:  # noqa: BLE001 - a bug may not end the intake: the entries stay on the inbox
                report_bug("intake.failed")
                pause.wait("intake.failed", error)

    def take(self) -> int:
        """Take one batch: what a lost reader left first, then what is new. Return how many entries were settled."""
        entries = self._left_by_others() or self._new_entries()
        self._vitals.answered(REDIS)
        if entries:
            self._settle(entries)
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
        if time.monotonic() - self._looked_at < TAKE_OVER_EVERY_SECONDS:
            return []
        self._looked_at = time.monotonic()
        answer = self._redis.xautoclaim(INBOX, GROUP, self._name, TAKE_OVER_AFTER_MS, "0-0", count=BATCH)
        forget_readers(self._redis)
        return [entry for entry in answer[1] if entry and entry[1] is not None]

    def _make_group(self, pause: Pause) -> None:
        try:
            self._redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                pause.wait("intake.redis_refuses", error)
        except RedisError as error:
            pause.wait("intake.redis_away", error)

    def _settle(self, entries: list[Entry]) -> None:
        requests, letters = sort_out(entries)
        accepted = self._store(requests, letters)
        if accepted:
            self._on_accepted({request.connection_id for request in accepted})
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

    def _store(self, requests: list[Candidate], letters: list[DeadLetter]) -> list[CancelRequest]:
        try:
            return self._commit(requests, letters)
        except SQLAlchemyError as error:
            if not refuses_the_row(error):
                raise
        # One job that the ledger refuses for good, whatever we thought of it, may not stop the others.
        self._commit([], letters)
        return [request for candidate in requests for request in self._store_alone(candidate)]

    def _store_alone(self, candidate: Candidate) -> list[CancelRequest]:
        try:
            return self._commit([candidate], [])
        except SQLAlchemyError as error:
            if not refuses_the_row(error):
                raise
            sentence = f"The ledger refused it: {type(error).__name__}."
        return self._commit([], [_letter(candidate[0], "refused_by_ledger", sentence)])

    def _commit(self, requests: list[Candidate], letters: list[DeadLetter]) -> list[CancelRequest]:
        candidates = [request for _, request in requests]
        with one_statement(self._ledger) as connection:
            new_ids = accept(connection, candidates)
        # A record that was there already, or came twice in this batch, may be for another order.
        repeated = len(new_ids) < len(candidates)
        refused = self._bury(requests if repeated else [], letters) if repeated or letters else []
        first_of_each = {request.record_id: request for request in reversed(candidates)}
        new = [request for record_id, request in first_of_each.items() if record_id in new_ids]
        for letter in refused:
            log.warning("dead_letter.kept", entry_id=letter.entry_id, reason=letter.reason, error=letter.error)
        return new

    def _bury(self, repeated: list[Candidate], letters: list[DeadLetter]) -> list[DeadLetter]:
        with self._ledger.begin() as connection:
            conflicts = find_conflicts(connection, [request for _, request in repeated])
            clashing = [
                _letter(entry, "key_conflict", key_conflict(request, conflicts[request.record_id]))
                for entry, request in repeated
                if conflicts.get(request.record_id, request.order_id) != request.order_id
            ]
            bury(connection, [*letters, *clashing])
        return [*letters, *clashing]


def sort_out(entries: list[Entry]) -> tuple[list[Candidate], list[DeadLetter]]:
    """Validate entries: what can become a cancellation, and what is kept as a dead letter."""
    requests: list[Candidate] = []
    letters: list[DeadLetter] = []
    for entry in entries:
        job = entry[1].get(JOB_FIELD)
        if UNREADABLE_FIELD in entry[1]:
            letters.append(_brought(entry))
            continue
        if job is None:
            letters.append(_letter(entry, "no_job_field", "The entry has no field `job`."))
            continue
        try:
            requests.append((entry, parse_request(job)))
        except InvalidRequest as error:
            letters.append(_letter(entry, error.reason, str(error)))
    return requests, letters


def _brought(entry: Entry) -> DeadLetter:
    entry_id, fields = entry
    # Anybody may write such an entry, so nothing is believed of it.
    source, reason, error = (printable(fields.get(name, b"").decode(errors="replace")) for name in _TOLD)
    return DeadLetter(
        source=source[:64] or INBOX,
        entry_id=entry_id.decode(),
        raw=fields[UNREADABLE_FIELD],
        reason=reason[:64] or "unreadable",
        error=error,
    )


def _letter(entry: Entry, reason: str, error: str) -> DeadLetter:
    entry_id, fields = entry
    raw = fields.get(JOB_FIELD)
    if raw is None:
        raw = b"\n".join(name + b": " + value for name, value in fields.items())
    return DeadLetter(source=INBOX, entry_id=entry_id.decode(), raw=raw, reason=reason, error=error)
