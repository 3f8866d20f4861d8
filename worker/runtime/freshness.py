"""Learns from Trackstar how fresh each connection's copy is, and asks for a crawl where somebody waits for one.

Has a thread of its own in every worker; together they ask at most every half minute, and only while something waits
for proof or is watched. Knows crawls, paces and rows; what a crawl proves, `cancellation.proof` says, and what crawls
have brought, `second_look` reads.
"""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import structlog
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.answer import NoReply
from worker.cancellation.freshness import ahead_of, broken, forecast, needs_forcing, observe
from worker.cancellation.outage import is_failure
from worker.cancellation.proof import foresee
from worker.ledger import freshness, rereads
from worker.ledger.database import read_only
from worker.ledger.vault import CredentialsError, of_connection
from worker.runtime.attempt import LedgerClock
from worker.runtime.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from redis import Redis
    from sqlalchemy import Engine

    from worker.cancellation.freshness import Crawls, Schedule
    from worker.ledger.freshness import Watch
    from worker.runtime.attempt import AttemptContext
    from worker.runtime.known_crawls import KnownCrawls
    from worker.runtime.second_look import SecondLook

log = structlog.get_logger()

ASK_SECONDS = 30  # between two questions of all workers together
TICK_SECONDS = 5.0
FORCE_SECONDS = 300.0  # between two crawls of one connection that are asked for
REFUSED_SECONDS = 3600.0  # for so long nobody asks again where Trackstar refuses
BUDGET_SECONDS = 20.0  # of one tick, for crawls that are asked for; the rest is left to the next
MAX_PAGES = 100
ROWS = 1_000  # in one statement
ASKED = "cancellations:freshness:asked"  # a key of Redis that lives for ASK_SECONDS


class Freshness:
    """One thread that follows the crawls of all connections of which something is to be known."""

    def __init__(
        self,
        redis: Redis,
        ledger: Engine,
        context: AttemptContext,
        known: KnownCrawls,
        second_look: SecondLook,
        *,
        rate: float,
        force: bool,
        on_changed: Callable[[], None],
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        self._redis: Any = redis
        self._ledger = ledger
        self._context = context
        self._known = known
        self._second_look = second_look
        self._rate = rate  # writes per second, where a connection has none of its own
        self._force_allowed = force
        self._on_changed = on_changed
        self._ask_seconds = ask_seconds
        self.loop = Loop("freshness", self._tick, expected=(RedisError, SQLAlchemyError, OSError))

    def _tick(self) -> float:
        with read_only(self._ledger) as db:
            watched = freshness.watched(db, self._context.policy.watch)
            self._known.replace(freshness.crawls_of_all(db))
        if not watched:
            return self._ask_seconds
        # Never ahead of the ledger's own clock: no crawl may seem to have begun later than it did.
        clock = LedgerClock(watched[0].now, time.monotonic())
        if self._may_ask():
            watched = self._ask(watched, clock)
        self._second_look.run(watched, clock, lambda: self.loop.running)
        if self._force_allowed:
            self._force(watched, clock)
        return min(TICK_SECONDS, self._ask_seconds)

    # -- what Trackstar says

    def _may_ask(self) -> bool:
        """Whether nobody has asked within the last half minute; this is then the one who asks."""
        if self._redis.set(ASKED, 1, nx=True, px=round(self._ask_seconds * 1000)):
            return True
        if self._redis.pttl(ASKED) == -1:  # not ours: it would keep everyone from asking for ever
            self._redis.unlink(ASKED)
        return False

    def _ask(self, watched: Sequence[Watch], clock: LedgerClock) -> list[Watch]:
        schedules = self._schedules(clock)
        if schedules is None:
            return list(watched)
        now = clock.now()
        seen = [(each, observe(each.crawls, schedules.get(each.trackstar_id), now)) for each in watched]
        with self._ledger.begin() as db:
            freshness.keep(db, {each.connection_id: crawls for each, crawls in seen})
            rereads.adopt(db)
        for each, crawls in seen:
            self._follow(each, crawls, now)
        with read_only(self._ledger) as db:
            self._known.replace(freshness.crawls_of_all(db))
            return freshness.watched(db, self._context.policy.watch)

    def _schedules(self, clock: LedgerClock) -> dict[str, Schedule] | None:
        """Return what Trackstar says of its crawls, by its id; nothing where it says none; None without an answer."""
        found: dict[str, Schedule] = {}
        token: str | None = None
        for _ in range(MAX_PAGES):
            asked_at = clock.now()
            answer = self._context.trackstar.read_connections(token)
            if isinstance(answer, NoReply) or not _is_final(answer.status):
                return None
            if answer.status != HTTPStatus.OK:
                self._say_once(answer.status)
                return {}
            ahead = ahead_of(answer.date, asked_at)
            found |= {each.id: each.schedule.in_ledger_time(ahead) for each in answer.connections if each.schedule}
            token = answer.next_token
            if token is None:
                break
        return found

    _said: int | None = None

    def _say_once(self, status: int) -> None:
        if status != self._said:
            self._said = status
            log.warning("freshness.not_told", http_status=status)

    # -- what follows from it

    def _follow(self, watch: Watch, crawls: Crawls | None, now: datetime) -> None:
        """Let what waits be read or sent again after a crawl, and say anew by when the rest is known."""
        before = watch.crawls
        completed = crawls is not None and crawls.began_at != (before.began_at if before else None)
        if completed:
            self._after_a_crawl(watch.connection_id)
        elif watch.look_at is None and not (crawls and crawls.known):
            with self._ledger.begin() as db:  # nobody tells of crawls: what has changed is read by the hour
                freshness.look_now(db, watch.connection_id)
        problem, was = broken(crawls, now), broken(before, before.seen_at) if before else None
        if problem and problem != was:
            log.warning("freshness.crawls_fail", connection_id=watch.connection_id, problem=problem)
        elif was and not problem:
            log.info("freshness.crawls_again", connection_id=watch.connection_id)
        changed = completed or problem != was or forecast(before) != forecast(crawls)
        overtaken = watch.next_known_by is not None and watch.next_known_by <= now
        if changed or overtaken or (watch.with_person and watch.readable and not problem):
            self._revise(watch, crawls, now)

    def _after_a_crawl(self, connection_id: str) -> None:
        with self._ledger.begin() as db:
            freshness.look_now(db, connection_id)
        for move in (rereads.read_soon, rereads.send_soon):
            moved = ROWS
            while moved == ROWS and self.loop.running:
                with self._ledger.begin() as db:
                    moved = move(db, connection_id, ROWS)
        self._on_changed()

    def _revise(self, watch: Watch, crawls: Crawls | None, now: datetime) -> None:
        policy = self._context.policy
        then = partial(foresee, now=now, crawls=crawls, policy=policy, held=not watch.readable)
        after: str | None = ""
        while after is not None and self.loop.running:
            with self._ledger.begin() as db:
                after = rereads.revise(db, watch.connection_id, then, ROWS, after)
        self._on_changed()

    # -- crawls that are asked for

    def _force(self, watched: Sequence[Watch], clock: LedgerClock) -> None:
        until = time.monotonic() + BUDGET_SECONDS
        for watch in watched:
            now = clock.now()
            waits = watch.waits and watch.hold_reason is None and not (watch.force_after and watch.force_after > now)
            if waits and watch.asked and needs_forcing(watch.crawls, now) and self._may_go_on(until):
                self._ask_for_a_crawl(watch)

    def _may_go_on(self, until: float) -> bool:
        return time.monotonic() < until and self.loop.running

    def _ask_for_a_crawl(self, watch: Watch) -> None:
        with self._ledger.begin() as db:
            if not freshness.claim_forcing(db, watch.connection_id, FORCE_SECONDS):
                return
        try:
            token = self._context.decrypt(watch.encrypted_token, of_connection(watch.connection_id))
        except CredentialsError:
            return  # whoever sends says it
        pace = self._context.pace
        slots = pace.writes.reserve({watch.connection_id: (watch.writes_per_second or self._rate, 1)})
        if not slots[watch.connection_id].count:
            return
        pace.used("write")
        time.sleep(max(0.0, slots[watch.connection_id].first - time.monotonic()))
        answer = self._context.trackstar.force_crawl(access_token=token)
        pace.observe("cancel", watch.connection_id, answer)
        if isinstance(answer, NoReply) or not _is_final(answer.status):
            return
        with self._ledger.begin() as db:
            if answer.status != HTTPStatus.OK:
                freshness.put_off_forcing(db, watch.connection_id, REFUSED_SECONDS)
            elif answer.id and answer.id != watch.trackstar_id and not (watch.crawls and watch.crawls.known):
                freshness.set_trackstar_id(db, watch.connection_id, answer.id)
        log.info("freshness.crawl_forced", connection_id=watch.connection_id, http_status=answer.status)


def _is_final(status: int) -> bool:
    """Whether asking again soon would be answered in the same way: neither too fast, nor no access, nor a failure."""
    return is_failure(status) is False and status != HTTPStatus.REQUEST_TIMEOUT
