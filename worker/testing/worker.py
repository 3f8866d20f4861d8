"""A worker without threads: it does what is due when it is told to, one thing after another.

What it does, and when, are production's own parts and statements; only whose turn it is, and the pace, it leaves out.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.ledger import connections, deadlines, freshness, holds, transitions
from worker.ledger.claims import RefusalClaim, SendClaim
from worker.ledger.database import read_only
from worker.ledger.results import commit_results
from worker.ledger.schema import connections as table
from worker.runtime.attempt import AttemptContext, LedgerClock, attempt, batches_of_reads, confirm, read_refused
from worker.runtime.freshness import Freshness
from worker.runtime.known_crawls import KnownCrawls
from worker.runtime.maintenance import Handlers, Maintenance
from worker.runtime.second_look import SecondLook
from worker.trackstar.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Engine

    from worker.cancellation.policy import Policy
    from worker.dev.sandbox import World
    from worker.ledger.claims import Claim, ConfirmClaim
    from worker.ledger.results import Result
    from worker.trackstar.client import TrackstarClient

OWNER = "trackstar-sandbox"
LEASE_SECONDS = 180.0
RATE = 50.0  # writes per second: only forecasts rest on it
MANY = 500
CRAWL_EVERY, CRAWL_SECONDS = 3600.0, 60.0
_A_MOMENT = timedelta(milliseconds=1)  # what an instant that was a float may be too early


class InProcessWorker:
    """All threads of a worker in the caller's; `prepare` hears of each order before it is asked for."""

    def __init__(
        self,
        ledger: Engine,
        world: World,
        trackstar: TrackstarClient,
        policy: Policy,
        prepare: Callable[[str, str], None],
    ) -> None:
        self._ledger = ledger
        self._world = world
        self._policy = policy
        self._prepare = prepare
        known = KnownCrawls()
        self._context = AttemptContext(
            trackstar=trackstar,
            decrypt=lambda token, _place: token,
            policy=policy,
            pace=_NoPace(),
            start_within=LEASE_SECONDS,
            crawls=known.of,
            jitter=lambda: 0.5,
        )
        look = SecondLook(ledger, self._context, lambda result: self._record([result]))
        self._crawls = _Crawls(
            None,  # type: ignore[arg-type] # Redis only says who of all workers asks
            ledger,
            self._context,
            known,
            look,
            rate=RATE,
            force=False,
            on_changed=lambda: None,
        )
        handlers = Handlers(
            at_start=lambda _ledger: None,
            on_ready=lambda _connection_ids: None,
            rescue=lambda _claims: None,
            confirm=self._confirm,
            publish_events=lambda: None,
            expired=lambda _ended: None,
            crawls=known.of,
        )
        self._housekeeper = _Housekeeper(ledger, OWNER, LEASE_SECONDS, RATE, policy, handlers)

    def work(self) -> None:
        """Do all that is due by now."""
        busy = True
        while busy:
            self._add_new_connections()
            self._crawls.follow()
            busy = self._housekeeper.tick() == 0.0
            busy = self._send() or busy

    def next_due(self) -> datetime | None:
        """Return when there is more to do; None where nothing is waited for."""
        with read_only(self._ledger) as db:
            due = deadlines.next_deadlines(db)
            watched = freshness.watched(db, self._policy.watch)
            probes = db.execute(sa.select(table.c.probe_at).where(table.c.hold_reason.in_(holds.PROBED))).scalars()
            times = [each for each in probes if each is not None and each > due.now]
        if math.isfinite(due.seconds_to_next):
            times.append(due.now + timedelta(seconds=due.seconds_to_next))
        if due.sent_at is not None:
            times.append(due.sent_at + timedelta(seconds=self._policy.retry_horizon))
        if watched:
            times.append(self._next_crawl_end(due.now))
        return min((each for each in times if each > due.now), default=None)

    def _next_crawl_end(self, now: datetime) -> datetime:
        passed = now.timestamp() - self._world.start - CRAWL_SECONDS
        ends_in = CRAWL_EVERY - passed % CRAWL_EVERY
        return now + timedelta(seconds=ends_in) + _A_MOMENT

    def _add_new_connections(self) -> None:
        with self._ledger.begin() as db:
            for name in db.execute(sa.select(table.c.id).where(table.c.access_token.is_(None))).scalars().all():
                self.add_connection(db, name)

    def add_connection(self, db: sa.Connection, name: str) -> None:
        """Let Trackstar and the ledger know a connection, as if it had long been added."""
        known = connections.find(db, name)
        if known is None or not known.has_token:
            self._world.connect(name, name)
            connections.add(db, name, name)
            freshness.keep(db, {name: self._crawled_now()})

    def _crawled_now(self) -> Crawls:
        now = datetime.fromtimestamp(self._world.now()).astimezone()
        return Crawls(
            began_at=now,
            ended_at=now,
            frequency=CRAWL_EVERY,
            length=CRAWL_SECONDS,
            status=CrawlStatus.ENABLED,
            seen_at=now,
        )

    def _send(self) -> bool:
        """Send what may be sent; return whether there was anything."""
        with self._ledger.begin() as db:
            shares = dict.fromkeys(connections.encrypted_tokens(db), MANY)
            probes = dict.fromkeys(holds.claim_probes(db), 1)
            claimed = [
                *transitions.claim_next(db, shares, OWNER, LEASE_SECONDS).values(),
                *transitions.claim_next(db, probes, OWNER, LEASE_SECONDS, probes=True).values(),
            ]
        claims = [claim for each in claimed for claim in each]
        for claim in claims:
            self._prepare(claim.connection_id, claim.order_id)
        results: list[Result] = [
            attempt(claim, _clock_of(claim), self._context) for claim in claims if isinstance(claim, SendClaim)
        ]
        for batch in batches_of_reads([claim for claim in claims if isinstance(claim, RefusalClaim)]):
            results += read_refused(batch, _clock_of(batch[0]), self._context)
        self._record(results)
        return bool(results)

    def _confirm(self, due: Sequence[ConfirmClaim]) -> None:
        for batch in batches_of_reads(due):
            self._record(confirm(batch, _clock_of(batch[0]), self._context))

    def _record(self, results: Iterable[Result]) -> None:
        with self._ledger.begin() as db:
            commit_results(db, list(results))


class _StillClock(LedgerClock, frozen=True):
    """No time passes unless the test moves it."""

    def elapsed(self) -> float:
        return 0.0


def _clock_of(claim: Claim) -> LedgerClock:
    return _StillClock(claim.claimed_at, 0.0)


class _NoPace(Pace):
    """Every request may go at once."""

    def __init__(self) -> None:
        pass

    def wait_to_read(self, connection_id: str) -> bool:  # noqa: ARG002 - the base's shape
        return True

    def observe(self, *_: Any) -> None:
        pass


class _Crawls(Freshness):
    """Asks whenever it is told to: it is the only one who does."""

    def follow(self) -> None:
        self._tick()

    def _may_ask(self) -> bool:
        return True


class _Housekeeper(Maintenance):
    def _watch_clock(self, now: datetime, asked_at: float) -> None:
        """Time jumps as the test moves it; no request runs meanwhile, so no lease ends too early."""
