"""Reads what crawls have changed, one incremental list per connection, and compares it with what is known.

So a verdict rises without a read of its own, and one that has turned is found: an order that was cancelled, and has
shipped. Knows rows and lists; what an order proves, `cancellation.proof` says.
"""

from __future__ import annotations

import time
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

from worker.cancellation.answer import NoReply
from worker.cancellation.freshness import CrawlStatus
from worker.cancellation.outcome import OrderState, judge_order
from worker.cancellation.proof import confirm
from worker.ledger import freshness, rereads
from worker.ledger.database import read_only
from worker.ledger.results import ConfirmResult
from worker.ledger.vault import CredentialsError, of_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from worker.cancellation.answer import Order
    from worker.cancellation.freshness import Crawls
    from worker.ledger.freshness import Watch
    from worker.ledger.results import Result
    from worker.runtime.attempt import AttemptContext, LedgerClock

LEASE_SECONDS = 60.0  # after which another worker may read what this one has not
BUDGET_SECONDS = 20.0  # of one run; what is left is read by the next, or by another worker
OVERLAP = timedelta(seconds=600)  # between two looks, for warehouses that note a change late
HOURLY = timedelta(hours=1)  # where nobody tells of crawls
LIMITS = (1_000, 100)  # orders on a page; the second where their documents are too long for one answer
MAX_PAGES = 200


def all_known_to(looked_to: datetime, crawls: Crawls | None, now: datetime) -> datetime:
    """Return up to when all changes are known once those since `looked_to` were read.

    What one crawl has missed the next one brings, with the time at which it changed: two crawls must have come since.
    """
    if crawls is None or crawls.status is CrawlStatus.UNKNOWN:
        return now - 2 * HOURLY
    if not crawls.known or crawls.began_at is None or crawls.frequency is None:
        return looked_to
    return crawls.before_began_at or crawls.began_at - timedelta(seconds=crawls.frequency + crawls.length)


class SecondLook:
    """Looks at the connections whose look is due, one after another."""

    def __init__(self, ledger: Engine, context: AttemptContext, record: Callable[[Result], None]) -> None:
        self._ledger = ledger
        self._context = context
        self._record = record

    def run(self, watched: Sequence[Watch], clock: LedgerClock, running: Callable[[], bool]) -> None:
        """Look at what is due of these, for a while."""
        until = time.monotonic() + BUDGET_SECONDS
        for watch in watched:
            due = watch.look_at is not None and watch.look_at <= clock.now() and watch.readable
            if due and watch.looked_to is not None and time.monotonic() < until and running():
                self._look(watch, watch.looked_to, clock)

    def _look(self, watch: Watch, looked_to: datetime, clock: LedgerClock) -> None:
        with self._ledger.begin() as db:
            if not freshness.claim_look(db, watch.connection_id, LEASE_SECONDS):
                return
        now = clock.now()
        # Nothing that ended longer ago is watched.
        looked_to = max(looked_to, now - timedelta(seconds=self._context.policy.watch))
        if self._read_pages(watch, looked_to - OVERLAP, clock):
            to = max(looked_to, all_known_to(looked_to, watch.crawls, now))
            with self._ledger.begin() as db:
                known = watch.crawls is not None and watch.crawls.known
                freshness.looked(db, watch.connection_id, to, None if known else HOURLY)

    def _read_pages(self, watch: Watch, since: datetime, clock: LedgerClock) -> bool:
        """Compare all that changed since then; False where not all of it could be read."""
        try:
            token = self._context.decrypt(watch.encrypted_token, of_connection(watch.connection_id))
        except CredentialsError:
            return False  # whoever sends says it
        ahead = timedelta(seconds=watch.crawls.ahead if watch.crawls else 0.0)
        page: str | None = None
        limit = LIMITS[0]
        for _ in range(MAX_PAGES):
            if not self._context.pace.wait_to_read(watch.connection_id):
                return False
            answer = self._context.trackstar.read_changed_orders(
                since + ahead, access_token=token, page_token=page, limit=limit
            )
            self._context.pace.observe("read", watch.connection_id, answer)
            if isinstance(answer, NoReply) and answer.reason == "body_too_large" and limit != LIMITS[-1]:
                limit, page = LIMITS[-1], None
                continue
            if isinstance(answer, NoReply) or answer.status != HTTPStatus.OK or not answer.listed:
                return False
            self._compare(watch, answer.orders, clock.now())
            page = answer.next_token
            if page is None:
                return not answer.more
        return False

    def _compare(self, watch: Watch, orders: Sequence[Order], now: datetime) -> None:
        shown = {order.id: judge_order(order) for order in orders if order.id is not None}
        telling = {order_id: read for order_id, read in shown.items() if read.shows is not OrderState.OPEN}
        if not telling:
            return
        with read_only(self._ledger) as db:
            claims = rereads.watched_orders(db, watch.connection_id, telling)
        for claim in claims:
            found = confirm(
                claim.known, telling[claim.order_id], now=now, crawls=watch.crawls, policy=self._context.policy
            )
            if found.verdict != claim.verdict:
                self._record(ConfirmResult(claim=claim, attempts=(), confirmation=found))
