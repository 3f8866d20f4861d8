"""What this process knows of each connection's crawls: a copy of what the ledger keeps, for whoever decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.cancellation.freshness import Crawls


class KnownCrawls:
    """Read by every thread, replaced by one. What is not known yet counts no crawl: that proves less, never more."""

    def __init__(self) -> None:
        self._crawls: Mapping[str, Crawls] = {}

    def of(self, connection_id: str) -> Crawls | None:
        return self._crawls.get(connection_id)

    def replace(self, crawls: Mapping[str, Crawls]) -> None:
        self._crawls = crawls
