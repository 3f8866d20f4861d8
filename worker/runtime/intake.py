"""Inbox to ledger: read a batch, validate, insert what is new at once, then acknowledge and delete.

Knows the stream and how a job gets into the ledger; does not know what happens to it there. All of it is safe to do
twice.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace
from redis import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.celery_message import UnacceptableMessage, read_message, read_unacknowledged
from worker.cancellation.request import CancelRequest, InvalidRequest, parse_request
from worker.inputs import entries as fields
from worker.ledger.database import refuses_the_row
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.notices import add_already_ended, add_stream_repaired
from worker.ledger.queries import conflict_of, find_standing
from worker.ledger.transitions import accept_batch
from worker.runtime.inbox_reader import BATCH, BLOCK_MS, TAKE_OVER_AFTER_MS, TAKE_OVER_EVERY_SECONDS, InboxReader
from worker.runtime.loop import Loop
from worker.runtime.refusals import Refusals
from worker.runtime.stream_ids import StreamIds
from worker.streams import CELERY_LIST, DEAD_LETTERS, EVENTS, INBOX, INBOX_AHEAD
from worker.telemetry.health import REDIS
from worker.telemetry.metrics import Metrics, priority_label, word_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.inputs.entries import Entry
    from worker.ledger.queries import Standing
    from worker.telemetry.health import Vitals

__all__ = ["BATCH", "TAKE_OVER_AFTER_MS", "Intake", "sort_out"]

log = structlog.get_logger()

KEYS = dict.fromkeys((INBOX, INBOX_AHEAD, EVENTS, DEAD_LETTERS), "stream")

Candidate = tuple["Entry", CancelRequest]


class Intake:
    """One thread that empties the inbox into the ledger."""

    def __init__(
        self,
        redis: Redis,
        ledger: Engine,
        name: str,
        on_accepted: Callable[[set[str]], None],
        vitals: Vitals,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._reader = InboxReader(redis, name)
        self._stream_ids = StreamIds(redis)
        self._refusals = Refusals(redis, "The inbox", KEYS, vitals)
        self._ledger = ledger
        self._on_accepted = on_accepted
        self._vitals = vitals
        self._repaired_at = -TAKE_OVER_EVERY_SECONDS
        self._ended = RecentlyTold()
        self.loop = Loop("intake", self._tick, expected=(RedisError, SQLAlchemyError))

    def stop(self) -> None:
        """Take nothing new, and wait until what was taken is settled or left for another worker."""
        self.loop.stop(BLOCK_MS / 1000 + 5)

    def _tick(self) -> float:
        try:
            self.take()
        except ResponseError as error:
            if "NOGROUP" in str(error):
                self._reader.make_group()
                return 0.0
            self._refusals.note(error)
            raise
        self._refusals.over()
        return 0.0

    def take(self) -> int:
        """Take one batch: what was in hand, what is new, what was put aside. Return how many entries were settled."""
        self._repair()
        entries = self._reader.next() if not self._stream_ids.aside else self._reader.take(INBOX)
        self._vitals.responded(REDIS)
        self._settle(INBOX, entries)
        while self._reader.suspects and self.loop.running:
            entries += (alone := self._reader.take(INBOX, idle=TAKE_OVER_AFTER_MS))
            self._settle(INBOX, alone)
        aside: list[Entry] = []
        if self._stream_ids.aside:
            aside = self._reader.take(INBOX_AHEAD, idle=TAKE_OVER_AFTER_MS)
            self._settle(INBOX_AHEAD, aside)
            self._stream_ids.aside = len(aside)  # until it is looked at again
        return len(entries) + len(aside)

    def _repair(self) -> None:
        if time.monotonic() - self._repaired_at < TAKE_OVER_EVERY_SECONDS:
            return
        for each in self._stream_ids.repair():
            log.error("stream.repaired", stream=each.stream, problem=each.problem)
            with self._ledger.begin() as db:
                add_stream_repaired(db, each.stream, each.problem)
        self._repaired_at = time.monotonic()

    def _settle(self, stream: str, entries: list[Entry]) -> None:
        if not entries:
            return
        try:
            accepted = self._take_in(entries)
        except SQLAlchemyError:
            self._reader.release(stream, entries)
            raise
        # Only now: what is acknowledged is in the ledger.
        self._reader.settle(stream, entries)
        for request in accepted:
            log.info("cancellation.requested", **request.named)

    def _take_in(self, entries: list[Entry]) -> list[CancelRequest]:
        requests, dead_letters = sort_out(entries)
        accepted = self._store(requests, dead_letters)
        if accepted:
            self._on_accepted({request.connection_id for request in accepted})
            time.sleep(0)  # gives up the GIL: the dispatcher goes first, an acknowledgement can wait
        return accepted

    def _store(self, requests: list[Candidate], dead_letters: list[DeadLetter]) -> list[CancelRequest]:
        try:
            return self._commit(requests, dead_letters)
        except (SQLAlchemyError, UnicodeError) as error:
            if not _is_at_fault_itself(error):
                raise
        # One job that the ledger refuses for good, whatever we thought of it, may not stop the others.
        self._commit([], dead_letters)
        return [request for candidate in requests for request in self._store_alone(candidate)]

    def _store_alone(self, candidate: Candidate) -> list[CancelRequest]:
        try:
            return self._commit([candidate], [])
        except (SQLAlchemyError, UnicodeError) as error:
            if not _is_at_fault_itself(error):
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
        first_of_each = {candidate[1].record_id: candidate for candidate in reversed(requests)}
        accepted = [candidate for record_id, candidate in first_of_each.items() if record_id in new_ids]
        self._count(accepted)
        return [request for _, request in accepted]

    def _count(self, accepted: list[Candidate]) -> None:
        found = Counter((_source(entry), priority_label(request.priority)) for entry, request in accepted)
        for labels, count in found.items():
            self._metrics.of(self._metrics.accepted, *labels).inc(count)

    def _keep_dead_letters(self, repeated: list[Candidate], unreadable: list[DeadLetter]) -> None:
        try:
            self._write_dead_letters(repeated, unreadable, error_of=str)
        except (SQLAlchemyError, UnicodeError) as error:
            if not _is_at_fault_itself(error):
                raise
            # It may quote what the encoding of this ledger cannot hold.
            self._write_dead_letters(repeated, unreadable, error_of=ascii)

    def _write_dead_letters(
        self, repeated: list[Candidate], unreadable: list[DeadLetter], error_of: Callable[[str], str]
    ) -> None:
        with self._ledger.begin() as db:
            standing = find_standing(db, [request for _, request in repeated])
            clashing = [
                _dead_letter(entry, "key_conflict", sentence)
                for entry, request in repeated
                if (sentence := conflict_of(request, standing.get(request.record_id)))
            ]
            kept = insert_dead_letters(
                db, [replace(each, error=error_of(each.error)) for each in (*unreadable, *clashing)]
            )
            ended = self._ended.news([found for found in standing.values() if found.ended_at])
            add_already_ended(db, ended)
        self._ended.told(ended)
        for each in kept:
            self._metrics.of(self._metrics.dead_letters, word_label(each.reason)).inc(each.count)
            # Our words and counts only: the error may quote the job.
            log.warning("dead_letter.kept", source=each.source, reason=each.reason, count=each.count, kept=each.kept)
        if ended:
            log.info("cancellation.already_ended", count=len(ended))


class RecentlyTold:
    """Which records were told of lately: a producer that repeats itself is answered once a minute for each."""

    SECONDS = 60.0
    MOST = 1_000  # in that time: events about what is known already may push no outcome off the stream

    def __init__(self) -> None:
        self._since = 0.0
        self._ids: set[str] = set()

    def news(self, ended: Sequence[Standing]) -> list[Standing]:
        """Return those that were not told of lately, as many as may be told."""
        if time.monotonic() - self._since > self.SECONDS:
            self._since, self._ids = time.monotonic(), set()
        return [found for found in ended if found.id not in self._ids][: self.MOST - len(self._ids)]

    def told(self, ended: Sequence[Standing]) -> None:
        """Note that these were told of."""
        self._ids.update(found.id for found in ended)


def _is_at_fault_itself(error: Exception) -> bool:
    # A text that the encoding of the ledger cannot hold does not even get there.
    return isinstance(error, UnicodeError) or refuses_the_row(error)


def _source(entry: Entry) -> str:
    return "celery" if entry.field in fields.OF_CELERY else "inbox"


def sort_out(entries: list[Entry]) -> tuple[list[Candidate], list[DeadLetter]]:
    """Validate entries: what can become a cancellation, and what is kept as a dead letter."""
    requests: list[Candidate] = []
    dead_letters: list[DeadLetter] = []
    for entry in entries:
        try:
            requests.append((entry, parse_request(_job_of(entry))))
        except (InvalidRequest, UnacceptableMessage) as error:
            dead_letters.append(_dead_letter(entry, error.reason, str(error)))
    return requests, dead_letters


def _job_of(entry: Entry) -> bytes:
    if entry.refusal:
        raise InvalidRequest(entry.refusal, entry.sentence)
    if entry.field == fields.JOB:
        return entry.raw
    if entry.field == fields.CELERY:
        return read_message(entry.raw)
    if entry.field == fields.UNACKED:
        return read_unacknowledged(entry.raw)
    raise InvalidRequest("no_job_field", "The entry has no field `job`.")


def _dead_letter(entry: Entry, reason: str, error: str) -> DeadLetter:
    source = CELERY_LIST if entry.field in fields.OF_CELERY else INBOX
    return DeadLetter(source=source, entry_id=entry.id, raw=entry.raw, reason=reason, error=error)
