"""This worker, as it ships: `CancelClient` enqueues, `celery -A worker worker` does the rest."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from worker.client import CancelClient

if TYPE_CHECKING:
    from collections.abc import Sequence


@cache
def _client() -> CancelClient:
    # Without a database it leaves it to the intake to judge whether a key was used for another order.
    return CancelClient(os.environ["REDIS_URL"], os.environ.get("BENCH_CLIENT_DATABASE_URL"))


def put(cancellations: Sequence[dict[str, str]]) -> None:
    _client().enqueue_many(
        {"connection_id": cancellation["connection_id"], "order_id": cancellation["order_id"]}
        for cancellation in cancellations
    )
