"""What stands still is noticed and named: rows that are due and not sent, an inbox that is not emptied or refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from sqlalchemy import make_url, update

from worker.cancellation.request import CancelRequest
from worker.dev.embedded import EmbeddedRedis, embedded_redis
from worker.ledger import connections, holds, transitions
from worker.ledger.schema import cancellations
from worker.runtime.backlog import POLL_SECONDS, Backlog
from worker.runtime.transport import KEPT_SECONDS, VITALS, Transport, what_workers_say
from worker.streams import GROUP, INBOX
from worker.telemetry.health import Vitals
from worker.trackstar.pacing import Pacing

if TYPE_CHECKING:
    from conftest import Logged
    from sqlalchemy import Engine

    from worker.ledger.claims import Lease
    from worker.ledger.vault import TokenVault

RATE = 50.0


class Threads:
    """The request threads of a worker, as far as they are asked."""

    def __init__(self) -> None:
        self.threads = 8
        self.released_at = 0.0
        self.busy: Counter[str] = Counter()

    def in_use(self) -> Counter[str]:
        return self.busy


class Watch:
    """A worker that watches its backlog, by a clock that the test turns."""

    def __init__(self, redis: Redis, ledger: Engine) -> None:
        self.now = 1000.0
        self.threads: Any = Threads()
        self.pacing = Pacing(redis, "w")
        self.vitals = Vitals(clock=lambda: 0.0)
        self.backlog = Backlog(
            redis, ledger, "w-1", self.pacing, RATE, self.threads, 180.0, self.vitals, lambda: self.now
        )

    def look(self, seconds: float = 0.0) -> list[str]:
        """Look at once, then every few seconds for so long; return what is said at the end."""
        self.backlog.tick()
        until = self.now + seconds
        while self.now < until:
            self.now += POLL_SECONDS
            self.backlog.tick()
        return self.vitals.problems()


@pytest.fixture(scope="module")
def own_redis() -> Iterator[EmbeddedRedis]:
    """A Redis that may be filled, made a replica, and given users."""
    with embedded_redis() as server:
        yield server


@pytest.fixture
def redis(own_redis: EmbeddedRedis) -> Iterator[Redis]:
    with Redis.from_url(own_redis.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def watch(redis: Redis, ledger: Engine) -> Watch:
    return Watch(redis, ledger)


def accept(ledger: Engine, *orders: str, shop: str = "shop-1", **fields: Any) -> list[str]:
    requests = [CancelRequest(connection_id=shop, order_id=order, **fields) for order in orders]
    with ledger.begin() as db:
        transitions.accept(db, requests)
    return [request.record_id for request in requests]


def send(ledger: Engine, shop: str = "shop-1") -> list[Lease]:
    claimed, _ = transitions.claim_shares(ledger, {shop: 1}, "w-2", 180.0, {})
    return [claim.lease for claim in claimed.get(shop, [])]


def end(ledger: Engine, *ids: str) -> None:
    ended = {"status": "withdrawn", "ended_at": datetime.now(UTC), "verdict": "not_cancelled"}
    lease = {"lease_owner": None, "lease_expires_at": None}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(cancellations.c.id.in_(ids)).values(**ended, **lease))


# ---- the heads of the queues


def test_a_row_that_is_due_and_not_sent_is_named_and_forgotten_when_it_goes(
    watch: Watch, ledger: Engine, shop: str
) -> None:
    first, second = accept(ledger, "o-1", "o-2", shop=shop)

    assert [] == watch.look(30)
    (said,) = watch.look(5)
    assert f"Connection {shop} has sent nothing for 35 s, though {first} is due" in said
    assert "threads free" in said

    end(ledger, first)
    assert [] == watch.look()
    assert [] == watch.look(25)
    end(ledger, second)
    assert [] == watch.look(60)


def test_a_connection_that_is_held_is_no_standstill_and_begins_anew_when_it_is_resumed(
    watch: Watch, ledger: Engine, shop: str
) -> None:
    accept(ledger, "o-1", shop=shop)
    watch.look(20)
    with ledger.begin() as db:
        holds.hold_by_operator(db, shop)
    assert [] == watch.look(600)

    with ledger.begin() as db:
        holds.resume(db, [shop], holds.ALL)
    assert [] == watch.look(25)
    assert watch.look(10)


def test_what_may_not_be_sent_any_more_is_not_due(watch: Watch, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop=shop, send_by=datetime.now(UTC) - timedelta(seconds=1))
    with ledger.begin() as db:
        db.execute(update(cancellations).values(send_by=datetime.now(UTC) - timedelta(seconds=1)))

    assert [] == watch.look(60)


def test_a_request_that_runs_for_another_worker_is_no_standstill(watch: Watch, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop=shop)
    watch.look(5)
    send(ledger)

    assert [] == watch.look(120)


def test_claims_that_are_given_back_again_and_again_are_a_standstill(watch: Watch, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop=shop)
    for _ in range(10):
        watch.look(5)
        leases = send(ledger)
        watch.threads.busy[shop] = 1
        with ledger.begin() as db:
            transitions.release_unsent(db, leases)

    assert watch.vitals.problems()


def test_threads_that_are_all_at_work_explain_it_only_as_long_as_one_comes_free_now_and_then(
    watch: Watch, ledger: Engine, shop: str
) -> None:
    accept(ledger, "o-1", shop=shop)
    watch.look()
    watch.threads.busy["another"] = 8
    for _ in range(30):
        watch.threads.released_at += 1
        assert [] == watch.look(10)

    assert watch.look(180 + 40)


@pytest.mark.parametrize("ahead", [3_600.0, 31_536_000.0])
def test_a_pace_that_is_parked_far_ahead_is_named_however_busy_the_worker_is(
    watch: Watch, redis: Redis, ledger: Engine, shop: str, ahead: float
) -> None:
    accept(ledger, "o-1", shop=shop)
    watch.threads.busy["another"] = 8
    watch.pacing.pause(shop, ahead)

    (said,) = watch.look(35)
    assert "its next send slot is" in said
    key = said.partition("`DEL ")[2].partition("`")[0]

    assert 1 == redis.delete(key)
    assert [] == watch.look()


def test_a_pause_of_a_minute_is_the_pace(watch: Watch, ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop=shop)
    watch.pacing.pause(shop, 60.0)

    assert [] == watch.look(60)


@pytest.mark.parametrize("rubbish", ["soon", "nan", "inf", "a list"])
def test_a_pace_that_nobody_can_read_is_named(
    watch: Watch, redis: Redis, ledger: Engine, shop: str, rubbish: str
) -> None:
    accept(ledger, "o-1", shop=shop)
    if rubbish == "a list":
        redis.lpush(watch.pacing.key(shop), "x")
    else:
        redis.hset(watch.pacing.key(shop), "next", rubbish)

    (said,) = watch.look(35)
    assert f"its pace cannot be read: `DEL {watch.pacing.key(shop)}`" in said


def test_of_many_connections_one_is_named_and_the_others_are_counted(
    watch: Watch, ledger: Engine, vault: TokenVault
) -> None:
    for number in range(5):
        with ledger.begin() as db:
            connections.add(db, f"shop-{number}", vault.encrypt("t"))
        accept(ledger, "o-1", shop=f"shop-{number}")

    (said,) = watch.look(35)
    assert "(4 more connections stand still.)" in said


def test_it_is_told_once_when_it_begins_and_once_when_it_ends(
    watch: Watch, ledger: Engine, shop: str, logged: Logged
) -> None:
    (first,) = accept(ledger, "o-1", shop=shop)
    watch.look(60)
    end(ledger, first)
    watch.look(20)

    assert ["worker.unready", "worker.ready_again"] == logged.events()


# ---- the inbox


def test_an_entry_that_nobody_takes_is_named(watch: Watch, redis: Redis) -> None:
    entry: Any = redis.xadd(INBOX, {"job": "{}"})
    assert [] == watch.look(30)

    assert [f"The entry {entry.decode()} of {INBOX} is not taken, for 35 s."] == watch.look(5)
    redis.xdel(INBOX, entry)
    assert [] == watch.look()


def test_an_entry_that_was_taken_and_is_never_settled_is_named(watch: Watch, redis: Redis) -> None:
    redis.xadd(INBOX, {"job": "{}"})
    redis.xgroup_create(INBOX, GROUP, id="0")
    redis.xreadgroup(GROUP, "w-1", {INBOX: ">"})

    assert watch.look(35)


def test_an_inbox_that_moves_is_well_however_long_it_is(watch: Watch, redis: Redis) -> None:
    entries: Any = [redis.xadd(INBOX, {"job": "{}"}) for _ in range(30)]
    for entry in entries:
        assert [] == watch.look(10)
        redis.xdel(INBOX, entry)


def test_an_inbox_of_another_type_is_named_with_its_remedy(watch: Watch, redis: Redis) -> None:
    redis.lpush(INBOX, "a job")

    (said,) = watch.look(35)
    assert f"The key {INBOX} is a list and no stream" in said
    assert f"RENAME {INBOX}" in said

    redis.rename(INBOX, f"{INBOX}:wrong")
    assert [] == watch.look()


def test_an_inbox_that_has_given_out_its_last_id_is_named(watch: Watch, redis: Redis) -> None:
    entry = f"{2**64 - 1}-{2**64 - 1}"
    redis.xadd(INBOX, {"job": "{}"}, id=entry)
    redis.xdel(INBOX, entry)

    (said,) = watch.look(35)
    assert "has given out its last id" in said


def test_a_redis_that_is_full_is_named_until_it_has_room(watch: Watch, redis: Redis) -> None:
    redis.config_set("maxmemory", 1)
    try:
        (said,) = watch.look(35)
    finally:
        redis.config_set("maxmemory", 0)
    assert "Redis is full" in said
    assert [] == watch.look()


def test_a_redis_that_became_a_replica_is_named_until_it_is_a_primary(watch: Watch, redis: Redis) -> None:
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        (said,) = watch.look(35)
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")
    assert "replica" in said
    assert [] == watch.look()


@pytest.mark.parametrize(
    ("denied", "named", "in_a_script"),
    [
        ("-@scripting", "eval", False),
        ("-evalsha -eval", "eval", False),
        ("-xrange", "xrange", True),
        ("-hset", "hset", True),
    ],
)
def test_a_right_that_is_missing_is_named(
    own_redis: EmbeddedRedis, redis: Redis, ledger: Engine, denied: str, named: str, in_a_script: bool
) -> None:
    redis.xadd(INBOX, {"job": "{}"})
    redis.execute_command("ACL", "SETUSER", "w", "reset", "on", ">p", "~*", "&*", "+@all", *denied.split())
    address = make_url(own_redis.url)
    with Redis(host=address.host or "", port=address.port or 0, username="w", password="p") as restricted:
        (said,) = Watch(restricted, ledger).look(35)

    # Of a command in a script Redis 7.0 says only that it may not be run.
    assert ("lacks the right" in said and f"+{named}" in said) or (in_a_script and "lacks a right" in said)


# ---- what workers say of themselves


def test_a_worker_leaves_word_of_its_problems_until_it_is_not_heard_of_any_more(redis: Redis) -> None:
    Transport(redis).look_at([INBOX], "w-1", ["It stands."])
    Transport(redis).look_at([INBOX], "w-2")
    Transport(redis).look_at([INBOX])

    assert {"w-1": ["It stands."], "w-2": []} == what_workers_say(redis)

    redis.hset(VITALS, "w-1", f'{int(redis.time()[0]) - KEPT_SECONDS - 1} ["It stands."]')
    assert {"w-2": []} == what_workers_say(redis)
    Transport(redis).look_at([INBOX], "w-2")
    assert [b"w-2"] == redis.hkeys(VITALS)
