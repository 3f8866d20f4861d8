"""Up to when all changes are known once they were read: so far the next second look need not go back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.runtime.second_look import all_known_to

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LOOKED_TO = NOW - timedelta(hours=30)


def ago(hours: float) -> datetime:
    return NOW - timedelta(hours=hours)


def crawls(**fields: Any) -> Crawls:
    usual = {"frequency": 3600.0, "length": 360.0, "status": CrawlStatus.ENABLED, "seen_at": NOW}
    return Crawls(**usual | fields)


@pytest.mark.parametrize(
    ("expected", "known"),
    [
        pytest.param(ago(1.5), crawls(began_at=ago(0.5), before_began_at=ago(1.5)), id="two crawls"),
        pytest.param(ago(20), crawls(began_at=ago(0.5), before_began_at=ago(20)), id="two crawls, days apart"),
        pytest.param(ago(1.6), crawls(began_at=ago(0.5)), id="one crawl: the one before may be a period older"),
        pytest.param(LOOKED_TO, crawls(), id="none has completed"),
        pytest.param(LOOKED_TO, crawls(status=CrawlStatus.ERROR), id="none has completed, and they fail"),
        pytest.param(LOOKED_TO, crawls(began_at=ago(0.5), frequency=None), id="nobody says how often they come"),
        pytest.param(ago(2), crawls(began_at=ago(9), status=CrawlStatus.UNKNOWN), id="nobody tells of them any more"),
        pytest.param(ago(2), None, id="nobody tells of them"),
    ],
)
def test_what_one_crawl_may_have_missed_is_read_again(expected: datetime, known: Crawls | None) -> None:
    assert expected == all_known_to(LOOKED_TO, known, NOW)
