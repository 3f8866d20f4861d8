"""From entries to rows: each is judged, and becomes a cancellation or a dead letter, in batches.

Knows what a job is, who may bring it, and how it gets into the ledger; does not know how entries are read or settled.
All of it is safe to do twice.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.celery_message import UnacceptableMessage, read_message, read_unacknowledged
from worker.cancellation.request import CancelRequest, InvalidRequest, parse_request
from worker.inputs import entries as fields
from worker.ledger.database import refuses_the_row
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.notices import add_already_ended
from worker.ledger.queries import conflict_of, find_standing
from worker.ledger.transitions import accept_batch
from worker.streams import CELERY_LIST, inbox_of, producer_of
from worker.telemetry.metrics import priority_label, word_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine

    from worker.inputs.entries import Entry
    from worker.ledger.queries import Standing
    from worker.runtime.inboxes import Inboxes
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger()

Candidate = tuple["Entry", CancelRequest]


class Acceptance:
    """Judges what was read and stores it; who calls it settles the entries afterwards."""

    def __init__(self, ledger: Engine, inboxes: Inboxes, metrics: Metrics) -> None:
        self._ledger = ledger
        self._inboxes = inboxes
        self._metrics = metrics
        self._ended = RecentlyTold()
        self._new: list[CancelRequest] = []  # stored, and not returned yet

    def take_in(self, entries: list[Entry]) -> list[CancelRequest]:
        """Store each as a row or a dead letter; return what is new.

        Raises SQLAlchemyError where some of it may not be stored: to take it in again is harmless, and what is new
        is returned then.
        """
        requests, dead_letters = sort_out(entries)
        if any(_producer(entry) for entry, _ in requests):
            requests, refused = self._allowed(requests)
            dead_letters += refused
        self._store(requests, dead_letters)
        new, self._new = self._new, []
        return new

    def _allowed(self, requests: list[Candidate]) -> tuple[list[Candidate], list[DeadLetter]]:
        """Return what its producer may bring, and what is kept because it may not."""
        why = self._inboxes.refusals([(_producer(entry), request) for entry, request in requests])
        judged = list(zip(requests, why, strict=True))
        return [each for each, no in judged if not no], [_dead_letter(each[0], *no) for each, no in judged if no]

    def _store(self, requests: list[Candidate], dead_letters: list[DeadLetter]) -> None:
        try:
            self._commit(requests, dead_letters)
        except (SQLAlchemyError, UnicodeError) as error:
            if not _is_at_fault_itself(error):
                raise
            # One job that the ledger refuses for good, whatever we thought of it, may not stop the others.
            self._commit([], dead_letters)
            for candidate in requests:
                self._store_alone(candidate)

    def _store_alone(self, candidate: Candidate) -> None:
        try:
            self._commit([candidate], [])
        except (SQLAlchemyError, UnicodeError) as error:
            if not _is_at_fault_itself(error):
                raise
            sentence = f"The ledger refused it: {type(error).__name__}."
            self._commit([], [_dead_letter(candidate[0], "refused_by_ledger", sentence)])

    def _commit(self, requests: list[Candidate], dead_letters: list[DeadLetter]) -> None:
        """Store requests in one transaction, and dead letters, also of what was refused there, in a second."""
        candidates = [request for _, request in requests]
        new_ids = accept_batch(self._ledger, candidates, [_producer(entry) for entry, _ in requests])
        first_of_each = {candidate[1].record_id: candidate for candidate in reversed(requests)}
        accepted = [candidate for record_id, candidate in first_of_each.items() if record_id in new_ids]
        self._count(accepted)
        self._new += [request for _, request in accepted]
        # A record that was there already, or came twice in this batch, may be for another order.
        repeated = len(new_ids) < len(candidates)
        if repeated or dead_letters:
            self._keep_dead_letters(requests if repeated else [], dead_letters)

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
    MOST = 1_000  # in that time: the stream keeps 100,000 events, and repeats may push no outcome off it

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
    return "celery" if entry.field in fields.OF_CELERY and not _producer(entry) else "inbox"


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


def _producer(entry: Entry) -> str | None:
    return producer_of(entry.stream) if entry.stream else None


def _dead_letter(entry: Entry, reason: str, error: str) -> DeadLetter:
    producer = _producer(entry)
    source = CELERY_LIST if producer is None and entry.field in fields.OF_CELERY else inbox_of(producer)
    return DeadLetter(source=source, entry_id=entry.id, raw=entry.raw, reason=reason, error=error)
