"""Reads what crawls have changed, one incremental list per connection, and compares it with what is known.

So a verdict rises without a read of its own, and one that has turned is found: an order that was cancelled, and has
shipped. Knows rows and lists; what an order proves, `cancellation.proof` says.
"""

from __future__ import annotations

import time
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog

from worker.cancellation.answer import NoReply
from worker.cancellation.outcome import OrderState, judge_order
from worker.cancellation.proof import confirm
from worker.ledger import confirmations, freshness
from worker.ledger.database import read_only
from worker.ledger.results import ConfirmResult
from worker.ledger.vault import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from worker.cancellation.answer import Order
    from worker.cancellation.freshness import Crawls
    from worker.ledger.freshness import Watch
    from worker.ledger.results import Result
    from worker.runtime.attempt import AttemptContext, LedgerClock

log = structlog.get_logger()

LEASE_SECONDS = 60.0  # after which another worker may read what this one has not
BUDGET_SECONDS = 20.0  # of one run; what is left is read by the next, or by another worker
FIRST_SECONDS = 86_400.0  # how far back the first look of a connection goes
OVERLAP_SECONDS = 600.0  # between two looks at least, for warehouses that note a change late
HOURLY = timedelta(hours=1)  # where nobody tells of crawls
LIMITS = (1_000, 100)  # orders on a page; the second where their documents are too long for one answer
MAX_PAGES = 200


def span(looked_to: datetime | None, crawls: Crawls | None, now: datetime) -> tuple[datetime, datetime]:
    """Return since when changes are read, and up to when all are then known."""
    to = crawls.began_at if crawls and crawls.known and crawls.began_at else now
    # What one crawl has missed the next one brings, with the time at which it changed.
    period = crawls.frequency + crawls.length if crawls and crawls.frequency else HOURLY.total_seconds()
    overlap = timedelta(seconds=max(OVERLAP_SECONDS, period))
    return (looked_to or now - timedelta(seconds=FIRST_SECONDS)) - overlap, to


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
            if due and time.monotonic() < until and running():
                self._look(watch, clock)

    def _look(self, watch: Watch, clock: LedgerClock) -> None:
        with self._ledger.begin() as db:
            if not freshness.claim_look(db, watch.connection_id, LEASE_SECONDS):
                return
        since, to = span(watch.looked_to, watch.crawls, clock.now())
        if self._read_pages(watch, since, clock):
            with self._ledger.begin() as db:
                known = watch.crawls is not None and watch.crawls.known
                freshness.looked(db, watch.connection_id, to, None if known else HOURLY)

    def _read_pages(self, watch: Watch, since: datetime, clock: LedgerClock) -> bool:
        """Compare all that changed since then; False where not all of it could be read."""
        try:
            token = self._context.decrypt(watch.encrypted_token)
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
            claims = confirmations.watched_orders(db, watch.connection_id, telling)
        for claim in claims:
            found = confirm(
                claim.known, telling[claim.order_id], now=now, crawls=watch.crawls, policy=self._context.policy
            )
            if found.verdict != claim.verdict:
                self._record(ConfirmResult(claim=claim, attempts=(), confirmation=found))
