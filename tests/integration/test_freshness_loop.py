"""What a worker learns of crawls, and what follows from it: reads, retries, forced crawls, second looks and hints.

A real sandbox, Redis and ledger; the loop's ticks are called one by one, and Trackstar's clock is moved by hand.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, update

from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.dev.sandbox import Sandbox
from worker.ledger import claims, connections, freshness, queries, transitions
from worker.ledger.results import commit_results
from worker.ledger.schema import attempts, cancellations, events
from worker.runtime.attempt import AttemptContext, LedgerClock, batches_of_reads, confirm
from worker.runtime.freshness import ASKED, Freshness
from worker.runtime.hints import Hints
from worker.runtime.known_crawls import KnownCrawls
from worker.runtime.second_look import SecondLook
from worker.streams import HINTS
from worker.trackstar.client import TrackstarClient
from worker.trackstar.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from worker.ledger.record import Cancellation
    from worker.ledger.vault import TokenVault

c = cancellations.c
SHOP = "shop-1"
KEY = "the-key"
MINUTE = timedelta(minutes=1)


class MovedClock:
    """The time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Follower:
    """One worker's share in following crawls, tick by tick."""

    def __init__(self, redis: Redis, ledger: Engine, sandbox: Sandbox, clock: MovedClock, vault: TokenVault) -> None:
        self.world, self.ledger, self.redis, self._clock = sandbox.world, ledger, redis, clock
        self.known = KnownCrawls()
        trackstar = TrackstarClient(
            sandbox.url, KEY, connect_timeout=1, request_timeout=5, max_response_bytes=2**22, threads=2
        )
        self.context = AttemptContext(
            trackstar=trackstar,
            decrypt=vault.decrypt,
            policy=Policy(),
            pace=Pace(redis, 50, 10),
            start_within=60,
            crawls=self.known.of,
        )
        self._freshness = self.make(force=False)
        self.forcing = self.make(force=True)
        self._hints = Hints(redis, ledger, lambda: None)

    def make(self, *, force: bool) -> Freshness:
        look = SecondLook(self.ledger, self.context, lambda result: self._commit([result]))
        return Freshness(
            self.redis, self.ledger, self.context, self.known, look, rate=50, force=force, on_changed=lambda: None
        )

    def tick(self, follower: Freshness | None = None) -> None:
        """Ask, whoever has asked a moment ago; then read what is due."""
        self.redis.delete(ASKED)
        (follower or self._freshness)._tick()
        self.follow_hints()
        with self.ledger.begin() as db:
            due = claims.claim_read_backs(db, 60, 100)
        for batch in batches_of_reads(due):
            self._commit(confirm(batch, LedgerClock(batch[0].claimed_at, time.monotonic()), self.context))

    def follow_hints(self) -> None:
        self._hints._tick()

    def crawl(self) -> None:
        """Let Trackstar renew its copy now: a whole crawl, begun after all that was before."""
        self._clock.ahead += 3
        self.world.sync()

    def _commit(self, results: list[Any]) -> None:
        with self.ledger.begin() as db:
            commit_results(db, results)

    def ended(
        self, order_id: str, verdict: str, *, ago: timedelta = MINUTE, status: str = "rejected", **more: Any
    ) -> str:
        """Let a cancellation have ended so, without proof, as far as that is one."""
        now = datetime.now(UTC)
        proven = verdict in {"cancelled", "not_cancelled"}
        known_by = None if proven else now + timedelta(hours=1)
        values = {"status": status, "verdict": verdict, "ended_at": now - ago, "claims": 1, "attempts": 1}
        return self._add(order_id, **(values | {"known_by": known_by, "as_of": now - ago} | more))

    def not_found_yet(self, order_id: str) -> str:
        now = datetime.now(UTC)
        values = {"run_at": now + timedelta(minutes=15), "known_by": now + timedelta(hours=1), "claims": 1}
        return self._add(order_id, status="waiting", outcome_reason="order_not_found_yet", **values)

    def _add(self, order_id: str, *, connection_id: str = SHOP, **columns: Any) -> str:
        request = CancelRequest(connection_id=connection_id, order_id=order_id)
        with self.ledger.begin() as db:
            transitions.accept(db, [request])
            db.execute(update(cancellations).where(c.id == request.record_id).values(**columns))
            sent_at = datetime.now(UTC) - 2 * MINUTE
            tried = {"kind": "cancel", "generation": 1, "started_at": sent_at, "reason": "http_503", "replayed": False}
            db.execute(attempts.insert().values(cancellation_id=request.record_id, number=1, **tried))
        return request.record_id

    def record(self, record_id: str) -> Cancellation:
        with self.ledger.connect() as db:
            found = queries.get(db, record_id)
        assert found is not None
        return found

    def told(self, record_id: str) -> list[str]:
        with self.ledger.connect() as db:
            return list(
                db.execute(
                    select(events.c.type)
                    .where(events.c.cancellation_id == record_id, ~events.c.type.startswith("refund."))
                    .order_by(events.c.id)
                ).scalars()
            )


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def sandbox(clock: MovedClock) -> Iterator[Sandbox]:
    with Sandbox(KEY, clock=clock, sync_seconds=3600) as sandbox:
        sandbox.world.connect(SHOP, "token-1")
        yield sandbox


@pytest.fixture
def worker(redis: Redis, ledger: Engine, sandbox: Sandbox, clock: MovedClock, vault: TokenVault) -> Follower:
    with ledger.begin() as db:
        connections.add(db, SHOP, vault.encrypt("token-1"))
    return Follower(redis, ledger, sandbox, clock, vault)


def test_an_order_that_reads_open_after_two_crawls_was_not_cancelled(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "unknown")
    worker.tick()  # the one in which the sandbox has just begun is the first
    assert "unknown" == worker.record(record_id).verdict
    worker.crawl()
    worker.tick()

    found = worker.record(record_id)
    assert ("not_cancelled", "fresh_read_back") == (found.verdict, found.evidence)
    assert found.as_of is not None
    assert found.ended_at is not None
    assert found.ended_at < found.as_of < datetime.now(UTC)
    assert (None, None, None) == (found.known_by, found.needs_person, found.confirm_at)
    assert ["cancellation.verdict_raised"] == [each for each in worker.told(record_id) if "moved" not in each]


def test_crawls_that_began_while_our_request_ran_prove_nothing(worker: Follower) -> None:
    for order_id in ("o-1", "o-2"):
        worker.world.add_order(SHOP, order_id)
    began = datetime.now(UTC) - timedelta(hours=1)
    other = worker.ended("o-2", "unknown")  # for its sake crawls are followed
    for _ in range(2):
        worker.crawl()
        worker.tick()
    record_id = worker.ended("o-1", "unknown", ago=timedelta(0), first_sent_at=began)
    worker.tick()
    worker.tick()

    assert ("not_cancelled", "unknown") == (worker.record(other).verdict, worker.record(record_id).verdict)


def test_a_no_of_the_warehouse_is_overturned_by_the_crawl_that_shows_who_cancelled(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    worker.tick()
    worker.world.cancel_by_somebody(SHOP, "o-1")
    record_id = worker.ended("o-1", "unknown", ago=timedelta(seconds=1))
    worker.crawl()
    worker.tick()

    found = worker.record(record_id)
    assert ("cancelled", "read_back") == (found.verdict, found.evidence)


def test_an_order_that_was_accepted_and_stays_open_is_for_a_person(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "accepted", status="succeeded", evidence="response")
    for _ in range(2):
        worker.tick()
        worker.crawl()
    worker.tick()

    found = worker.record(record_id)
    assert ("accepted", "accepted_but_open", None) == (found.verdict, found.needs_person, found.known_by)
    assert 1 == worker.told(record_id).count("cancellation.needs_person")


@pytest.mark.parametrize(("state", "reason"), [("disabled", "crawls_disabled"), ("error", "crawls_failing")])
def test_crawls_that_do_not_come_are_for_a_person_until_they_come_again(
    worker: Follower, state: str, reason: str
) -> None:
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "unknown")
    worker.world.connect(SHOP, crawl_state=state)
    worker.tick()

    assert reason == worker.record(record_id).needs_person

    worker.world.connect(SHOP, crawl_state="enabled")
    for _ in range(2):
        worker.crawl()
        worker.tick()

    found = worker.record(record_id)
    assert ("not_cancelled", None) == (found.verdict, found.needs_person)
    assert 1 == worker.told(record_id).count("cancellation.needs_person")


def test_an_order_that_is_not_found_yet_is_sent_again_after_a_crawl(worker: Follower) -> None:
    worker.ended("o-0", "cancelled", status="succeeded")  # so that its crawls are known before
    worker.tick()
    record_id = worker.not_found_yet("o-1")
    worker.tick()
    assert datetime.now(UTC) + 10 * MINUTE < (worker.record(record_id).run_at or datetime.now(UTC))

    worker.crawl()
    worker.tick()

    assert datetime.now(UTC) >= (worker.record(record_id).run_at or datetime.max.replace(tzinfo=UTC))


def test_a_crawl_is_asked_for_once_where_somebody_waits_and_the_next_is_far(worker: Follower) -> None:
    worker.world.connect(SHOP, crawl_length=600)
    worker.world.add_order(SHOP, "o-1")
    worker.ended("o-1", "unknown")
    before = worker.world.traffic(SHOP)
    for _ in range(3):
        worker.tick(worker.forcing)

    assert 1 == worker.world.traffic(SHOP).writes - before.writes


def test_no_crawl_is_asked_for_where_that_is_not_wanted_or_nobody_waits(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    worker.ended("o-1", "cancelled", status="succeeded")
    worker.tick(worker.forcing)
    worker.tick(worker.forcing)
    worker.world.add_order(SHOP, "o-2")
    worker.ended("o-2", "unknown")
    worker.tick()
    worker.tick()

    assert 0 == worker.world.traffic(SHOP).writes


def test_who_refuses_to_crawl_is_not_asked_again_for_an_hour(worker: Follower) -> None:
    worker.world.connect(SHOP, refuse_sync=422)
    worker.world.add_order(SHOP, "o-1")
    worker.ended("o-1", "unknown")
    worker.tick(worker.forcing)
    worker.tick(worker.forcing)
    with worker.ledger.connect() as db:
        (watch,) = freshness.watched(db, 86_400)

    assert watch.force_after is not None
    assert watch.force_after > datetime.now(UTC) + 50 * MINUTE


def test_trackstars_own_id_is_learnt_from_a_crawl_that_was_asked_for(worker: Follower) -> None:
    worker.world.connect(SHOP, trackstar_id="conn-77")
    worker.world.add_order(SHOP, "o-1")
    worker.ended("o-1", "unknown")
    worker.tick(worker.forcing)
    worker.tick(worker.forcing)
    with worker.ledger.connect() as db:
        (watch,) = freshness.watched(db, 86_400)
    assert "conn-77" == watch.trackstar_id

    worker.tick()

    known = worker.known.of(SHOP)
    assert known is not None
    assert known.known


def test_a_cancelled_order_that_has_shipped_is_found_by_the_next_crawl(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "cancelled", status="succeeded", evidence="response")
    worker.tick()
    worker.world.ship(SHOP, "o-1")
    worker.crawl()
    worker.tick()

    found = worker.record(record_id)
    assert ("not_cancelled", "read_back", "succeeded") == (found.verdict, found.evidence, found.status)
    assert ["cancellation.contradicted"] == worker.told(record_id)


def test_an_order_of_the_same_name_elsewhere_contradicts_nothing(worker: Follower, vault: TokenVault) -> None:
    worker.world.connect("shop-2", "token-2")
    with worker.ledger.begin() as db:
        connections.add(db, "shop-2", vault.encrypt("token-2"))
    for name in (SHOP, "shop-2"):
        worker.world.add_order(name, "o-1")
    mine = worker.ended("o-1", "cancelled", status="succeeded", evidence="response")
    theirs = worker.ended("o-1", "cancelled", status="succeeded", evidence="response", connection_id="shop-2")
    worker.tick()
    worker.world.ship("shop-2", "o-1")
    worker.crawl()
    worker.tick()

    assert ("cancelled", "not_cancelled") == (worker.record(mine).verdict, worker.record(theirs).verdict)


def test_an_older_copy_contradicts_nothing(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1", status="partially_fulfilled")
    worker.crawl()
    record_id = worker.ended("o-1", "cancelled", status="succeeded", evidence="response", ago=timedelta(seconds=0))
    worker.tick()

    assert "cancelled" == worker.record(record_id).verdict


def test_what_changed_raises_a_verdict_without_a_read_of_its_own(worker: Follower) -> None:
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "accepted", status="succeeded", needs_person="accepted_but_open", known_by=None)
    worker.tick()
    worker.world.cancel_by_somebody(SHOP, "o-1")
    worker.crawl()
    worker.tick()

    assert "cancelled" == worker.record(record_id).verdict


def test_without_an_answer_about_crawls_the_ladder_stays(worker: Follower, sandbox: Sandbox) -> None:
    sandbox.world.connections_listed = False
    worker.world.add_order(SHOP, "o-1")
    record_id = worker.ended("o-1", "unknown", ago=timedelta(minutes=69), confirm_at=datetime.now(UTC))
    worker.tick()
    worker.tick()
    assert "unknown" == worker.record(record_id).verdict

    with worker.ledger.begin() as db:
        db.execute(
            update(cancellations).values(ended_at=datetime.now(UTC) - 71 * MINUTE, confirm_at=datetime.now(UTC))
        )
    worker.tick()

    found = worker.record(record_id)
    assert ("not_cancelled", "fresh_read_back") == (found.verdict, found.evidence)


@pytest.mark.parametrize(
    "fields",
    [
        {"connection_id": SHOP, "order_id": "o-1"},
        {"hint": '{"connection_id": "shop-1", "order_id": "o-1"}'},
        {"anything": '{"connection_id": "shop-1"}'},
        {"connection_id": SHOP},
    ],
    ids=["fields", "json", "json, connection", "connection"],
)
def test_a_hint_moves_the_next_read_to_now(worker: Follower, fields: dict[str, str]) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    record_id = worker.ended("o-1", "unknown", confirm_at=later)
    worker.redis.xadd(HINTS, fields)  # type: ignore[arg-type]
    worker.follow_hints()

    assert (worker.record(record_id).confirm_at or later) <= datetime.now(UTC)
    assert 0 == worker.redis.xlen(HINTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "no json"},
        {"hint": "{}"},
        {"hint": '{"connection_id": 5}'},
        {"connection_id": "a\x00b"},
        {"x": "y" * 5000},
    ],
    ids=["text", "empty", "number", "NUL", "long"],
)
def test_what_is_no_hint_is_told_and_stops_no_other(worker: Follower, logged: Any, fields: dict[str, str]) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    record_id = worker.ended("o-1", "unknown", confirm_at=later)
    worker.redis.xadd(HINTS, fields)  # type: ignore[arg-type]
    worker.redis.xadd(HINTS, {"connection_id": SHOP, "order_id": "o-1"})
    worker.follow_hints()

    assert 1 == logged.wait_for("hints.ignored")["count"]
    assert (worker.record(record_id).confirm_at or later) <= datetime.now(UTC)


def test_a_hint_that_comes_again_and_again_is_read_every_ten_seconds_at_most(worker: Follower) -> None:
    record_id = worker.ended("o-1", "unknown", as_of=datetime.now(UTC))
    worker.redis.xadd(HINTS, {"connection_id": SHOP, "order_id": "o-1"})
    worker.follow_hints()
    moved = worker.record(record_id).confirm_at

    assert moved is not None
    assert timedelta(seconds=5) < moved - datetime.now(UTC) <= timedelta(seconds=10)


def test_one_worker_asks_for_all(worker: Follower, sandbox: Sandbox) -> None:
    worker.world.add_order(SHOP, "o-1")
    worker.ended("o-1", "unknown")
    worker.redis.delete(ASKED)
    for _ in range(3):
        worker.make(force=False)._tick()

    assert 1 == sandbox.world.connections_lists
