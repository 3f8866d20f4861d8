"""What this process knows of each connection's crawls: a copy of what the ledger keeps, for whoever decides."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.proof import COPY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVER = datetime.fromtimestamp(0, UTC)
# Nothing known would let time decide, and what the ledger keeps may be a slower crawl.
_NOT_READ_YET = Crawls(running_since=_EVER, frequency=4 * COPY_SECONDS, status=CrawlStatus.ENABLED, seen_at=_EVER)


class KnownCrawls:
    """Read by every thread, replaced by one. What was not read yet counts no crawl: that proves less, never more."""

    def __init__(self) -> None:
        self._crawls: Mapping[str, Crawls] | None = None

    def of(self, connection_id: str) -> Crawls | None:
        return _NOT_READ_YET if self._crawls is None else self._crawls.get(connection_id)

    def replace(self, crawls: Mapping[str, Crawls]) -> None:
        self._crawls = crawls
