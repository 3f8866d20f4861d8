"""The dispatcher hands out what there is room for, and takes back what nobody claimed; on both databases."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from worker.berths import Berths
from worker.cancellation.request import CancelRequest
from worker.dispatcher import Dispatcher
from worker.health import Vitals
from worker.ledger import accepting, reading
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

JOBS, ROOM = 20, 8


@pytest.fixture
def published() -> queue.SimpleQueue[Sequence[str]]:
    """Messages on their way to a Celery that never takes them."""
    return queue.SimpleQueue()


@pytest.fixture
def dispatcher(
    ledger: Engine, redis: Redis, shop: str, published: queue.SimpleQueue[Sequence[str]]
) -> Iterator[Dispatcher]:
    requests = [CancelRequest(connection_id=shop, order_id=f"o-{number}") for number in range(JOBS)]
    with ledger.begin() as connection:
        accepting.accept(connection, requests)
    pacing, berths = Pacing(redis, "write"), Berths(ROOM)
    made = Dispatcher(ledger, "w-1", pacing, 1e6, berths, published.put, Vitals(), prepare=lambda: None)
    made.start()
    yield made
    made.stop()


def statuses(ledger: Engine) -> Counter[str]:
    with ledger.connect() as connection:
        return Counter(row.status for row in reading.find(connection, limit=JOBS))


def test_no_more_is_handed_out_than_there_is_room_for(
    ledger: Engine, dispatcher: Dispatcher, published: queue.SimpleQueue[Sequence[str]]
) -> None:
    handed = published.get(timeout=10)
    dispatcher.halt()
    dispatcher.thread.join(10)

    assert 0 < len(handed) <= ROOM
    assert {"queued": len(handed), "pending": JOBS - len(handed)} == statuses(ledger)


def test_what_was_handed_out_and_not_claimed_is_given_back_when_the_worker_ends(
    ledger: Engine, dispatcher: Dispatcher, published: queue.SimpleQueue[Sequence[str]]
) -> None:
    published.get(timeout=10)
    dispatcher.stop()

    assert {"pending": JOBS} == statuses(ledger)
