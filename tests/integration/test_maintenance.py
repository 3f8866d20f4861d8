"""What time brings is done, once, whoever looks first, and those who must know are told; on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from sqlalchemy import Engine, select, update

from worker.cancellation.lifecycle import Moment, decide
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.ledger import deadlines, holds, outbox, queries, results, transitions
from worker.ledger.results import AttemptResult
from worker.ledger.schema import cancellations, events
from worker.ledger.schema import connections as connection_rows
from worker.runtime import maintenance as module
from worker.runtime.maintenance import DEADLINE_CHECK_SECONDS, POLL_SECONDS, SETTLE_SECONDS, Handlers, Maintenance

if TYPE_CHECKING:
    from conftest import LedgerSwitch, Logged
    from sqlalchemy import Connection

    from worker.ledger.record import Cancellation

SOON = 10.0  # more than any of this takes; nothing waits for so long when all is well
LEASE = 60.0
POLICY = Policy(retry_horizon=3600.0)
c = cancellations.c


def ago(**how_long: float) -> datetime:
    return datetime.now(UTC) - timedelta(**how_long)


class Told:
    """Who hears of what is due."""

    def __init__(self) -> None:
        self.started: SimpleQueue[Engine] = SimpleQueue()
        self.ready: list[str] = []
        self.rescued: SimpleQueue[Any] = SimpleQueue()
        self.confirmed: list[Any] = []
        self.publications: list[None] = []
        self.expired: list[Any] = []
        self.warned: list[int] = []

    def handlers(self) -> Handlers:
        return Handlers(
            at_start=self.started.put,
            on_ready=self.ready.extend,
            rescue=lambda lost: [self.rescued.put(each) for each in lost],
            confirm=self.confirmed.extend,
            publish_events=lambda: self.publications.append(None),
            expired=self.expired.extend,
            warned=self.warned.append,
        )

    def rescues(self) -> list[Any]:
        return [self.rescued.get() for _ in range(self.rescued.qsize())]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def make(ledger: Engine, told: Told) -> Iterator[Callable[..., Maintenance]]:
    """Make housekeepers that end with the test."""
    made: list[Maintenance] = []

    def make_one(owner: str = "w-1", handlers: Handlers | None = None) -> Maintenance:
        made.append(Maintenance(ledger, owner, LEASE, 50.0, POLICY, handlers or told.handlers()))
        return made[-1]

    yield make_one
    for each in made:
        each.loop.stop(SOON)


@pytest.fixture
def housekeeper(make: Callable[..., Maintenance], shop: str) -> Maintenance:  # noqa: ARG001
    return make()


def add(ledger: Engine, order_id: str = "o-1", request: dict[str, Any] | None = None, **columns: Any) -> str:
    """Accept a job of shop-1 and let its row be so."""
    made = CancelRequest(connection_id="shop-1", order_id=order_id, **(request or {}))
    with ledger.begin() as db:
        transitions.accept(db, [made])
        if columns:
            db.execute(update(cancellations).where(c.id == made.record_id).values(**columns))
    return made.record_id


def waiting(ledger: Engine, order_id: str = "o-1", *, run_at: datetime, **columns: Any) -> str:
    return add(ledger, order_id, status="waiting", run_at=run_at, claims=1, attempts=1, **columns)


def in_flight(ledger: Engine, order_id: str = "o-1", *, until: datetime, **columns: Any) -> str:
    values = {"status": "in_flight", "claims": 1, "first_sent_at": ago(minutes=1), **columns}
    return add(ledger, order_id, lease_owner="w-lost", lease_expires_at=until, **values)


def accepted_by_trackstar(ledger: Engine, order_id: str = "o-1", *, confirm_at: datetime) -> str:
    values = {"verdict": "accepted", "evidence": "response", "ended_at": ago(minutes=2)}
    return add(ledger, order_id, status="succeeded", claims=1, attempts=1, confirm_at=confirm_at, **values)


def get(ledger: Engine, record_id: str) -> Cancellation:
    with ledger.connect() as db:
        found = queries.get(db, record_id)
    assert found is not None
    return found


def status(ledger: Engine, record_id: str) -> str:
    return get(ledger, record_id).status


def event_types(ledger: Engine) -> list[str]:
    with ledger.connect() as db:
        return list(db.execute(select(events.c.type).order_by(events.c.id)).scalars())


# -- the rhythm


def test_the_start_is_told_once_as_soon_as_the_ledger_answers(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    housekeeper.tick()
    housekeeper.tick()

    assert ledger is told.started.get(timeout=SOON)
    assert told.started.empty()


def test_a_start_waits_for_a_ledger_that_is_away(
    ledger: Engine, ledger_switch: LedgerSwitch, make: Callable[..., Maintenance], told: Told
) -> None:
    tries: list[None] = []

    def at_start(given: Engine) -> None:
        tries.append(None)
        with given.begin():
            told.started.put(given)

    ledger_switch.away()
    handlers = told.handlers()
    housekeeper = make(handlers=Handlers(**{**_fields(handlers), "at_start": at_start}))
    housekeeper.loop.start()
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()

    assert ledger is told.started.get(timeout=SOON)
    assert housekeeper.loop.stop(SOON)
    assert (1, True) == (len(tries), told.started.empty())


def _fields(handlers: Handlers) -> dict[str, Any]:
    return {name: getattr(handlers, name) for name in handlers.__struct_fields__}


def test_when_nothing_is_due_it_looks_again_in_a_second(ledger: Engine, housekeeper: Maintenance, told: Told) -> None:
    add(ledger)
    waiting(ledger, "later", run_at=ago(hours=-1))
    in_flight(ledger, "running", until=ago(hours=-1))

    assert POLL_SECONDS == housekeeper.tick()
    assert ([], [], [], [], []) == (told.ready, told.rescues(), told.confirmed, told.publications, told.expired)


def test_it_looks_again_when_the_next_thing_is_due(
    ledger: Engine, housekeeper: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 3600.0)
    waiting(ledger, run_at=ago(seconds=-60))

    assert 0 < housekeeper.tick() <= 60


def test_after_any_progress_it_looks_again_at_once(ledger: Engine, housekeeper: Maintenance) -> None:
    waiting(ledger, run_at=ago(seconds=1))

    assert [0.0, POLL_SECONDS] == [housekeeper.tick(), housekeeper.tick()]


def test_a_crowd_that_is_due_is_done_in_parts(
    ledger: Engine, housekeeper: Maintenance, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SWEEP", 2)
    for number in range(5):
        waiting(ledger, f"o-{number}", run_at=ago(seconds=1))

    done = []
    while housekeeper.tick() == 0.0:
        done.append(len(told.ready))
    assert [2, 4, 5] == done


# -- retries


def test_due_retries_become_pending_and_their_connections_are_told(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    due = [waiting(ledger, order_id, run_at=ago(seconds=1)) for order_id in ("a", "b")]
    later = waiting(ledger, "later", run_at=ago(hours=-1))
    housekeeper.tick()

    assert ["shop-1", "shop-1"] == told.ready
    assert ["pending", "pending", "waiting"] == [status(ledger, each) for each in (*due, later)]


# -- what cannot be sent any more


def test_what_is_past_its_send_by_is_expired_and_told(ledger: Engine, housekeeper: Maintenance, told: Told) -> None:
    past, future = ago(seconds=1), ago(hours=-1)
    never_sent = add(ledger, "never sent", {"send_by": past})
    doubted = waiting(ledger, "doubted", run_at=future, send_by=past, verdict="unknown", first_sent_at=ago(minutes=1))
    refused = waiting(ledger, "refused", run_at=future, send_by=past, verdict="not_cancelled", evidence="refusal")
    in_time = add(ledger, "in time", {"send_by": future})
    housekeeper.tick()

    assert {never_sent: ("expired", "not_cancelled"), doubted: ("expired", "unknown")} == {
        row.id: (transition.status, transition.verdict) for row, transition in told.expired
    }
    assert ["expired", "expired", "waiting", "pending"] == [
        status(ledger, each) for each in (never_sent, doubted, refused, in_time)
    ]
    # Of the one that is in doubt nothing is told of its money.
    assert ["cancellation.ended", "cancellation.ended", "refund.refused"] == event_types(ledger)


def test_what_waits_past_the_retry_horizon_is_given_up_and_told(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    old, young = ago(seconds=POLICY.retry_horizon + 1), ago(seconds=POLICY.retry_horizon - 60)
    sent = add(ledger, "sent", first_sent_at=old)
    doubted = add(ledger, "doubted", first_sent_at=old, verdict="unknown")
    # It was sent and claimed again to be read, and given back: its connection is held.
    refused = add(ledger, "refused", first_sent_at=old, verdict="unknown", evidence="refusal", claims=2, attempts=1)
    patient = [add(ledger, "young", first_sent_at=young), add(ledger, "never sent", requested_at=old)]
    with ledger.begin() as db:
        holds.hold(db, ["shop-1"], holds.OPERATOR)  # as it is when something waits for so long
    housekeeper.tick()

    assert {
        sent: ("exhausted", "not_cancelled"),
        doubted: ("exhausted", "unknown"),
        refused: ("rejected", "unknown"),
    } == {row.id: (transition.status, transition.verdict) for row, transition in told.expired}
    assert ["pending", "pending"] == [status(ledger, each) for each in patient]
    assert ["exhausted", "exhausted", "rejected"] == [status(ledger, each) for each in (sent, doubted, refused)]


def test_a_refusal_that_was_claimed_once_and_waits_past_the_horizon_is_given_up(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    record_id = add(ledger)
    claimed, _ = transitions.claim_shares(ledger, {"shop-1": 1}, "w-1", LEASE, {})
    (claim,) = claimed["shop-1"]
    refusal = Outcome(kind=Kind.REFUSED, reason="refused_by_warehouse", read_first=True)
    unread = ReadBack(shows=OrderState.LATER, reason="read_timeout")
    transition = decide(claim.state, refusal, unread, Moment(now=claim.claimed_at, jitter=0.5, policy=POLICY))
    with ledger.begin() as db:
        results.commit_results(db, [AttemptResult(claim=claim, attempts=(), transition=transition)])
        db.execute(update(cancellations).values(run_at=ago(seconds=1)))
        transitions.promote_due(db, 10)
        holds.hold(db, ["shop-1"], holds.OPERATOR)
        db.execute(update(cancellations).values(first_sent_at=ago(seconds=POLICY.retry_horizon + 1)))
    housekeeper.tick()

    assert [(record_id, "rejected")] == [(row.id, transition.status) for row, transition in told.expired]


# -- leases


def test_claims_whose_lease_is_over_are_rescued(ledger: Engine, housekeeper: Maintenance, told: Told) -> None:
    lost = in_flight(ledger, "lost", until=ago(seconds=1))
    in_flight(ledger, "alive", until=ago(seconds=-60))

    assert 0.0 == housekeeper.tick()
    assert [(lost, "w-1", 1)] == [(each.id, each.lease.owner, each.lease.token) for each in told.rescues()]
    housekeeper.tick()
    assert [] == told.rescues()  # its lease has begun anew


def test_what_the_release_before_had_queued_and_nobody_claimed_is_pending_again_and_told(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    lost = add(ledger, status="queued", lease_owner="w-0", lease_expires_at=ago(seconds=1))
    housekeeper.tick()

    assert (["shop-1"], [], "pending") == (told.ready, told.rescues(), status(ledger, lost))


def test_soon_after_an_outage_of_the_ledger_live_workers_may_still_record(
    ledger: Engine, housekeeper: Maintenance, told: Told
) -> None:
    lost = in_flight(ledger, "lost", until=ago(seconds=1))
    queued = add(ledger, "queued", status="queued", lease_owner="w-0", lease_expires_at=ago(seconds=1))
    housekeeper.loop.recovered_at = time.monotonic() - SETTLE_SECONDS + 5
    housekeeper.tick()
    assert (["pending", "in_flight"], []) == ([status(ledger, each) for each in (queued, lost)], told.rescues())

    housekeeper.loop.recovered_at -= 5
    housekeeper.tick()
    assert [lost] == [each.id for each in told.rescues()]


def test_the_first_look_after_an_outage_of_the_ledger_rescues_nobody(
    ledger: Engine,
    ledger_switch: LedgerSwitch,
    make: Callable[..., Maintenance],
    told: Told,
    logged: Logged,
    shop: str,  # noqa: ARG001
) -> None:
    in_flight(ledger, "lost", until=ago(seconds=1))
    ledger_switch.away()
    housekeeper = make()
    housekeeper.loop.start()
    assert ledger_switch.tried.wait(SOON)
    ledger_switch.back()
    logged.wait_for("housekeeper.recovered")
    assert housekeeper.loop.stop(SOON)

    assert [] == told.rescues()


def test_after_the_ledgers_clock_has_jumped_no_claim_is_taken_over_for_the_time_of_a_lease(
    ledger: Engine, housekeeper: Maintenance, told: Told, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    housekeeper.tick()
    lost = in_flight(ledger, until=ago(seconds=1))  # as every lease looks then, also that of a request under way
    clock, look = time.monotonic, deadlines.next_deadlines

    def an_hour_ahead(db: Connection) -> deadlines.NextDeadlines:
        due = look(db)
        return msgspec.structs.replace(due, now=due.now + timedelta(hours=1))

    monkeypatch.setattr(deadlines, "next_deadlines", an_hour_ahead)
    housekeeper.tick()
    logged.wait_for("ledger.clock_stepped")
    assert [] == told.rescues()

    monkeypatch.setattr(time, "monotonic", lambda: clock() + LEASE)
    housekeeper.tick()
    assert [lost] == [each.id for each in told.rescues()]


# -- read-backs


def test_due_read_backs_are_claimed_once_and_handed_out(ledger: Engine, housekeeper: Maintenance, told: Told) -> None:
    due = accepted_by_trackstar(ledger, "due", confirm_at=ago(seconds=1))
    accepted_by_trackstar(ledger, "later", confirm_at=ago(seconds=-60))

    assert 0.0 == housekeeper.tick()
    housekeeper.tick()
    assert [(due, "accepted", 2)] == [(each.id, each.verdict, each.lease.token) for each in told.confirmed]


# -- events


def test_documents_of_the_release_before_are_moved_with_each_poll_and_hurry_nobody(
    ledger: Engine, housekeeper: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MOVED", 2)
    for number in range(3):
        add(ledger, f"o-{number}", order_snapshot=f"{number}")
    left: list[int] = []
    for _ in range(3):
        assert POLL_SECONDS == housekeeper.tick()
        with ledger.connect() as db:
            left.append(len(db.execute(select(c.id).where(c.order_snapshot.is_not(None))).all()))

    assert [1, 0, 0] == left


def test_events_that_nobody_published_are_announced(ledger: Engine, housekeeper: Maintenance, told: Told) -> None:
    with ledger.begin() as db:
        outbox.add_leased_events(db, [(None, "a.b", {})])
    housekeeper.tick()
    assert [] == told.publications  # whoever wrote it is publishing it

    with ledger.begin() as db:
        outbox.add_events(db, [(None, "a.b", {})])
    housekeeper.tick()
    assert [None] == told.publications


# -- deadlines that will not be met


def crowded(ledger: Engine, order_id: str = "at risk") -> str:
    """Let one job of a slow connection have a deadline, and thirty jobs go before it."""
    with ledger.begin() as db:
        db.execute(update(connection_rows).values(writes_per_second=1.0))
    for number in range(30):
        add(ledger, f"urgent-{number}", {"priority": "urgent"})
    add(ledger, "in time", {"send_by": ago(hours=-1)})
    return add(ledger, order_id, {"send_by": ago(seconds=-20)})


def check_deadlines_now(housekeeper: Maintenance) -> None:
    """Let the time pass after which deadlines are compared again."""
    housekeeper._checked_at -= DEADLINE_CHECK_SECONDS
    housekeeper.tick()


def test_a_deadline_that_will_not_be_met_is_warned_of_once(
    ledger: Engine, housekeeper: Maintenance, told: Told, logged: Logged
) -> None:
    record_id = crowded(ledger)
    housekeeper.tick()

    assert 1 == logged.wait_for("cancellation.wont_make_it")["count"]
    assert [None] == told.publications
    with ledger.connect() as db:
        ((kind, about),) = db.execute(select(events.c.type, events.c.cancellation_id)).all()
    assert ("cancellation.wont_make_it", record_id) == (kind, str(about))

    check_deadlines_now(housekeeper)
    assert [1] == told.warned
    assert ["cancellation.wont_make_it"] == event_types(ledger)
    assert "cancellation.wont_make_it" not in logged.events()


def test_deadlines_are_compared_with_the_backlog_now_and_then(ledger: Engine, housekeeper: Maintenance) -> None:
    crowded(ledger, "first")
    housekeeper.tick()
    add(ledger, "second", {"send_by": ago(seconds=-20)})
    housekeeper.tick()
    assert 1 == len(event_types(ledger))

    check_deadlines_now(housekeeper)
    assert 2 == len(event_types(ledger))


def test_a_held_connection_is_warned_of_by_its_hold_alone(ledger: Engine, housekeeper: Maintenance) -> None:
    crowded(ledger)
    with ledger.begin() as db:
        holds.hold(db, ["shop-1"], holds.OUTAGE)
    housekeeper.tick()

    assert ["connection.held"] == event_types(ledger)


# -- any number of workers


def test_of_many_housekeepers_each_thing_is_done_by_one(
    ledger: Engine,
    make: Callable[..., Maintenance],
    told: Told,
    shop: str,  # noqa: ARG001
) -> None:
    for number in range(10):
        waiting(ledger, f"retry-{number}", run_at=ago(seconds=1))
        in_flight(ledger, f"lost-{number}", until=ago(seconds=1))
        accepted_by_trackstar(ledger, f"unproven-{number}", confirm_at=ago(seconds=1))
        add(ledger, f"late-{number}", {"send_by": ago(seconds=1)})
    workers = [make(f"w-{number}") for number in range(4)]
    together = Barrier(4)

    def work(housekeeper: Maintenance) -> None:
        together.wait(SOON)
        for _ in range(4):
            housekeeper.tick()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, workers))

    rescued = [each.id for each in told.rescues()]
    once = [told.ready, rescued, [each.id for each in told.confirmed], [row.id for row, _ in told.expired]]
    assert [10, 10, 10, 10] == [len(each) for each in once]
    assert [10, 10, 10] == [len(set(each)) for each in once[1:]]


def test_a_loop_does_what_is_due_by_itself(
    ledger: Engine,
    make: Callable[..., Maintenance],
    told: Told,
    shop: str,  # noqa: ARG001
) -> None:
    in_flight(ledger, "lost", until=ago(seconds=1))
    begun = Event()
    handlers = told.handlers()
    housekeeper = make(handlers=Handlers(**{**_fields(handlers), "at_start": lambda _: begun.set()}))
    housekeeper.loop.start()
    assert begun.wait(SOON)
    first = told.rescued.get(timeout=SOON)
    second = in_flight(ledger, "lost too", until=ago(seconds=1))
    housekeeper.loop.wake()

    assert (True, second) == (first.id != second, told.rescued.get(timeout=SOON).id)
