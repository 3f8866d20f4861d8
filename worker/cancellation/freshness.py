"""How old Trackstar's copy of a connection's orders is: which crawls have completed, and when the next ones will.

Knows what Trackstar said of one connection's crawls, and when; knows no request, no ledger, no order and no clock.
A crawl that was not surely completed is not counted: a proof rests on each one that is.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

import msgspec

MIN_PERIOD_SECONDS = 60.0
MAX_PERIOD_SECONDS = 7 * 86_400.0  # of a period, and of one crawl
NEAR_SECONDS = 120.0  # a crawl that is due within this time is worth no forced one; nor is one that is so late
_MAX_AHEAD_SECONDS = 86_400.0  # further apart, a `Date` is no clock
_FUTURE = timedelta(seconds=5)  # what two clocks may differ in after they were compared
_SAME = timedelta(seconds=1)  # instants of one crawl may be told to the second, or finer
_DATE_STEP = 1.0  # seconds that a `Date` leaves out

Broken = Literal["crawls_disabled", "crawls_failing", "crawls_overdue"]


class CrawlStatus(StrEnum):
    """What Trackstar says of a connection's crawls of orders."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    IN_PROGRESS = "in_progress"
    ERROR = "error"
    UNKNOWN = "unknown"


_MAYBE_RUNNING = {CrawlStatus.IN_PROGRESS, CrawlStatus.UNKNOWN}
_NONE_COMES = {CrawlStatus.DISABLED, CrawlStatus.ERROR}


class Schedule(msgspec.Struct, frozen=True):
    """What Trackstar says now of one connection's crawls of orders; None where it does not."""

    start: datetime | None = None  # of the latest crawl, perhaps of a running one
    end: datetime | None = None  # of the latest crawl that ended
    frequency: float | None = None  # seconds from one begin to the next
    status: CrawlStatus = CrawlStatus.UNKNOWN
    ahead: float = 0.0  # seconds that were taken off both instants; with them they are Trackstar's own again

    def in_ledger_time(self, ahead: float) -> Schedule:
        """Return the same in the ledger's time; `ahead` is Trackstar's clock minus the ledger's, in seconds."""
        by = timedelta(seconds=ahead)
        return msgspec.structs.replace(
            self, start=self.start and self.start - by, end=self.end and self.end - by, ahead=self.ahead + ahead
        )


class Crawls(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one connection's crawls. Instants are the ledger's unless it says otherwise."""

    began_at: datetime | None = None  # of the latest completed crawl
    ended_at: datetime | None = None
    before_began_at: datetime | None = None  # of the completed one before it
    running_since: datetime | None = None
    frequency: float | None = None  # seconds
    length: float = 0.0  # seconds; the longest of the last ones
    status: CrawlStatus = CrawlStatus.UNKNOWN
    seen_at: datetime  # when Trackstar was asked
    # How Trackstar knows its crawls: by its own clock, for two readings of it differ by how long an answer took.
    ahead: float = 0.0  # seconds that were taken off `began_at` and `ended_at`
    running_ahead: float = 0.0  # and off `running_since`
    failed: datetime | None = None  # Trackstar's own instant at which the last crawl began that ended in an error

    @property
    def known(self) -> bool:
        """Whether enough is told to say when a copy is renewed."""
        some = self.began_at or self.ended_at or self.running_since
        return self.status is not CrawlStatus.UNKNOWN and self.frequency is not None and some is not None

    def next_end(self, after: datetime) -> datetime | None:
        """Return when the first crawl that begins after `after` is expected to end; None where nothing says it."""
        return self._end_of(1, after)

    def end_of_second(self, after: datetime) -> datetime | None:
        """Return the same of the second such crawl."""
        return self._end_of(2, after)

    def _end_of(self, number: int, after: datetime) -> datetime | None:
        if self.frequency is None or self.began_at is None:
            return None
        known = [begin for begin in self._begins() if begin > after]
        if len(known) >= number:
            begin = known[number - 1]
        else:
            begin = _later(self._begins()[-1], self.frequency, after, number - len(known))
        return begin + timedelta(seconds=self.length)

    def _begins(self) -> list[datetime]:
        return [begin for begin in (self.before_began_at, self.began_at, self.running_since) if begin]

    def overdue(self, now: datetime) -> bool:
        """Whether two periods passed, and a crawl's length, in which none has completed.

        Counted up to the moment at which Trackstar was asked: whoever has not asked has missed nothing.
        """
        since = self.began_at or self.ended_at or self.running_since
        if self.frequency is None or since is None:
            return False
        return min(now, self.seen_at) > since + timedelta(seconds=2 * self.frequency + self.length)


def ahead_of(date: datetime | None, asked_at: datetime) -> float:
    """Return how far Trackstar's clock is ahead of the ledger's, in seconds, from an answer's `Date`.

    The most that it may be: so no crawl is taken for later than it was. 0 where the header is missing or no clock.
    """
    ahead = (date - asked_at).total_seconds() + _DATE_STEP if date else 0.0
    return ahead if abs(ahead) <= _MAX_AHEAD_SECONDS else 0.0


def observe(known: Crawls | None, seen: Schedule | None, now: datetime) -> Crawls | None:
    """Return what is known once Trackstar was asked: `seen` is None where it said nothing of this connection.

    `seen` and `now` are the ledger's time. What was completed stays so, whatever is missing now; a begin that goes
    back counts no crawl. None where nothing was ever known.
    """
    if seen is None or (known is None and seen == Schedule(ahead=seen.ahead)):
        return known and msgspec.structs.replace(known, status=CrawlStatus.UNKNOWN, seen_at=now)
    seen = _believed(seen, now)
    before = known or Crawls(seen_at=now)
    after = _with_completed(before, seen)
    running = _running(before, after, seen)
    return msgspec.structs.replace(
        after,
        running_since=_off(running, seen.ahead),
        running_ahead=seen.ahead,
        frequency=seen.frequency or before.frequency,
        status=seen.status,
        seen_at=now,
        failed=(_own(seen.start, seen.ahead) if seen.status is CrawlStatus.ERROR else None) or before.failed,
    )


def crawls_since(crawls: Crawls | None, instant: datetime) -> int:
    """Return how many completed crawls are known that began after `instant`: 0, 1 or 2."""
    if crawls is None:
        return 0
    return sum(begin is not None and begin > instant for begin in (crawls.began_at, crawls.before_began_at))


def forecast(crawls: Crawls | None) -> object:
    """Return what the times rest on by which something is known: two that are equal foresee the same."""
    if crawls is None or crawls.status is CrawlStatus.UNKNOWN:
        return None
    return (crawls.known, crawls.frequency, crawls.began_at)


def broken(crawls: Crawls | None, now: datetime) -> Broken | None:
    """Return why no crawl is to be expected; None where one is, or nothing is known."""
    if crawls is None:
        return None
    if crawls.status is CrawlStatus.DISABLED:
        return "crawls_disabled"
    if crawls.status is CrawlStatus.ERROR:
        return "crawls_failing"
    return "crawls_overdue" if crawls.overdue(now) else None


def needs_forcing(crawls: Crawls | None, now: datetime) -> bool:
    """Whether a crawl is worth asking for: none is running, and none is due by itself within two minutes."""
    if crawls is None:
        return True
    if crawls.status is CrawlStatus.IN_PROGRESS or crawls.running_since:
        return False
    if crawls.status in _NONE_COMES or crawls.began_at is None or crawls.frequency is None:
        return True
    near = timedelta(seconds=NEAR_SECONDS)
    return _later(crawls.began_at, crawls.frequency, now - near, 1) > now + near


def _later(begin: datetime, frequency: float, after: datetime, number: int) -> datetime:
    """Return the `number`-th expected begin that is later than both `begin` and `after`."""
    passed = max(0, math.floor((after - begin).total_seconds() / frequency))
    return begin + timedelta(seconds=(passed + number) * frequency)


def _believed(seen: Schedule, now: datetime) -> Schedule:
    start, end = (instant if instant and instant <= now + _FUTURE else None for instant in (seen.start, seen.end))
    return msgspec.structs.replace(seen, start=start, end=end)


def _with_completed(crawls: Crawls, seen: Schedule) -> Crawls:
    start, end = _own(seen.start, seen.ahead), _own(seen.end, seen.ahead)
    running = _own(crawls.running_since, crawls.running_ahead)
    if end is None:
        return crawls
    if start is None:
        # It ended, and nobody says when it began: that tells of no crawl after any instant.
        return crawls if crawls.began_at else msgspec.structs.replace(crawls, ended_at=seen.end, ahead=seen.ahead)
    if _newer(start, crawls) and _is_complete(seen):
        return _counted(crawls, start, end, seen.ahead)
    # An end between the begin that was running and a newer begin is the end of the former: where crawls follow each
    # other at once, none is ever seen completed. An end behind both tells nothing: it may have been begun again.
    # Nor where crawls fail: then it may be the end of a failure.
    failing = seen.status is CrawlStatus.ERROR or _fails(crawls)
    if running and running + _SAME < end < start and not failing:
        return _counted(crawls, running, end, seen.ahead)
    return crawls


def _fails(crawls: Crawls) -> bool:
    """Whether no crawl has completed since the last one that failed."""
    began = _own(crawls.began_at, crawls.ahead)
    return crawls.failed is not None and (began is None or crawls.failed > began)


def _is_complete(seen: Schedule) -> bool:
    if seen.start is None or seen.end is None or seen.status in {CrawlStatus.IN_PROGRESS, CrawlStatus.ERROR}:
        return False
    # Told to the second, both instants of a short crawl are the same. Where nothing says that none runs, they may be
    # the end of one and the begin of the next.
    return seen.end > seen.start or (seen.end == seen.start and seen.status is CrawlStatus.ENABLED)


def _counted(crawls: Crawls, start: datetime, end: datetime, ahead: float) -> Crawls:
    length = min((end - start).total_seconds(), MAX_PERIOD_SECONDS)
    return msgspec.structs.replace(
        crawls,
        began_at=_off(start, ahead),
        ended_at=_off(end, ahead),
        before_began_at=crawls.began_at,
        length=max(length, (length + crawls.length) / 2),  # a longer one counts at once, and is forgotten slowly
        ahead=ahead,
    )


def _running(before: Crawls, after: Crawls, seen: Schedule) -> datetime | None:
    """Return Trackstar's own instant since which a crawl may be running."""
    if seen.status not in _MAYBE_RUNNING:
        return None
    start = _own(seen.start, seen.ahead)
    if start is None:
        known = _own(before.running_since, before.running_ahead)
        return known if known and _newer(known, after) else None
    over = seen.end is not None and seen.start is not None and seen.end >= seen.start
    return start if _newer(start, after) and not over else None


def _newer(start: datetime, crawls: Crawls) -> bool:
    """Whether a crawl that began then, by Trackstar's clock, is a later one than all that completed or failed."""
    over = (_own(crawls.began_at, crawls.ahead), crawls.failed)
    return all(begin is None or start > begin + _SAME for begin in over)


def _own(instant: datetime | None, ahead: float) -> datetime | None:
    return instant and instant + timedelta(seconds=ahead)


def _off(instant: datetime | None, ahead: float) -> datetime | None:
    return instant and instant - timedelta(seconds=ahead)
