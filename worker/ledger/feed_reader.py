"""Follows the feed of events: waits for the next, keeps a consumer's place, and goes on after whatever was away.

Knows the feed and time; does not know what an event means to whoever reads it. Where the database takes no writes, as
a replica, it reads what has got its place elsewhere, and keeps none.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.event import Event
from worker.errors import CursorError, LedgerUnavailableError
from worker.inputs.identifiers import problem_of_name
from worker.ledger import feed
from worker.ledger.database import read_only
from worker.ledger.dialects import takes_no_writes
from worker.ledger.problems import ledger_errors, ledger_problem, passes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

    from sqlalchemy import Engine

    from worker.ledger.told import Told

FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.5
AWAY_SECONDS = 1.0  # between two tries where the database is away
NOW = "now"
MAX_DIGITS = 18
MOVE_SECONDS = 1.0  # a consumer's place is kept at least so often
NO_PLACES = (
    "The database is read-only, and its newest events have no place in the feed yet: whoever reads the feed of the"
    " primary server, or an endpoint, gives it to them."
)
NO_CONSUMER = (
    "The database is read-only, so the place of a consumer cannot be kept: let DATABASE_URL name the primary server,"
    " or read on with `after`, the `cursor` of an event."
)


class FeedEvent(msgspec.Struct, frozen=True):
    """An event and its place: read on with `after=cursor`."""

    event: Event
    cursor: str


class FeedReader:
    """One reader of the feed."""

    def __init__(
        self,
        ledger: Engine,
        *,
        types: Collection[str] = (),
        connections: Collection[str] = (),
        consumer: str | None = None,
    ) -> None:
        self._ledger = ledger
        self._types = frozenset(types)
        self._connections = frozenset(connections)
        if consumer is not None and (problem := problem_of_name(consumer)):
            raise CursorError(f"The name of the consumer {problem}.")
        self._consumer = consumer
        self._kept_at = time.monotonic()
        self._kept = 0  # the place that the ledger has of this consumer

    def start(self, after: str | None, since: datetime | None) -> int:
        """Return the place to begin at. Raises CursorError or LedgerUnavailableError."""
        with ledger_errors():
            self._refuse_consumer_of_replica()
            if after == NOW or since is not None:
                self._place_what_is_there()
            with read_only(self._ledger) as db:
                if since is not None:
                    return feed.place_since(db, since)
                if after == NOW:
                    return feed.end_of_feed(db)
                if after is not None:
                    feed.check_place(db, place := _place(after))
                    return place
                self._kept = (feed.place_of(db, self._consumer) or 0) if self._consumer else 0
                return self._kept

    def follow(self, place: int, timeout: float | None) -> Iterator[FeedEvent]:
        """Yield what stands beyond a place and what comes, until nothing has come for `timeout` seconds.

        A consumer's place is kept when the next event is asked for. Raises LedgerUnavailableError where the database
        is away at the end of that time, or refuses what no waiting mends.
        """
        waited = Waiting(timeout)
        done = place
        try:
            while True:
                page = self._page(done, waited)
                for told in page:
                    if self._wanted(told.event):
                        yield FeedEvent(told.event, str(told.place))
                        waited.begin_again()
                    done = told.place or done
                    self._keep(done, every=MOVE_SECONDS)
                if not page:
                    self._keep(done)
                    if waited.is_last():
                        self._say_what_has_no_place()
                        return
                    waited.pause()
        finally:
            self._keep(done)

    def _page(self, place: int, waited: Waiting) -> list[Told]:
        try:
            self._give_places()
            with read_only(self._ledger) as db:
                return feed.read_feed(db, place)
        except SQLAlchemyError as error:
            if not passes(error) or waited.is_last(AWAY_SECONDS):
                raise LedgerUnavailableError(ledger_problem(error)) from error
            time.sleep(AWAY_SECONDS)
            return []

    def _give_places(self, until: int | None = None) -> bool:
        """Give places to some of what waits for them; say whether anything did, of numbers up to `until`."""
        with read_only(self._ledger) as db:
            if not feed.without_place(db, until) or takes_no_writes(db):
                return False
        with self._ledger.begin() as db:
            given = feed.give_places(db)
        if not given:  # another transaction holds the next event for a moment
            time.sleep(FIRST_POLL_SECONDS)
        return True

    def _say_what_has_no_place(self) -> None:
        with ledger_errors(), read_only(self._ledger) as db:
            if feed.without_place(db) and takes_no_writes(db):
                raise LedgerUnavailableError(NO_PLACES)

    def _refuse_consumer_of_replica(self) -> None:
        if self._consumer is None:
            return
        with read_only(self._ledger) as db:
            if takes_no_writes(db):
                raise LedgerUnavailableError(NO_CONSUMER)

    def _place_what_is_there(self) -> None:
        with read_only(self._ledger) as db:
            newest = feed.newest_number(db)
        while self._give_places(until=newest):
            pass

    def _wanted(self, event: Event) -> bool:
        if self._types and event.type not in self._types:
            return False
        return not self._connections or getattr(event, "connection_id", None) in self._connections

    def _keep(self, place: int, every: float = 0.0) -> None:
        if self._consumer is None or place == self._kept or time.monotonic() - self._kept_at < every:
            return
        with suppress(SQLAlchemyError), self._ledger.begin() as db:  # what is not kept is told once more
            feed.move(db, self._consumer, place)
            self._kept, self._kept_at = place, time.monotonic()


class Waiting:
    """How long nothing has come, and how long to pause."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self.begin_again()

    def begin_again(self) -> None:
        self._since, self._pause = time.monotonic(), FIRST_POLL_SECONDS

    def is_last(self, seconds: float = 0.0) -> bool:
        """Whether the time is over in so many seconds."""
        return self._timeout is not None and time.monotonic() - self._since + seconds >= self._timeout

    def pause(self) -> None:
        time.sleep(self._pause)
        self._pause = min(self._pause * 1.5, MAX_POLL_SECONDS)


def _place(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_DIGITS):
        raise CursorError(f"{cursor!r} is no cursor: use the `cursor` of an event, or `now`.")
    return int(cursor)
