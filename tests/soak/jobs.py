"""A soak of many jobs (`make soak JOBS=1000000`): a fast Trackstar, short waits, and a fault every few seconds.

A producer keeps a few thousand jobs in the ledger, a reader follows the events stream, faults strike; at the end every
row is compared with what the fast Trackstar knows of its order.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import sqlalchemy as sa
from harness.truth import leftovers, money_fits
from redis import RedisError
from soak.faults import FAULTS, Scene
from soak.hearing import CUT_SECONDS
from soak.report import console
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.event import CancellationEvent
from worker.cancellation.status import FINAL, SafeToRefund, Status, Verdict, safe_to_refund
from worker.cli.progress import progress
from worker.errors import (
    AlreadyEndedError,
    InboxUnavailableError,
    LedgerUnavailableError,
    TooLateError,
    UnknownCancellationError,
)
from worker.ledger.database import read_only
from worker.ledger.schema import LEASED, PENDING, WAITING, cancellations
from worker.streams import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from harness.deployment import Deployment

SHOPS = tuple(f"shop-{number}" for number in range(20))
SETTINGS = {
    "CONCURRENCY": "48",
    "WRITES_PER_SECOND": "200",
    "READS_PER_SECOND": "100",
    "READ_BACK_SECONDS": "1,3,6",
    "NOT_FOUND_GRACE_SECONDS": "3",  # the fast Trackstar has no crawls, and never comes to know an order
}
LIVE = 4_000  # jobs under way at once
BATCH = 200  # jobs in one call of the producer
FAULT_SECONDS = (2.0, 6.0)  # between two faults
END_SECONDS = 300.0  # for the last jobs to end once the faults are over
c = cancellations.c


class Truth(msgspec.Struct, frozen=True, array_like=True):
    """What the fast Trackstar knows of one order."""

    cancelled: int
    cancels: int
    most_in_flight: int
    keys: int
    served: int


class FastTrackstar:
    """The process of `soak.fast_world`."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, "-m", "soak.fast_world", str(seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}"

    def truths(self) -> dict[str, Truth]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("GET", "/truth")
        return msgspec.json.decode(connection.getresponse().read(), type=dict[str, Truth])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Producer(threading.Thread):
    """Enqueues so many jobs, some of them twice, as fast as they end, and withdraws a few."""

    def __init__(self, deployment: Deployment, jobs: int, dice: Random) -> None:
        super().__init__(name="producer", daemon=True)
        self.ids: list[str] = []  # by number of the order
        self._deployment = deployment
        self._jobs = jobs
        self._dice = dice

    def run(self) -> None:
        while len(self.ids) < self._jobs:
            if live(self._deployment) > LIVE:
                time.sleep(0.05)
                continue
            first = len(self.ids)
            jobs = [self._job(number) for number in range(first, min(first + BATCH, self._jobs))]
            if (ids := self._enqueue(jobs)) is not None:
                self.ids += ids[: len(jobs)]
                if self._dice.random() < 0.2:
                    self._withdraw(self._dice.choice(ids))

    def _job(self, number: int) -> dict[str, Any]:
        priority = self._dice.choice(["urgent", "normal", "bulk"])
        return {"connection_id": SHOPS[number % len(SHOPS)], "order_id": f"o-{number}", "priority": priority}

    def _enqueue(self, jobs: list[dict[str, Any]]) -> list[str] | None:
        try:
            return self._deployment.client.enqueue_many([*jobs, *self._dice.sample(jobs, len(jobs) // 20)])
        except InboxUnavailableError:
            time.sleep(0.1)  # as the error says: the same jobs again, each stays one record
            return None
        except AlreadyEndedError as error:  # of an earlier try, which had been taken after all
            return error.ids

    def _withdraw(self, record_id: str) -> None:
        with suppress(TooLateError, UnknownCancellationError, LedgerUnavailableError):
            self._deployment.client.withdraw(record_id)


class Listener(threading.Thread):
    """Reads the events stream from its beginning and notes whose end, and which word about money, has come."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(name="listener", daemon=True)
        self.ended: set[str] = set()
        self.money: set[str] = set()  # ids of events
        self._redis = deployment.redis

    def run(self) -> None:
        after = b"0-0"
        while True:
            try:
                found = self._redis.xread({EVENTS: after}, count=2_000, block=1_000)
            except RedisError:
                time.sleep(0.1)
                continue
            for entry_id, fields in _entries(found):
                after = entry_id
                if fields[b"type"] == b"cancellation.ended":
                    self.ended.add(json.loads(fields[b"event"])["cancellation_id"])
                elif fields[b"type"].startswith(b"refund."):
                    self.money.add(json.loads(fields[b"event"])["id"])


def _entries(found: Any) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Read the answer to XREAD, whose form the protocol's version decides."""
    for stream in found.values() if isinstance(found, dict) else [entries for _, entries in found or ()]:
        yield from stream[0] if stream and isinstance(stream[0], list) else stream


def live(deployment: Deployment) -> int:
    """Count what has not ended; while a part is away, all that may be under way."""
    try:
        with read_only(deployment.ledger) as db:
            states = [sa.select(sa.func.count()).where(each).scalar_subquery() for each in (PENDING, WAITING, LEASED)]
            return sum(db.execute(sa.select(*states)).one()) + deployment.redis.xlen("cancellations:inbox")
    except (SQLAlchemyError, RedisError):
        return LIVE + 1


def soak_jobs(scene: Scene, trackstar: FastTrackstar, dice: Random, jobs: int) -> dict[str, Any]:
    """Let this many jobs end while things go wrong, and report what came of it."""
    deployment, struck, began = scene.deployment, Counter[str](), time.monotonic()
    faults = [each for each in FAULTS if scene.postgres or not each.name.startswith("PostgreSQL")]
    producer, listener = Producer(deployment, jobs, dice), Listener(deployment)
    survivor, early = psutil.Process(scene.survivor.process.pid), 0
    scene.survivor.wait_for_line("worker.started", END_SECONDS)  # what it has loaded by then is no growth
    producer.start()
    listener.start()
    with progress("jobs enqueued", jobs, console=console) as shown:
        while producer.is_alive():
            producer.join(dice.uniform(*FAULT_SECONDS))
            # Every second fault kills a worker.
            fault = dice.choice([faults[0], dice.choice(faults)])
            rate = len(producer.ids) / (time.monotonic() - began)
            console.print(f"{len(producer.ids):8} jobs  {rate:5.0f}/s  {fault.name}", highlight=False)
            shown.reach(len(producer.ids))
            fault.strike(scene)
            struck[fault.name] += 1
            if not early and len(producer.ids) > jobs * 0.4:
                early = survivor.memory_info().rss
    console.print("The faults are over: every job comes to its end.")
    deployment.ledger.dispose()  # the last fault may have cut its connections
    _wait_for_ends(deployment, listener, producer.ids)
    rows = list(_rows(deployment))
    return {
        "faults": struck,
        "orders": len(producer.ids),
        "statuses": Counter(row.status for row in rows),
        "untruths": [
            *_untruths(rows, producer.ids, trackstar.truths(), listener.ended),
            *_told_wrongly(deployment, rows, listener),
            *leftovers(deployment),
        ],
        "growth": survivor.memory_info().rss / early if early else 1.0,
        "survived": scene.survivor.alive,
        "redis_clients": len(deployment.redis.client_list()),
        "jobs a second": f"{jobs / (time.monotonic() - began):.0f}",
    }


def _wait_for_ends(deployment: Deployment, listener: Listener, ids: list[str]) -> None:
    deployment.wait_until(lambda: live(deployment) == 0, "every end", END_SECONDS)
    wanted, deadline = set(ids), time.monotonic() + END_SECONDS
    while not wanted <= listener.ended and time.monotonic() < deadline:  # what is missing then is reported
        time.sleep(1)
    deployment.wait_until(lambda: not _read_backs(deployment), "every read-back", END_SECONDS)


def _read_backs(deployment: Deployment) -> int:
    with read_only(deployment.ledger) as db:
        return int(db.execute(sa.select(sa.func.count()).where(c.confirm_at.is_not(None))).scalar_one())


def _rows(deployment: Deployment) -> Iterator[Any]:
    with read_only(deployment.ledger) as db:
        yield from db.execute(sa.select(c.id, c.order_id, c.status, c.verdict, c.generation))


def _untruths(rows: list[Any], ids: list[str], truths: dict[str, Truth], told: set[str]) -> Iterator[str]:
    """Return a sentence for each broken promise."""
    by_id = {str(row.id): row for row in rows}
    nothing = Truth(0, 0, 0, 0, 0)
    for number, record_id in enumerate(ids):
        row, truth = by_id.pop(record_id, None), truths.get(f"o-{number}", nothing)
        if row is None:
            yield f"o-{number}: lost, there is no record"
            continue
        refund = safe_to_refund(Status(row.status), Verdict(row.verdict) if row.verdict else None)
        checks = {
            "has not ended": row.status in FINAL,
            "said safe to refund, and is not cancelled": refund is not SafeToRefund.YES or truth.cancelled,
            "said not safe to refund, and is cancelled": refund is not SafeToRefund.NO or not truth.cancelled,
            "cancelled twice": truth.cancels <= 1,
            "two requests in flight at once": truth.most_in_flight <= 1,
            "more keys than generations": truth.keys <= row.generation,
            "its end was not told": record_id in told,
        }
        yield from (
            f"o-{number}: {what} ({row.status}, {row.verdict}; {truth})" for what, fine in checks.items() if not fine
        )
    yield from (f"{row.order_id}: a record that nobody asked for" for row in by_id.values())


def _told_wrongly(deployment: Deployment, rows: list[Any], listener: Listener) -> Iterator[str]:
    """Compare what the feed and the stream tell of ends and money with what is on record."""
    ends, money = Counter[str](), dict[str, list[CancellationEvent]]()
    for each in deployment.client.events(timeout=CUT_SECONDS):
        if isinstance(each.event, CancellationEvent):
            if each.event.type == "cancellation.ended":
                ends[each.event.cancellation_id] += 1
            elif each.event.type.startswith("refund."):
                money.setdefault(each.event.order_id, []).append(each.event)
    _wait_for_money(listener, {each.id for events in money.values() for each in events})
    for row in rows:
        told = money.get(row.order_id, [])
        kinds = [each.type for each in told]
        refund = safe_to_refund(Status(row.status), Verdict(row.verdict) if row.verdict else None)
        checks = {
            "its end is not in the feed": ends[str(row.id)] == row.generation,
            "its money is not on the stream": listener.money >= {each.id for each in told},
            "its money was told twice": max(map(kinds.count, ("refund.released", "refund.refused"))) <= 1,
            f"its money was told otherwise than proven: {kinds}": money_fits(kinds, refund),
        }
        yield from (
            f"{row.order_id}: {what} ({row.status}, {row.verdict})" for what, fine in checks.items() if not fine
        )


def _wait_for_money(listener: Listener, wanted: set[str]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not wanted <= listener.money and time.monotonic() < deadline:  # what is missing then is reported
        time.sleep(1)


@contextmanager
def fast_trackstar(seed: int) -> Iterator[FastTrackstar]:
    """Run the fast Trackstar for as long as the `with` block lasts."""
    trackstar = FastTrackstar(seed)
    try:
        yield trackstar
    finally:
        trackstar.close()
