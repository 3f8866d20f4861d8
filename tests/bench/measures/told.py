"""What telling costs: webhooks alone and beside cancels, of one endpoint and of a hundred, and the feed's own pace.

All receivers are one process of the bench, which takes each event at once; those that hang never answer.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import text

from bench.contenders import OURS
from bench.ledgers import KEY, make_jobs
from bench.measures.forget import RATE, milliseconds
from bench.outbox import write
from bench.parts import running_stub
from bench.processes import cpu_seconds
from bench.report import Spread, Verdict, percentile, print_table, ratios
from bench.running import PATIENCE_SECONDS, POLL_SECONDS, StalledError
from worker.client import CancelClient
from worker.ledger import endpoints, feed
from worker.ledger.vault import TokenVault
from worker.webhooks.request import new_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench
    from bench.ledgers import Ledger
    from bench.running import Running
    from bench.stub import StubClient

MANY = 100  # endpoints
WARM = 100
FEED = 100_000  # events without a place
MAX_RATIO = 1.2
P50_MS = 50.0
LIGHT = 10.0  # cancels a second
# Endpoints beside single cancels: of these the first answers, the others hang.
SINGLE = {0: "none", 1: "one that answers", MANY: f"and {MANY - 1} that hang"}

_MADE = "SELECT id, created_at FROM events WHERE created_at >= :since"


def run(bench: Bench) -> list[Verdict]:
    with running_stub(bench.parts.folder, "receivers") as receivers:
        for number in bench.rounds():
            parts = [partial(part, bench, receivers, number) for part in (_alone, _beside, _hanging, _soon)]
            for measure in (*parts, partial(_feed, bench, number)):
                bench.trying(OURS, measure)
    _show(bench)
    return _verdicts(bench)


@contextmanager
def _working(bench: Bench, *urls: str, processes: int = 2) -> Iterator[Running]:
    """Run our workers on a fresh ledger with these endpoints."""
    ledger = bench.ledgers.fresh(is_ours=True)
    vault = TokenVault([KEY])
    with ledger.engine.begin() as db:
        for url in urls:
            endpoints.add(db, url, vault.encrypt(new_secret()))
    try:
        with bench.working(OURS, ledger, processes=processes, WEBHOOK_ALLOW_PRIVATE="true") as running:
            yield running
    finally:
        bench.ledgers.drop(ledger)


# -- webhooks alone: events that are there


def _alone(bench: Bench, receivers: StubClient, number: int) -> None:
    for count in (1, MANY):
        with _working(bench, *[f"{receivers.url}/hook"] * count) as running:
            rate, _ = _delivered(receivers, running, WARM, count)
            lot = bench.options.lot(rate) // count
            rate, cpu = _delivered(receivers, running, max(WARM // 10, lot), count)
        bench.note(OURS, number, endpoints=count, events=rate / count, deliveries=rate, cpu_ms=cpu)


def _delivered(receivers: StubClient, running: Running, events: int, count: int) -> tuple[float, float]:
    """Write events; return deliveries a second from the first to the last, and a worker's CPU of each, ms."""
    receivers.reset(0.0)
    before = running.cpu
    write(running.ledger, events)
    _wait(receivers, events * count)
    seen = receivers.stats()
    seconds = (seen["last_at"] - seen["first_at"]) / 1e9
    return seen["count"] / seconds, (running.cpu - before) * 1000 / seen["count"]


def _wait(receivers: StubClient, count: int) -> None:
    moved_at, last = time.monotonic(), 0
    while (seen := receivers.stats()["count"]) < count:
        if seen != last:
            moved_at, last = time.monotonic(), seen
        if time.monotonic() - moved_at > PATIENCE_SECONDS:
            raise StalledError(f"{seen} of {count} events were received, then nothing.")
        time.sleep(POLL_SECONDS)


# -- beside cancels


def _beside(bench: Bench, receivers: StubClient, number: int) -> None:
    lot = 0
    for count in (0, 1, MANY):
        with _working(bench, *[f"{receivers.url}/hook"] * count) as running:
            running.warm_up(WARM)
            rate = running.warm_up(2 * WARM)
            lot = lot or bench.options.lot(rate)  # the same for all
            receivers.reset(0.0)
            measured = running.measure(lot, delay=0.0)
            told = receivers.stats()["count"]
        bench.note(OURS, number, beside=count, rate=measured.rate, deliveries=told / measured.seconds)


def _hanging(bench: Bench, receivers: StubClient, number: int) -> None:
    """Measure single cancels beside no endpoint, one that answers, and many that hang with it; in turn each first."""
    urls = [f"{receivers.url}/hook", *[f"{receivers.url}/hang"] * (MANY - 1)]
    for count in sorted(SINGLE, reverse=bool(number % 2)):
        receivers.reset(0.0)
        with _working(bench, *urls[:count], processes=1) as running:
            running.warm_up(WARM)
            bench.parts.postgres.settle()
            before = _costs(bench, running)
            took = milliseconds(bench, running, round(4 * RATE * bench.options.seconds))
            after = _costs(bench, running)
        worker, postgres = ((b - a) * 1000 / len(took) for a, b in zip(before, after, strict=True))
        shares = {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99)}
        told = receivers.stats()["count"]
        bench.note(OURS, number, single=count, worker_ms=worker, postgres_ms=postgres, told=told, **shares)


def _costs(bench: Bench, running: Running) -> tuple[float, float]:
    return running.cpu, cpu_seconds([bench.parts.postgres.process])


def _soon(bench: Bench, receivers: StubClient, number: int) -> None:
    """Measure how long after its record an event is received, on workers that have nothing else to do."""
    jobs = make_jobs(max(50, round(4 * LIGHT * bench.options.seconds)))
    with _working(bench, f"{receivers.url}/hook") as running:
        running.warm_up(WARM)
        _wait(receivers, 2 * WARM)
        receivers.reset(0.0)
        with running.ledger.engine.connect() as db:
            since = db.execute(text("SELECT clock_timestamp()")).scalar_one()
        running.put(jobs, rate=LIGHT)
        _wait(receivers, 2 * len(jobs))  # its end, and its refund
        with running.ledger.engine.connect() as db:
            made = db.execute(text(_MADE), {"since": since}).all()
    arrived = {int(id_.split("_")[1]): at for id_, at in receivers.arrivals().items()}
    # The database runs on this machine: its clock is ours.
    ahead = time.time_ns() - time.monotonic_ns()
    took = [(arrived[row.id] + ahead) / 1e6 - row.created_at.timestamp() * 1e3 for row in made]
    bench.note(OURS, number, receipt_p50_ms=percentile(took, 0.5), receipt_p99_ms=percentile(took, 0.99))


# -- the feed


def _feed(bench: Bench, number: int) -> None:
    count = _events_of_feed(bench)
    ledger = bench.ledgers.fresh(is_ours=True)
    write(ledger, count)
    bench.parts.postgres.settle()
    began = time.monotonic()
    while given := _give_places(ledger):
        assert feed.MAX_PLACED >= given
    placed = time.monotonic()
    client = CancelClient(bench.parts.redis_url, ledger.url)
    read = sum(1 for _ in client.events(after="0", timeout=0))
    seconds = time.monotonic() - placed
    client.close()
    bench.ledgers.drop(ledger)
    assert count == read
    bench.note(OURS, number, place_seconds=placed - began, feed_rate=read / seconds)


def _events_of_feed(bench: Bench) -> int:
    return min(FEED, bench.options.jobs or FEED)


def _give_places(ledger: Ledger) -> int:
    with ledger.engine.begin() as db:
        return feed.give_places(db)


# -- what is shown


def _show(bench: Bench) -> None:
    def spread(name: str, **where: object) -> Spread:
        return Spread.of(bench.values(OURS.name, name, **where))

    print_table(
        "Webhooks alone, two worker processes",
        ("endpoints", "events/s", "deliveries/s", "worker CPU ms of a delivery"),
        [
            [str(each), *(spread(name, endpoints=each) for name in ("events", "deliveries", "cpu_ms"))]
            for each in (1, MANY)
        ],
    )
    none = bench.values(OURS.name, "rate", beside=0)
    print_table(
        "Webhooks beside cancels as fast as they go, two worker processes",
        ("endpoints", "cancels/s", "÷ without", "deliveries/s meanwhile"),
        [
            [
                str(each),
                spread("rate", beside=each),
                ratios(bench.values(OURS.name, "rate", beside=each), none),
                spread("deliveries", beside=each),
            ]
            for each in (0, 1, MANY)
        ],
    )
    print_table(
        f"A cancel from enqueueing to its end, {RATE:g}/s, one worker process",
        ("endpoints", "p50, ms", "p99, ms", "CPU ms of a cancel: worker", "PostgreSQL"),
        [
            [what, *(spread(name, single=each) for name in ("p50_ms", "p99_ms", "worker_ms", "postgres_ms"))]
            for each, what in SINGLE.items()
        ],
    )
    print_table(
        "The feed",
        ("", "measured"),
        [
            [f"from record to receipt, {LIGHT:g} cancels/s, p50 ms", spread("receipt_p50_ms")],
            ["the same, p99 ms", spread("receipt_p99_ms")],
            [f"places for {_events_of_feed(bench):,} events, s", spread("place_seconds")],
            ["events/s that a client reads", spread("feed_rate")],
        ],
    )


def _verdicts(bench: Bench) -> list[Verdict]:
    alone, answered, hang = (bench.values(OURS.name, "p99_ms", single=each) for each in SINGLE)
    what = f"p99 of a cancel, {MANY - 1} of {MANY} endpoints hang"
    return [
        Verdict(what=f"{what} ÷ without any", value=ratios(hang, alone), target=MAX_RATIO, at_least=False),
        Verdict(what=f"{what} ÷ without these", value=ratios(hang, answered), target=MAX_RATIO, at_least=False),
        Verdict(
            what="from record to receipt, p50 ms",
            value=Spread.of(bench.values(OURS.name, "receipt_p50_ms")),
            target=P50_MS,
            at_least=False,
        ),
    ]
