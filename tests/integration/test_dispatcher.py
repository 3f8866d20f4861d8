"""The dispatcher hands out what there are threads for, and takes back what was not consumed; on both databases."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from redis import RedisError
from sqlalchemy import text

from worker.cancellation.request import CancelRequest
from worker.ledger import filters, holds, transitions
from worker.runtime.dispatcher import Dispatcher
from worker.runtime.executor import Executor
from worker.telemetry.health import Vitals
from worker.telemetry.metrics import Metrics
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from redis import Redis
    from sqlalchemy import Engine

JOBS, THREADS = 20, 8
LEASE, START_WITHIN = 180.0, 25.0

Publish = Callable[[Sequence[str]], None]


class Nobody:
    """Who hears of claims, and does not care."""

    def claimed(self, claims: Any) -> None: ...


@pytest.fixture
def published() -> queue.SimpleQueue[Sequence[str]]:
    """Messages on their way to a Celery that never takes them."""
    return queue.SimpleQueue()


@pytest.fixture
def executor() -> Executor:
    context: Any = None  # nothing is run here
    made = Executor(THREADS, context, lambda _: None, Nobody())
    made.start()
    return made


@pytest.fixture
def make_dispatcher(
    ledger: Engine, redis: Redis, shop: str, executor: Executor
) -> Iterator[Callable[..., Dispatcher]]:
    made: list[Dispatcher] = []

    def make(publish: Publish, start_within: float = START_WITHIN, metrics: Metrics | None = None) -> Dispatcher:
        pacing = Pacing(redis, "write")
        made.append(Dispatcher(ledger, "w-1", LEASE, start_within, pacing, 1e6, executor, publish, Vitals(), metrics))
        return made[-1]

    requests = [CancelRequest(connection_id=shop, order_id=f"o-{number}") for number in range(JOBS)]
    with ledger.begin() as db:
        transitions.accept(db, requests)
    yield make
    for each in made:
        each.stop()


def statuses(ledger: Engine) -> Counter[str]:
    with ledger.connect() as db:
        return Counter(row.status for row in filters.find(db, limit=JOBS))


def test_no_more_is_handed_out_than_there_are_threads_for(
    ledger: Engine,
    make_dispatcher: Callable[..., Dispatcher],
    executor: Executor,
    published: queue.SimpleQueue[Sequence[str]],
) -> None:
    dispatcher = make_dispatcher(published.put)
    dispatcher.tick()
    handed = published.get(timeout=10)
    dispatcher.tick()

    assert published.empty()
    assert 0 < len(handed) <= THREADS
    assert len(handed) == executor.in_use().total()
    assert {"in_flight": len(handed), "pending": JOBS - len(handed)} == statuses(ledger)


def test_what_was_handed_out_and_not_consumed_is_given_back_when_the_worker_ends(
    ledger: Engine, make_dispatcher: Callable[..., Dispatcher], published: queue.SimpleQueue[Sequence[str]]
) -> None:
    dispatcher = make_dispatcher(published.put)
    dispatcher.loop.start()
    published.get(timeout=10)
    dispatcher.stop()

    assert {"pending": JOBS} == statuses(ledger)
    with ledger.connect() as db:
        assert {None} == {row.first_sent_at for row in filters.find(db, limit=JOBS)}


def test_a_message_that_could_not_be_published_is_given_back_and_goes_out_again(
    ledger: Engine,
    make_dispatcher: Callable[..., Dispatcher],
    executor: Executor,
    published: queue.SimpleQueue[Sequence[str]],
) -> None:
    failing = threading.Event()
    failing.set()

    def publish(ids: Sequence[str]) -> None:
        if failing.is_set():
            raise RedisError("away")
        published.put(ids)

    dispatcher = make_dispatcher(publish)
    with pytest.raises(RedisError):
        dispatcher.tick()
    claimed = statuses(ledger)["in_flight"]
    failing.clear()
    dispatcher.tick()

    assert 0 < claimed <= THREADS
    handed = published.get(timeout=10)
    assert {"in_flight": len(handed), "pending": JOBS - len(handed)} == statuses(ledger)
    assert len(handed) == executor.in_use().total()


@pytest.fixture
def probed(ledger: Engine, shop: str) -> str:
    """Return a connection that is held, and may be probed now."""
    with ledger.begin() as db:
        assert {shop} == holds.hold(db, [shop], holds.OUTAGE)
        db.execute(text("UPDATE connections SET probe_at = held_at"))
    return shop


def test_a_probe_for_which_redis_keeps_no_send_slot_is_given_back(
    ledger: Engine,
    make_dispatcher: Callable[..., Dispatcher],
    probed: str,
    published: queue.SimpleQueue[Sequence[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reserve(*_: object) -> None:
        raise RedisError("away")

    dispatcher = make_dispatcher(published.put)
    with monkeypatch.context() as away:
        away.setattr(dispatcher._pacing, "reserve", reserve)
        with pytest.raises(RedisError):
            dispatcher.tick()
    assert {"in_flight": 1, "pending": JOBS - 1} == statuses(ledger)
    dispatcher.tick()

    assert {"pending": JOBS} == statuses(ledger)
    assert published.empty()
    with ledger.connect() as db:
        found = filters.find(db, limit=JOBS)
    assert {(probed, None, "outage")} == {(row.connection_id, row.first_sent_at, row.hold_reason) for row in found}


def test_a_probe_that_would_have_to_wait_is_given_back(
    ledger: Engine,
    make_dispatcher: Callable[..., Dispatcher],
    probed: str,
    redis: Redis,
    published: queue.SimpleQueue[Sequence[str]],
) -> None:
    dispatcher = make_dispatcher(published.put)
    Pacing(redis, "write").pause(probed, 30)
    dispatcher.tick()
    dispatcher.tick()

    assert {"pending": JOBS} == statuses(ledger)
    assert published.empty()


@pytest.mark.usefixtures("probed")
def test_a_probe_is_handed_out_alone(
    ledger: Engine, make_dispatcher: Callable[..., Dispatcher], published: queue.SimpleQueue[Sequence[str]]
) -> None:
    dispatcher = make_dispatcher(published.put)
    dispatcher.tick()
    dispatcher.tick()

    assert 1 == len(published.get(timeout=10))
    assert published.empty()
    assert {"in_flight": 1, "pending": JOBS - 1} == statuses(ledger)


def test_a_message_that_nobody_consumes_in_time_is_given_back_and_finds_nothing_when_it_comes(
    ledger: Engine,
    make_dispatcher: Callable[..., Dispatcher],
    executor: Executor,
    published: queue.SimpleQueue[Sequence[str]],
) -> None:
    dispatcher = make_dispatcher(published.put, start_within=0.0)
    dispatcher.tick()
    lost = published.get(timeout=10)
    dispatcher.loop.halt()
    dispatcher.stop()
    executor.run(lost)

    assert {"pending": JOBS} == statuses(ledger)
    assert 0 == executor.in_use().total()


def test_what_is_handed_out_and_given_back_is_counted(
    make_dispatcher: Callable[..., Dispatcher], published: queue.SimpleQueue[Sequence[str]]
) -> None:
    metrics = Metrics()
    dispatcher = make_dispatcher(published.put, metrics=metrics)
    dispatcher.tick()
    dispatcher.stop()
    told = metrics.render().decode()
    count = len(published.get())

    assert f"cancel_worker_claim_batch_size_sum {count}.0\n" in told
    assert f'cancel_worker_permits_used_total{{kind="write"}} {count}.0\n' in told
    assert f"cancel_worker_interrupted_total {count}.0\n" in told
