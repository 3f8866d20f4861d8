"""Broken parts under load: what may happen to Redis, the ledger, Trackstar and the network, and what must hold then.

One table, fault by kind of ledger. A real worker process works through a stream of orders while a part is broken and
mended again; afterwards every record is compared with the sandbox's truth. How long a part is away is for
CHAOS_OUTAGE_SECONDS to say.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import psutil
import pytest
from harness.deployment import API_KEY, Deployment, Worker
from harness.ledgers import SLOW_LEDGERS
from harness.parts import Disk, PostgresServer, Proxy, RedisServer, lasting_port, open_folder, small_disk
from harness.settings import SHORT
from harness.truth import leftovers, untruths
from sqlalchemy import func, make_url, select

from worker.dev.sandbox import Sandbox, Truth, World
from worker.errors import AlreadyEndedError, InboxUnavailableError
from worker.ledger import migrations
from worker.ledger.database import open_ledger, read_only
from worker.ledger.queries import Timeline
from worker.ledger.schema import cancellations, events
from worker.streams import GROUP, INBOX

if TYPE_CHECKING:
    from sqlalchemy import Column

    from worker.dev.sandbox.options import OrderOptions
    from worker.ledger.vault import TokenVault

OUTAGE_SECONDS = float(os.environ.get("CHAOS_OUTAGE_SECONDS", "5"))
# Above the 10 s that a worker waits for a Redis that says nothing, and above its lease.
SILENCE_SECONDS = max(OUTAGE_SECONDS, 11.5)
LOCK_SECONDS = max(OUTAGE_SECONDS, 10.0)
# Pauses that have grown to 5 s, messages that come back after 10 s, Celery's own reconnecting, and a busy machine.
RECOVERY_SECONDS = 60.0
pytestmark = pytest.mark.timeout(180 + 4 * SILENCE_SECONDS)

SHOP = "shop-1"
SETTINGS = SHORT | {
    "RETRY_CAP_SECONDS": "2",
    "CONNECT_TIMEOUT_SECONDS": "1",
    "LEASE_SECONDS": "10",
    "READ_BACK_SECONDS": "0.5,1,1.5",  # each is longer than two crawls, as in production
    "FORCE_SYNC": "false",
    "CONCURRENCY": "8",  # few, so that a part of the load is always on its way: on the list, claimed, waiting
}
BEFORE, DURING, AFTER = 36, 18, 6
# What a worker may use of one core while it waits, and while it goes on with its work as far as it can. A loop that
# does not pause between its attempts uses a whole one.
WAITING, WORKING = 0.15, 0.8

# What the sandbox answers about one order after another: each kind of ending, with and without doubt.
MIXED: tuple[OrderOptions, ...] = (
    {},
    {"script": ["slow:0.4"]},
    {"script": ["503"]},
    {"script": ["applied_then:500"], "reads": ["fresh"] * 3},
    {"script": ["slow:0.4"]},
    {"script": ["succeeded_then:reset"]},
    {"script": ["409", "409"]},
    {"script": ["400:integration"]},
    {"script": ["429:1"]},
    {"script": ["cut", "502"]},
    {"status": "fulfilled"},
    {"script": ["slow:0.4+applied_then:reset"]},
)


class Site:
    """One deployment of breakable parts, its worker, and a producer that sends again what was not taken."""

    def __init__(self, deployment: Deployment, redis: RedisServer, postgres: PostgresServer | None) -> None:
        self.deployment = deployment
        self.redis = redis
        self.network: Proxy  # before the one part that the worker reaches through it
        self.disk: Disk  # the small one under the ledger
        self.worker: Worker
        self.sent: list[str] = []
        self.told_before: set[str] = set()  # ids whose events may have been on the stream when Redis was emptied
        self._postgres = postgres
        self._orders: deque[str] = deque()

    @property
    def postgres(self) -> PostgresServer:
        assert self._postgres is not None
        return self._postgres

    @property
    def trackstar(self) -> World:
        return self.deployment.trackstar

    def writers(self) -> list[int]:
        """Return the processes that write to the disk under the ledger."""
        return self._postgres.pids() if self._postgres else [self.worker.process.pid]

    # -- load

    def add_orders(self, options: Iterable[OrderOptions]) -> None:
        for number, each in enumerate(options):
            self.trackstar.add_order(SHOP, f"o-{number}", **each)
            self._orders.append(f"o-{number}")

    def send(self, count: int) -> None:
        """Enqueue the next orders; without Redis they stay the next."""
        group = list(islice(self._orders, count))
        if not group:
            return
        try:
            ids = self.deployment.client.enqueue_many({"connection_id": SHOP, "order_id": each} for each in group)
        except InboxUnavailableError:
            return
        except AlreadyEndedError as error:  # of an earlier try, which had been taken after all
            ids = error.ids
        self.sent.extend(ids)
        for _ in group:
            self._orders.popleft()

    def send_rest(self) -> None:
        def all_sent() -> bool:
            self.send(len(self._orders))
            return not self._orders

        self.deployment.wait_until(all_sent, "Redis to take the rest", RECOVERY_SECONDS)

    def go_on(self, seconds: float, orders: int) -> None:
        """Wait for so long, while the producer sends so many orders at an even pace."""
        end, left = time.monotonic() + seconds, orders
        while (rest := end - time.monotonic()) > 0:
            self.send(min(left, 1))  # takes its time where Redis is away
            time.sleep(max(0.0, min(rest / max(left, 1), end - time.monotonic())))
            left = max(left - 1, 0)

    def wait_until_busy(self) -> None:
        """Return when some orders have ended and many more are under way."""
        self.deployment.wait_until(lambda: self.count(cancellations.c.ended_at) > BEFORE // 8, "the first to end")
        assert self.count(cancellations.c.ended_at) < BEFORE, "this fault would come too late"

    def wait_until_in_ledger(self) -> None:
        self.deployment.wait_until(lambda: self.count(cancellations.c.id) == len(self.sent), "all in the ledger")

    def wait_until_ended(self) -> None:
        """Wait until each has ended, every event is published, and nothing is left in Redis."""
        self._wait_for_none(lambda: len(self.sent) - self.count(cancellations.c.ended_at), "every end")
        self._wait_for_none(lambda: self.count(cancellations.c.confirm_at), "every read-back")
        self._wait_for_none(lambda: self.count(events.c.publish_at), "every event")
        self._wait_for_none(lambda: leftovers(self.deployment) or self._taken(), "an empty Redis")

    def _wait_for_none(self, left: Callable[[], Any], what: str) -> None:
        def none_left() -> bool:
            assert self.worker.alive, f"the worker has ended while the test waited for {what}"
            return not left()

        try:
            self.deployment.wait_until(none_left, what, RECOVERY_SECONDS)
        except AssertionError as error:
            error.add_note(f"Left: {left()}. The worker's last output:\n{self.worker.output[-5000:]}")
            raise

    def _taken(self) -> int:
        return int(self.deployment.redis.xpending(INBOX, GROUP)["pending"])

    # -- what is known

    def count(self, column: Column[Any]) -> int:
        """Count the rows in which this column is not null."""
        with read_only(self.deployment.ledger) as db:
            return int(db.execute(select(func.count(column))).scalar_one())

    def connect_anew(self) -> None:
        """Close the test's own connections, which may be broken too; the next use opens new ones."""
        self.deployment.ledger.dispose()
        self.deployment.client.close()

    def timelines(self) -> dict[str, Timeline]:
        found = [self.deployment.timeline(each) for each in dict.fromkeys(self.sent)]
        return {each.cancellation.order_id: each for each in found}


# -- the ways to break a part: a function breaks it for a moment, a context for as long as it lasts

Happens = Callable[[Site], None]
Broken = Callable[[Site], AbstractContextManager[None]]


def redis_restarts(site: Site) -> None:
    site.redis.kill()
    site.redis.start()


@contextmanager
def redis_gone(site: Site) -> Iterator[None]:
    site.redis.stop()
    yield
    site.redis.start()


def redis_loses_everything(site: Site) -> None:
    _prepare_for_a_loss(site)
    site.deployment.redis.flushall()


def redis_loses_messages(site: Site) -> None:
    def message_waits() -> int:
        # A message waits only while Celery does not consume; its connection is cut each time, so that it cannot.
        redis_kills_its_clients(site)
        return site.deployment.messages()

    _prepare_for_a_loss(site)
    site.deployment.wait_until(message_waits, "a message on the list", 10)
    site.deployment.redis.flushall()


def _prepare_for_a_loss(site: Site) -> None:
    # A job that is on the inbox only is lost with Redis: the documented limit, for which a producer may ask again.
    site.wait_until_in_ledger()
    site.told_before.update(site.sent)


def redis_kills_its_clients(site: Site) -> None:
    site.deployment.redis.client_kill_filter(_type="normal", skipme=True)


@contextmanager
def redis_read_only(site: Site) -> Iterator[None]:
    site.deployment.redis.replicaof("127.0.0.1", lasting_port())  # where nobody listens
    yield
    site.deployment.redis.replicaof("NO", "ONE")


def postgres_restarts(site: Site) -> None:
    site.postgres.stop()
    site.postgres.start()


def postgres_is_killed(site: Site) -> None:
    site.postgres.stop(signal.SIGKILL)
    site.postgres.start()


@contextmanager
def postgres_gone(site: Site) -> Iterator[None]:
    site.postgres.stop()
    yield
    site.postgres.start()


def postgres_ends_its_sessions(site: Site) -> None:
    site.postgres.end_clients()


@contextmanager
def postgres_crowded(site: Site) -> Iterator[None]:
    with site.postgres.crowded_out():
        yield


@contextmanager
def sqlite_locked(site: Site) -> Iterator[None]:
    with closing(sqlite3.connect(site.deployment.ledger.url.database or "", timeout=10)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def disk_full(site: Site) -> Iterator[None]:
    site.disk.fill(site.writers())
    yield
    site.disk.free(site.writers())
    if site.deployment.ledger.dialect.name == "postgresql" and not site.postgres.alive:
        site.postgres.start()  # it ends when it cannot write its log, and an operator has to start it


def answering(fault: str) -> Broken:
    """Let Trackstar answer every request with this step."""

    @contextmanager
    def broken(site: Site) -> Iterator[None]:
        site.trackstar.connect(SHOP, fault=fault)
        yield
        site.trackstar.connect(SHOP, fault=None)

    return broken


@contextmanager
def network_refuses(site: Site) -> Iterator[None]:
    site.network.refuse()
    yield
    site.network.pass_on()


@contextmanager
def network_stalls(site: Site) -> Iterator[None]:
    site.network.stall()
    yield
    site.network.pass_on()


def network_resets(site: Site) -> None:
    site.network.cut()


def lasting(broken: Broken, seconds: float = OUTAGE_SECONDS) -> Happens:
    """Let a fault last."""

    def happens(site: Site) -> None:
        with broken(site):
            site.go_on(seconds, DURING)

    return happens


def in_turn(*faults: Happens) -> Happens:
    """Let one fault happen after another, at an even pace."""

    def happens(site: Site) -> None:
        for broken in faults:
            broken(site)
            site.go_on(OUTAGE_SECONDS / len(faults), DURING // len(faults))

    return happens


# -- how a fault shows that it was felt: a row whose fault nobody notices proves nothing

Felt = Callable[[Site, "Outcome"], bool]


def said(*words: str) -> Felt:
    return lambda site, _outcome: any(each in site.worker.output for each in words)


def met(reason: str) -> Felt:
    """Tell whether an attempt ended so; none of MIXED does."""
    return lambda _site, outcome: any(
        row["reason"] == reason for timeline in outcome.timelines.values() for row in timeline.attempts
    )


def played(fault: str) -> Felt:
    """Tell whether the sandbox answered so; no order of MIXED has this step."""
    return lambda _site, outcome: any(
        request.step == fault for truth in outcome.truths.values() for request in truth.requests
    )


def surely(_site: Site, _outcome: Outcome) -> bool:
    """Of faults that need no proof: a lock, a silence and a loss reach everyone."""
    return True


LEDGER_PARTS = ("recorder", "housekeeper", "dispatcher", "relay", "intake")
REDIS_MISSED = said("Connection to broker lost", "intake.unavailable")
# On a full disk the log cannot be written either: then only `recovered` tells of it.
LEDGER_MISSED = said(*(f"{part}.{word}" for part in LEDGER_PARTS for word in ("unavailable", "recovered")))


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    happens: Happens
    felt: Felt
    share: float = WAITING  # of a core, while it lasts
    kinds: tuple[str, ...] = ("sqlite", "postgresql")
    network_before: str = ""  # the part that the worker reaches through a network that can be broken
    on_small_disk: bool = False
    answers_arrive: bool = True  # what Trackstar has answered has reached the worker


FAULTS = {
    "redis restarts": Fault(happens=in_turn(redis_restarts), felt=REDIS_MISSED, share=WORKING),
    "redis gone": Fault(happens=lasting(redis_gone), felt=REDIS_MISSED),
    "redis emptied": Fault(
        happens=in_turn(redis_loses_messages, *[redis_loses_everything] * 2), felt=surely, share=WORKING
    ),
    "redis clients killed": Fault(
        happens=in_turn(*[redis_kills_its_clients, network_resets] * 3),
        felt=REDIS_MISSED,
        share=WORKING,
        network_before="redis",
    ),
    "redis read-only": Fault(happens=lasting(redis_read_only), felt=REDIS_MISSED, share=2 * WAITING),
    "redis black-holed": Fault(
        happens=lasting(network_stalls, seconds=SILENCE_SECONDS), felt=REDIS_MISSED, network_before="redis"
    ),
    "postgres crashes": Fault(
        happens=in_turn(postgres_restarts, postgres_is_killed),
        felt=LEDGER_MISSED,
        share=WORKING,
        kinds=("postgresql",),
    ),
    "postgres gone": Fault(happens=lasting(postgres_gone), felt=LEDGER_MISSED, kinds=("postgresql",)),
    "postgres sessions ended": Fault(
        happens=in_turn(*[postgres_ends_its_sessions] * 6), felt=LEDGER_MISSED, share=WORKING, kinds=("postgresql",)
    ),
    "postgres crowded": Fault(happens=lasting(postgres_crowded), felt=LEDGER_MISSED, kinds=("postgresql",)),
    "postgres black-holed": Fault(
        happens=lasting(network_stalls, seconds=SILENCE_SECONDS),
        felt=surely,
        kinds=("postgresql",),
        network_before="ledger",
    ),
    "sqlite locked": Fault(happens=lasting(sqlite_locked, seconds=LOCK_SECONDS), felt=surely, kinds=("sqlite",)),
    # PostgreSQL works on in part: it reads, and it overwrites pages that it has.
    "disk full": Fault(happens=lasting(disk_full), felt=LEDGER_MISSED, share=WORKING, on_small_disk=True),
    "trackstar hangs": Fault(
        happens=lasting(answering("hang:3")), felt=played("hang:3"), share=WORKING, answers_arrive=False
    ),
    "trackstar resets": Fault(
        happens=lasting(answering("reset")), felt=played("reset"), share=WORKING, answers_arrive=False
    ),
    "trackstar drips": Fault(
        happens=lasting(answering("drip:0.3")), felt=played("drip:0.3"), share=WORKING, answers_arrive=False
    ),
    "trackstar down": Fault(
        happens=lasting(network_refuses),
        felt=met("connect_failed"),
        share=WORKING,
        network_before="trackstar",
        answers_arrive=False,
    ),
    "trackstar black-holed": Fault(
        happens=lasting(network_stalls),
        felt=met("read_timeout"),
        share=WORKING,
        network_before="trackstar",
        answers_arrive=False,
    ),
}
CELLS = [
    pytest.param(fault, kind, id=f"{name}, {kind}")
    for name, fault in FAULTS.items()
    for kind in fault.kinds
    if len(fault.kinds) == 1 or kind in SLOW_LEDGERS
]


class Outcome(msgspec.Struct, frozen=True):
    """What is untrue; what was recorded and what really happened, by order; what the worker used of a core."""

    untruths: list[str]
    timelines: dict[str, Timeline]
    truths: dict[str, Truth]
    answers_arrive: bool
    share_of_a_core: float
    allowed_share: float
    connections_refused: int
    alive: bool


@pytest.mark.parametrize(("fault", "kind"), CELLS)
def test_nothing_is_lost_and_nothing_done_twice_while_a_part_is_broken(
    make_site: MakeSite, subtests: pytest.Subtests, fault: Fault, kind: str
) -> None:
    with make_site(kind, network_before=fault.network_before, on_small_disk=fault.on_small_disk) as site:
        site.add_orders(islice(cycle(MIXED), BEFORE + DURING + AFTER))
        site.send(BEFORE)
        site.wait_until_busy()
        usage = Usage(site.worker.process.pid)
        fault.happens(site)
        share = usage.share()
        site.connect_anew()
        site.send_rest()
        site.wait_until_ended()
        timelines = site.timelines()
        outcome = Outcome(
            _untruths(site, timelines),
            timelines,
            {order.order_id: order.truth for order in site.trackstar.orders()},
            fault.answers_arrive,
            share,
            fault.share,
            site.worker.output.count("Cannot connect"),
            site.worker.alive,
        )
        felt = fault.felt(site, outcome)
    assert felt, "the worker did not notice"
    for promise in PROMISES:
        with subtests.test(promise.__name__):
            promise(outcome)


class Usage:
    """What a process uses of one core from now on."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._used, self._since = self._so_far(), time.monotonic()

    def share(self) -> float:
        return (self._so_far() - self._used) / (time.monotonic() - self._since)

    def _so_far(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _untruths(site: Site, timelines: dict[str, Timeline]) -> list[str]:
    lost = {
        f"{order_id}: {what}"
        for order_id, timeline in timelines.items()
        for what in ("its end was not told", "its money is not on the stream")
        if timeline.cancellation.id in site.told_before
    }
    orders = [order.order_id for order in site.trackstar.orders()]
    return [each for each in untruths(site.deployment, orders, SHOP) if each.partition(" (")[0] not in lost]


def every_record_is_true(outcome: Outcome) -> None:
    assert [] == outcome.untruths


def each_intent_has_one_key(outcome: Outcome) -> None:
    assert {order_id: (timeline.cancellation.id,) for order_id, timeline in outcome.timelines.items()} == {
        order_id: truth.keys for order_id, truth in outcome.truths.items()
    }


def no_answer_is_lost(outcome: Outcome) -> None:
    if not outcome.answers_arrive:
        return
    for order_id, truth in outcome.truths.items():
        attempts = outcome.timelines[order_id].attempts
        recorded = {row["request_id"] for row in attempts}
        missing = [request for request in truth.requests if request.status and request.id not in recorded]
        # On a busy machine the sandbox may answer late, when the worker has given up the request.
        assert len(missing) <= [row["reason"] for row in attempts].count("read_timeout"), (order_id, missing, attempts)


def a_worker_that_lives_is_never_given_up(outcome: Outcome) -> None:
    lost = {
        order_id
        for order_id, timeline in outcome.timelines.items()
        if "worker_lost" in {row["reason"] for row in timeline.attempts}
    }
    assert set() == lost


def the_worker_lives_and_does_not_spin(outcome: Outcome) -> None:
    assert outcome.alive
    assert outcome.share_of_a_core < outcome.allowed_share
    assert outcome.connections_refused < 2 * SILENCE_SECONDS  # one a second, not as many as the machine can


PROMISES = (
    every_record_is_true,
    each_intent_has_one_key,
    no_answer_is_lost,
    a_worker_that_lives_is_never_given_up,
    the_worker_lives_and_does_not_spin,
)


# -- an answer in hand

WITHIN_THE_LEASE = {"REQUEST_TIMEOUT_SECONDS": "20", "LEASE_SECONDS": str(60 + 2 * OUTAGE_SECONDS)}
# A ledger that is silent and not gone is noticed by time-outs only, and the lease ends before those.
PAST_THE_LEASE = {"REQUEST_TIMEOUT_SECONDS": "3", "LEASE_SECONDS": "12"}
SMALL_DISK, NETWORK = {"on_small_disk": True}, {"network_before": "ledger"}
LEDGERS_AWAY = [
    pytest.param("sqlite", disk_full, WITHIN_THE_LEASE, SMALL_DISK, id="disk full, sqlite"),
    pytest.param("sqlite", sqlite_locked, PAST_THE_LEASE, {}, id="sqlite locked"),
    pytest.param("postgresql", disk_full, WITHIN_THE_LEASE, SMALL_DISK, id="disk full, postgresql"),
    pytest.param("postgresql", postgres_gone, WITHIN_THE_LEASE, {}, id="postgres gone"),
    pytest.param("postgresql", postgres_crowded, WITHIN_THE_LEASE, {}, id="postgres crowded"),
    pytest.param("postgresql", network_stalls, PAST_THE_LEASE, NETWORK, id="postgres black-holed"),
]


@pytest.mark.parametrize(("kind", "broken", "settings", "options"), LEDGERS_AWAY)
def test_an_answer_that_trackstar_gave_is_recorded_when_the_ledger_is_back(
    make_site: MakeSite, kind: str, broken: Broken, settings: dict[str, str], options: dict[str, Any]
) -> None:
    seconds = max(OUTAGE_SECONDS, 13.0) if settings is PAST_THE_LEASE else OUTAGE_SECONDS
    with make_site(kind, settings, **options) as site:
        site.add_orders([{"script": ["pause"]}] * 4)
        site.send(4)
        orders = site.trackstar.orders()
        for order in orders:
            site.trackstar.wait_for_pause(SHOP, order.order_id, 30)
        with broken(site):
            for order in orders:
                site.trackstar.release(SHOP, order.order_id)
            site.trackstar.wait_until(
                lambda: all([each.end for each in order.truth.requests] == ["answered"] for order in orders)
            )
            site.go_on(seconds, 0)
        site.connect_anew()
        site.wait_until_ended()
        timelines = site.timelines()
        untrue = untruths(site.deployment, timelines, SHOP)

    assert [] == untrue
    for order in orders:
        (request,) = order.truth.requests
        ended, attempts = timelines[order.order_id].cancellation, timelines[order.order_id].attempts
        assert [(request.id, "accepted")] == [(row["request_id"], row["reason"]) for row in attempts]
        assert ("succeeded", "cancelled", "response", 1) == (
            ended.status,
            ended.verdict,
            ended.evidence,
            ended.attempts,
        )


# -- a Redis that says nothing

IN_FLIGHT = 400  # answers: two groups of the recorder and more


@pytest.mark.parametrize("kind", SLOW_LEDGERS)
def test_answers_are_recorded_while_redis_says_nothing(make_site: MakeSite, kind: str) -> None:
    settings = WITHIN_THE_LEASE | {"CONCURRENCY": str(IN_FLIGHT + 20), "WRITES_PER_SECOND": "500"}
    with make_site(kind, settings, network_before="redis") as site:
        site.add_orders([{"script": ["pause"]}] * IN_FLIGHT)
        site.send(IN_FLIGHT)
        for order in site.trackstar.orders():
            site.trackstar.wait_for_pause(SHOP, order.order_id, 30)
        with network_stalls(site):
            for order in site.trackstar.orders():
                site.trackstar.release(SHOP, order.order_id)
            # A command waits 10 s for such a Redis: with one in each group of records, the third would end after 20 s.
            site.deployment.wait_until(lambda: site.count(cancellations.c.ended_at) == IN_FLIGHT, "every end", 15)
        site.wait_until_ended()

        assert [] == untruths(site.deployment, site.timelines(), SHOP)


# -- the site


ADDRESSES = {"redis": "REDIS_URL", "ledger": "DATABASE_URL", "trackstar": "TRACKSTAR_BASE_URL"}


class MakeSite(Protocol):
    """Makes a deployment of breakable parts with one worker, for as long as the `with` block lasts."""

    def __call__(
        self, kind: str, settings: Mapping[str, str] = ..., *, network_before: str = "", on_small_disk: bool = False
    ) -> AbstractContextManager[Site]: ...


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresServer]:
    """The files of a server with a migrated ledger."""
    with open_folder("cancel-worker-template-") as folder:
        server = PostgresServer.create(folder / "data")
        server.start()
        engine = open_ledger(server.url)
        migrations.migrate(engine)
        engine.dispose()
        server.stop(signal.SIGINT)
        yield server


@pytest.fixture
def make_site(
    request: pytest.FixtureRequest, migrated_sqlite: Path, credential_key: str, vault: TokenVault
) -> MakeSite:
    """Make a deployment of breakable parts with a ledger of a kind and one worker, for as long as the block lasts."""

    def start_postgres(folder: Path, stack: ExitStack) -> PostgresServer:
        template: PostgresServer = request.getfixturevalue("postgres_template")
        server = template.copy(folder / "data")
        stack.callback(server.stop)
        server.start()
        return server

    @contextmanager
    def make(
        kind: str, settings: Mapping[str, str] = {}, *, network_before: str = "", on_small_disk: bool = False
    ) -> Iterator[Site]:
        with ExitStack() as stack:
            folder = stack.enter_context(open_folder("cancel-worker-site-"))
            for name in ("redis", "ledger", "workers"):
                (folder / name).mkdir()
            small = small_disk(folder / "ledger", for_postgres=kind == "postgresql")
            disk = stack.enter_context(small) if on_small_disk else None
            redis = RedisServer(folder / "redis")
            stack.callback(redis.stop)
            redis.start()
            postgres = start_postgres(folder / "ledger", stack) if kind == "postgresql" else None
            if postgres is None:
                shutil.copy(migrated_sqlite, folder / "ledger" / "ledger.sqlite3")
            url = postgres.url if postgres else f"sqlite:///{folder}/ledger/ledger.sqlite3"
            sandbox = stack.enter_context(Sandbox(API_KEY, sync_seconds=0.2, sync_schedules=False))
            deployment = Deployment(
                redis.url, url, sandbox.world, sandbox.url, folder / "workers", credential_key, SETTINGS
            )
            site = Site(deployment, redis, postgres)
            if disk:
                site.disk = disk
            if network_before:
                name = ADDRESSES[network_before]
                port = make_url(deployment.env[name]).port
                assert port
                site.network = stack.enter_context(Proxy(port))
                settings = {**settings, name: deployment.env[name].replace(f":{port}", f":{site.network.port}")}
            stack.callback(deployment.close)
            deployment.connect(vault, [SHOP])
            sandbox.world.connect(SHOP, writes_per_second=None, reads_per_second=None)
            site.worker = deployment.start_worker(**settings)
            site.worker.wait_until_ready()
            yield site

    return make
