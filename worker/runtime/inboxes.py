"""Which inboxes there are, and what the producer of each may: from the table, kept for a moment.

Each worker looks every few seconds, so that what a person changes is followed without a restart. Knows names and
rights; does not know entries, nor what becomes of a job.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis import ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.producer import Producer, problem_of_producer, refusal_of
from worker.ledger import producers
from worker.ledger.database import read_only
from worker.ledger.problems import lacks_a_right, ledger_problem
from worker.runtime.inbox_reader import Inbox
from worker.streams import INBOX, inbox_of, producer_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.request import CancelRequest

MAX_STRANGE = 20  # streams of producers that nobody has added, which are emptied at once
_SCANNED = 1_000  # keys that one look walks over: all, of a Redis that is ours alone

# A stream of a producer that nobody has added is deleted once it is empty, in one step: what comes between is seen.
_DROP = """
local left = {}
for i, inbox in ipairs(KEYS) do
  if redis.pcall('XLEN', inbox) == 0 then redis.call('DEL', inbox) end
  left[i] = redis.call('EXISTS', inbox)
end
return left
"""


class Inboxes:
    """The inboxes that this worker reads; their names may be asked for from any thread."""

    def __init__(self, redis: Redis, ledger: Engine) -> None:
        self._redis: Any = redis
        self._ledger = ledger
        self._drop = redis.register_script(_DROP)
        self._producers: dict[str, Producer] = {}
        self._strange: tuple[str, ...] = ()
        self._cursor = 0
        self.streams: tuple[str, ...] = (INBOX,)
        self.problem = ""  # why inboxes with a name are not read, in a sentence

    def refresh(self) -> None:
        """Look again: streams first and the table then, so that a producer that was just added is not strange.

        A ledger that is away changes nothing: who writes to it says so. Of a right that is missing, nobody else tells.
        """
        found = self._scan() | self._still_there()
        try:
            self._read()
        except SQLAlchemyError as error:
            self.problem = ledger_problem(error) if lacks_a_right(error) else self.problem
            return
        self.problem = ""
        unknown = (each for each in found if each not in self._producers)
        self._strange = tuple(map(inbox_of, sorted(unknown)[:MAX_STRANGE]))
        self.streams = (INBOX, *map(inbox_of, self._producers), *self._strange)

    def _scan(self) -> set[str]:
        """Return the producers whose streams are there, as far as one look goes."""
        try:
            self._cursor, keys = self._redis.scan(self._cursor, match=f"{INBOX}:*", count=_SCANNED, _type="stream")
        except ResponseError:
            return set()  # without the right to look nobody strange is noticed; `doctor` says so
        return set(_names(keys))

    def _still_there(self) -> set[str]:
        """Return of those that were strange the ones whose streams are not empty, and drop the others."""
        if not self._strange:
            return set()
        left = self._drop(keys=self._strange)
        return {str(producer_of(each)) for each, there in zip(self._strange, left, strict=True) if there}

    def _read(self) -> None:
        with read_only(self._ledger) as db:
            self._producers = producers.rights(db)

    def to_read(self, aside: Collection[str]) -> list[Inbox]:
        """Return what is to be read, with the rate of each; `aside`: inboxes that a repair has put there."""
        strange = set(self._strange)
        return [
            *(Inbox(each, self._rate(each), lasting=each not in strange) for each in self.streams),
            *(Inbox(each, self._rate(each), lasting=False) for each in aside),
        ]

    def _rate(self, stream: str) -> float:
        producer = self._producers.get(producer_of(stream) or "")
        return (producer.per_second if producer else None) or 0.0

    def refusals(self, jobs: Sequence[tuple[str | None, CancelRequest]]) -> list[tuple[str, str] | None]:
        """Return for each job why its producer may not bring it, as a reason and a sentence; None where it may.

        Nothing is refused by what may have changed: the table is read again first. Raises SQLAlchemyError.
        """
        found = [self._refusal(*job) for job in jobs]
        if any(found):
            self._read()
            found = [self._refusal(*job) for job in jobs]
        return found

    def _refusal(self, name: str | None, request: CancelRequest) -> tuple[str, str] | None:
        return None if name is None else refusal_of(self._producers.get(name), name, request)


def _names(keys: Iterable[bytes]) -> Iterable[str]:
    for key in keys:
        with suppress(UnicodeDecodeError):
            name = producer_of(key.decode()) or ""
            if problem_of_producer(name) is None:
                yield name
