"""The ledger's promises, on SQLite and on PostgreSQL: each row goes one way, once, whoever races for it."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text, update

from worker.cancellation.answer import Answer, NoReply, Reply, read_reply
from worker.cancellation.lifecycle import Moment, decide, expire
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack, classify, classify_read
from worker.cancellation.policy import Policy
from worker.cancellation.proof import confirm
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import SafeToRefund, Status
from worker.inputs.headers import RetryAfter
from worker.ledger import (
    claims,
    connections,
    deadlines,
    filters,
    holds,
    outbox,
    queries,
    results,
    selection,
    transitions,
)
from worker.ledger.attempts import AttemptRow
from worker.ledger.claims import RefusalClaim, SendClaim
from worker.ledger.database import autocommit, read_only
from worker.ledger.dead_letters import DeadLetter, insert_dead_letters
from worker.ledger.filters import Filter
from worker.ledger.results import AttemptResult, CommitSummary, ConfirmResult, Result
from worker.ledger.schema import attempts, cancellations, dead_letters, documents, events
from worker.ledger.schema import connections as connection_rows
from worker.ledger.transitions import end_unsent
from worker.runtime.attempt import AttemptContext
from worker.runtime.attempt import rescue as rescue_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.claims import AttemptClaim
    from worker.ledger.record import Cancellation
    from worker.ledger.vault import TokenVault

LEASE = 60.0
OVER = -1.0  # a lease that has ended already
POLICY = Policy()
c = cancellations.c
NO_REFUND = ~events.c.type.startswith("refund.")  # which `test_refunds.py` is about


def job(order_id: str = "o-1", connection_id: str = "shop-1", **fields: Any) -> CancelRequest:
    return CancelRequest(connection_id=connection_id, order_id=order_id, **fields)


def accept(ledger: Engine, *requests: CancelRequest) -> set[str]:
    with ledger.begin() as db:
        return transitions.accept(db, requests)


def get(ledger: Engine, record_id: str) -> Cancellation:
    with ledger.connect() as db:
        found = queries.get(db, record_id)
    assert found is not None
    return found


def count(ledger: Engine, table: Any) -> int:
    with ledger.connect() as db:
        return int(db.execute(select(func.count()).select_from(table)).scalar_one())


def claim(
    ledger: Engine, share: int = 100, *, owner: str = "w-1", lease: float = LEASE, probes: bool = False
) -> list[AttemptClaim]:
    """Claim what is pending on shop-1, in its order."""
    with ledger.begin() as db:
        return transitions.claim_next(db, {"shop-1": share}, owner, lease, probes=probes).get("shop-1", [])


def release(ledger: Engine, *claimed: AttemptClaim) -> list[str]:
    """Give claims back unsent; return the connection of each that was still ours."""
    with ledger.begin() as db:
        return transitions.release_unsent(db, [each.lease for each in claimed])


def orders(claimed: list[AttemptClaim]) -> list[str]:
    return [each.order_id for each in claimed]


def whose_turn(db: Connection) -> dict[str, bool]:
    """Return who may send; True marks one that may only probe."""
    return {each.connection_id: each.probing for each in selection.ready_connections(db)}


def accepted_and_claimed(ledger: Engine, *, lease: float = LEASE, **fields: Any) -> AttemptClaim:
    accept(ledger, job(**fields))
    (claimed,) = claim(ledger, lease=lease)
    return claimed


def answered(claimed: AttemptClaim, answer: Answer, seen: ReadBack | None = None) -> AttemptResult:
    """Judge an answer as an attempt does."""
    outcome = classify(answer, claimed.order_id)
    transition = decide(claimed.state, outcome, seen, Moment(now=claimed.claimed_at, jitter=0.5, policy=POLICY))
    row = AttemptRow(
        kind="cancel",
        started_at=claimed.claimed_at,
        reason=outcome.reason,
        status=answer.status if isinstance(answer, Reply) else None,
    )
    return AttemptResult(claim=claimed, attempts=(row,), transition=transition)


def not_sent(claimed: AttemptClaim, outcome: Outcome) -> AttemptResult:
    """Judge a claim for which nothing was sent."""
    transition = decide(claimed.state, outcome, None, Moment(now=claimed.claimed_at, jitter=0.5, policy=POLICY))
    return AttemptResult(claim=claimed, attempts=(), transition=transition)


def rescue(lost: AttemptClaim) -> AttemptResult:
    context = AttemptContext(
        trackstar=None,  # type: ignore[arg-type] - a rescue asks nobody
        decrypt=lambda encrypted, _place: encrypted,
        policy=POLICY,
        pace=None,  # type: ignore[arg-type]
        start_within=0.0,
        lease_seconds=LEASE,
        jitter=lambda: 0.5,
    )
    return rescue_in(lost, context)


def write(ledger: Engine, *written: Result) -> CommitSummary:
    with ledger.begin() as db:
        return results.commit_results(db, written)


def reply(status: int = 200, **body: Any) -> Reply:
    return read_reply(status, json.dumps(body).encode())


def yes(status: str = "cancelled", order_id: str = "o-1") -> Reply:
    return reply(data={"id": order_id, "status": status}, id=order_id)


def expire_overdue(ledger: Engine) -> set[str]:
    with ledger.begin() as db:
        found = deadlines.past_send_by(db, 100)
        return end_unsent(db, [(row.id, expire(row.state, Moment(now=row.now, policy=POLICY))) for row in found])


def make_due(ledger: Engine, record_id: str, column: str = "run_at") -> None:
    """Let the time come at which this row is due."""
    past = datetime.now(UTC) - timedelta(hours=1)
    with ledger.begin() as db:
        db.execute(update(cancellations).where(c.id == record_id).values({column: past}))


def send_again(ledger: Engine, record_id: str, owner: str = "w-1") -> AttemptClaim:
    make_due(ledger, record_id)
    with ledger.begin() as db:
        transitions.promote_due(db, 10)
    (claimed,) = claim(ledger, owner=owner)
    return claimed


def reasons(ledger: Engine, record_id: str) -> list[str]:
    with ledger.connect() as db:
        found = queries.timeline(db, record_id)
    assert found is not None
    return [row["reason"] for row in found.attempts]


def told(ledger: Engine) -> list[tuple[str, dict[str, Any]]]:
    """Return the events, but those of refunds."""
    with ledger.connect() as db:
        rows = db.execute(select(events.c.type, events.c.payload).where(NO_REFUND).order_by(events.c.id))
        return [(row.type, json.loads(row.payload)) for row in rows]


def hold_of(ledger: Engine, name: str = "shop-1") -> str | None:
    with ledger.connect() as db:
        return next(row.hold_reason for row in connections.list_all(db) if row.id == name)


# -- accepting


def test_a_new_job_is_pending_with_all_that_its_producer_stated(ledger: Engine, shop: str) -> None:
    soon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    stated = {
        "idempotency_key": "k-1",
        "priority": "urgent",
        "send_by": soon,
        "requested_by": "oms",
        "reason": "the customer changed his mind \N{SNOWMAN}",
        "metadata": {"ticket": "T-1", "lines": 2, "vip": True, "note": None},
        "requested_at": datetime.now(UTC) - timedelta(minutes=59),
    }
    request = job(connection_id=shop, **stated)

    assert {request.record_id} == accept(ledger, request)
    found = get(ledger, request.record_id)
    assert stated == {name: getattr(found, name) for name in stated}
    assert ("pending", 0, None, SafeToRefund.NOT_YET) == (
        found.status,
        found.attempts,
        found.verdict,
        found.safe_to_refund,
    )


def test_a_second_delivery_changes_nothing(ledger: Engine, shop: str) -> None:
    first = job(connection_id=shop, priority="urgent")
    accept(ledger, first)
    before = get(ledger, first.record_id)

    assert set() == accept(ledger, job(connection_id=shop, priority="bulk"))
    assert before == get(ledger, first.record_id)
    assert 1 == count(ledger, cancellations)


def test_twice_in_one_batch_is_one_row_and_the_first_counts(ledger: Engine, shop: str) -> None:
    first, second = job(connection_id=shop, reason="first"), job(connection_id=shop, reason="second")

    assert {first.record_id} == accept(ledger, first, second)
    assert "first" == get(ledger, first.record_id).reason


def test_two_threads_that_accept_the_same_jobs_make_each_row_once(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", shop) for number in range(50)]
    both = Barrier(2)

    def race(order: int) -> set[str]:
        both.wait()
        return accept(ledger, *requests[::order])

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, (1, -1))

    assert set() == one & other
    assert {request.record_id for request in requests} == one | other
    assert 50 == count(ledger, cancellations)


def test_a_key_that_belongs_to_another_order_is_found_and_changes_nothing(ledger: Engine, shop: str) -> None:
    known, wrong = job("o-1", shop, idempotency_key="k"), job("o-2", shop, idempotency_key="k")
    accept(ledger, known)

    assert set() == accept(ledger, wrong)
    with ledger.connect() as db:
        ((found, standing),) = queries.find_standing(db, [wrong, job("o-3", shop)]).items()
    assert (known.record_id, "o-1") == (found, standing.order_id)
    assert "'o-1'" in (queries.conflict_of(wrong, standing) or "")
    assert queries.conflict_of(known, standing) is None
    assert "o-1" == get(ledger, known.record_id).order_id


def test_the_same_order_id_of_two_connections_is_two_records(ledger: Engine) -> None:
    assert 2 == len(accept(ledger, job(connection_id="shop-1"), job(connection_id="shop-2")))


def test_jobs_of_an_unknown_connection_wait_held_until_it_is_added(ledger: Engine, vault: TokenVault) -> None:
    request = job()
    accept(ledger, request)

    assert ("pending", "unknown_connection") == (get(ledger, request.record_id).status, hold_of(ledger))
    with ledger.begin() as db:
        assert {} == whose_turn(db)
        connections.add(db, "shop-1", vault.encrypt("t"))
        assert {"shop-1": False} == whose_turn(db)
    assert [("connection.resumed", {"connection_id": "shop-1"})] == told(ledger)


def test_accepting_does_not_hold_a_connection_that_is_known(ledger: Engine, shop: str) -> None:
    accept(ledger, job(connection_id=shop))

    assert hold_of(ledger, shop) is None


@contextmanager
def counted(ledger: Engine) -> Iterator[list[str]]:
    """Collect the statements that run inside."""
    seen: list[str] = []

    def collect(_db: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement.split(maxsplit=1)[0])

    event.listen(ledger, "before_cursor_execute", collect)
    try:
        yield seen
    finally:
        event.remove(ledger, "before_cursor_execute", collect)


def test_thousands_of_jobs_are_one_statement(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", shop) for number in range(3000)]
    with counted(ledger) as statements:
        accepted = transitions.accept_batch(ledger, requests)

    assert 3000 == len(accepted)
    # SQLite changes one table at a time, in a transaction that it must be told of; it has no trips to save.
    assert {"postgresql": ["WITH"], "sqlite": ["BEGIN", "INSERT", "INSERT"]}[ledger.dialect.name] == statements


@pytest.mark.parametrize("order_id", ["a/b c%?#+=", "ünï\N{SNOWMAN}", "'; DROP TABLE cancellations; --", '"\\', "a,b"])
def test_an_order_id_is_kept_as_it_is(ledger: Engine, shop: str, order_id: str) -> None:
    request = job(order_id, shop)
    accept(ledger, request)

    assert order_id == get(ledger, request.record_id).order_id


def test_an_unreadable_message_is_kept_once_and_announced(ledger: Engine) -> None:
    letter = DeadLetter(source="inbox", entry_id="1-1", raw=b"\xff\x00{", reason="not_json", error="It is no JSON.")
    for _ in range(2):
        with ledger.begin() as db:
            insert_dead_letters(db, [letter])

    with ledger.connect() as db:
        assert [b"\xff\x00{"] == [bytes(raw) for raw in db.execute(select(dead_letters.c.raw)).scalars()]
    assert ["dead_letter.kept"] == [kind for kind, _ in told(ledger)]


# -- handing out


def test_urgent_goes_first_then_what_is_wanted_soonest_then_first_come(ledger: Engine, shop: str) -> None:
    day = datetime(2030, 1, 1, tzinfo=UTC)
    accept(
        ledger,
        job("bulk", shop, priority="bulk", send_by=day, requested_at=day - timedelta(days=9)),
        job("second", shop, requested_at=day - timedelta(days=2)),
        job("first", shop, requested_at=day - timedelta(days=3)),
        job("soon", shop, send_by=day + timedelta(days=1), requested_at=day),
        job("sooner", shop, send_by=day, requested_at=day),
        job("urgent", shop, priority="urgent", requested_at=day),
    )

    assert ["urgent", "sooner", "soon", "first", "second", "bulk"] == [
        order for _ in range(6) for order in orders(claim(ledger, 1))
    ]
    assert [] == claim(ledger, 1)


def test_only_what_is_due_is_promoted(ledger: Engine, shop: str) -> None:
    ids = []
    for order in ("due", "later"):
        claimed = accepted_and_claimed(ledger, order_id=order, connection_id=shop)
        write(ledger, answered(claimed, NoReply("connect_failed", sent=False)))
        ids.append(claimed.id)
    make_due(ledger, ids[0])
    make_later = datetime.now(UTC) + timedelta(hours=1)
    with ledger.begin() as db:
        db.execute(update(cancellations).where(c.id == ids[1]).values(run_at=make_later))
        assert [shop] == transitions.promote_due(db, 10)

    assert ["pending", "waiting"] == [get(ledger, record_id).status for record_id in ids]
    assert get(ledger, ids[0]).run_at is None


def test_one_look_tells_all_that_is_due(ledger: Engine, shop: str) -> None:
    with ledger.connect() as db:
        idle = deadlines.next_deadlines(db)
    assert float("inf") == idle.seconds_to_next

    soon = datetime.now(UTC) + timedelta(minutes=5)
    accept(ledger, job("a", shop, priority="urgent"), job("b", shop, send_by=soon))
    claim(ledger, 1)
    with ledger.connect() as db:
        busy = deadlines.next_deadlines(db)

    assert soon == busy.send_by
    assert LEASE - 10 < busy.seconds_to_next <= LEASE


# -- claiming


def test_a_claim_tells_all_that_an_attempt_must_know(ledger: Engine, shop: str, vault: TokenVault) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)

    assert isinstance(claimed, SendClaim)
    assert ("o-1", shop, "w-1", 1, 0) == (
        claimed.order_id,
        claimed.connection_id,
        claimed.lease.owner,
        claimed.lease.token,
        claimed.state.attempts,
    )
    assert job(connection_id=shop).record_id == claimed.id == claimed.request_key
    assert claimed.claimed_at - claimed.state.first_sent_at < timedelta(seconds=1)
    assert "token-of-shop-1" == vault.decrypt(claimed.encrypted_token or "")
    assert claimed.hold_reason is None


def test_of_two_workers_at_once_each_row_goes_to_one(ledger: Engine, shop: str) -> None:
    accept(ledger, *(job(f"o-{number}", shop) for number in range(40)))
    both = Barrier(2)

    def race(owner: str) -> list[AttemptClaim]:
        both.wait()
        # Two by two, so that they meet often.
        return [each for _ in range(20) for each in claim(ledger, 2, owner=owner)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert sorted(f"o-{number}" for number in range(40)) == sorted(orders(one) + orders(other))
    with ledger.connect() as db:
        rows = db.execute(select(c.order_id, c.lease_owner, c.claims)).all()
    assert {(each.order_id, each.lease.owner, 1) for each in (*one, *other)} == {tuple(row) for row in rows}


def test_two_workers_that_also_look_at_the_oldest_get_each_row_once(ledger: Engine, shop: str) -> None:
    accept(ledger, *(job(f"o-{number}", shop) for number in range(40)))
    both = Barrier(2)

    def race(owner: str) -> list[str]:
        both.wait()
        found: list[str] = []
        for _ in range(20):
            claimed, _asked_at = transitions.claim_shares(ledger, {shop: 2}, owner, LEASE, {shop: 1})
            found += orders(claimed.get(shop, []))
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert sorted(f"o-{number}" for number in range(40)) == sorted(one + other)


def test_a_claim_in_a_transaction_of_its_own_is_asked_for_before_its_lease_begins(ledger: Engine, shop: str) -> None:
    accept(ledger, job(connection_id=shop))
    before = time.monotonic()
    claimed, asked_at = transitions.claim_shares(ledger, {shop: 5}, "w-1", LEASE, {})

    assert before <= asked_at <= time.monotonic()
    assert [1] == [each.lease.token for each in claimed[shop]]
    assert ({}, []) == (transitions.claim_shares(ledger, {shop: 5}, "w-2", LEASE, {})[0], claim(ledger))


@pytest.mark.parametrize("status", ["queued", "in_flight", "waiting", "succeeded"])
def test_only_a_pending_row_can_be_claimed(ledger: Engine, shop: str, status: str) -> None:
    request = job(connection_id=shop)
    if status == "queued":
        accept(ledger, request)
        queue_as_the_release_before(ledger, request.record_id)
    else:
        claimed = accepted_and_claimed(ledger, connection_id=shop)
        if status == "waiting":
            write(ledger, answered(claimed, NoReply("connect_failed", sent=False)))
        if status == "succeeded":
            write(ledger, answered(claimed, yes()))
    assert status == get(ledger, request.record_id).status

    assert [] == claim(ledger, owner="w-2")
    assert [] == claim(ledger, owner="w-2", probes=True)
    with ledger.begin() as db:
        assert {} == transitions.claim_next(db, {shop: 5}, "w-2", LEASE, aged={shop: 1})
        assert {} == transitions.claim_next(db, {}, "w-2", LEASE)
        assert {} == transitions.claim_next(db, {"a stranger": 5}, "w-2", LEASE)


@pytest.mark.parametrize("aged", [{}, {"shop-1": 1}], ids=["in turn", "oldest"])
def test_a_cancel_that_is_worthless_by_now_is_not_claimed(ledger: Engine, shop: str, aged: dict[str, int]) -> None:
    past, future = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-1, 1))
    accept(ledger, job("late", shop, send_by=past), job("in time", shop, send_by=future))

    assert ["in time"] == orders(transitions.claim_shares(ledger, {shop: 5}, "w-1", LEASE, aged)[0][shop])


REFUSED = reply(400, error="shipped", origin="integration")
NOT_NOW = NoReply("read_timeout", sent=True)


def refused_and_unread(ledger: Engine, shop: str, **fields: Any) -> str:
    """Let the warehouse refuse, and no read get through."""
    claimed = accepted_and_claimed(ledger, connection_id=shop, **fields)
    write(ledger, answered(claimed, REFUSED, classify_read(NOT_NOW, claimed.order_id)))
    assert ("waiting", "refusal") == (get(ledger, claimed.id).status, get(ledger, claimed.id).evidence)
    return claimed.id


def test_a_refusal_that_must_be_read_is_claimed_at_any_time(ledger: Engine, shop: str) -> None:
    record_id = refused_and_unread(ledger, shop, send_by=datetime.now(UTC) + timedelta(minutes=5))
    make_due(ledger, record_id, "send_by")
    claimed = send_again(ledger, record_id)

    assert isinstance(claimed, RefusalClaim)
    assert (record_id, 2, "refused_by_warehouse") == (
        claimed.id,
        claimed.lease.token,
        claimed.state.remembered_refusal.reason,
    )


def test_held_connections_stay_and_their_probes_go(ledger: Engine, shop: str) -> None:
    accept(ledger, job("a", shop, priority="urgent"), job("b", shop))
    _hold(ledger, "outage")

    assert [] == claim(ledger)
    assert {} == transitions.claim_shares(ledger, {shop: 5}, "w-1", LEASE, {shop: 1})[0]
    (probe,) = claim(ledger, 1, probes=True)
    assert ("a", "outage") == (probe.order_id, probe.hold_reason)


# -- giving claims back that were never begun


def test_what_was_given_back_is_pending_again_and_keeps_its_turn(ledger: Engine, shop: str) -> None:
    day = datetime(2030, 1, 1, tzinfo=UTC)
    accept(ledger, job("first", shop, requested_at=day), job("second", shop, requested_at=day + timedelta(days=1)))
    before = {order: get(ledger, job(order, shop).record_id) for order in ("first", "second")}
    claimed = claim(ledger)

    assert [shop, shop] == release(ledger, *claimed)
    assert before == {order: get(ledger, job(order, shop).record_id) for order in ("first", "second")}
    again = claim(ledger)
    assert ["first", "second"] == orders(again)
    # The token rises also over a claim that was given back: its late answer must not fit the next one.
    assert [(1, 2), (1, 2)] == [(old.lease.token, new.lease.token) for old, new in zip(claimed, again, strict=True)]


def test_to_give_back_nothing_is_nothing(ledger: Engine) -> None:
    assert [] == release(ledger)


def test_only_claims_that_are_still_ours_are_given_back(ledger: Engine, shop: str) -> None:
    claimed = {}
    for order, lease in (("mine", LEASE), ("answered", LEASE), ("lost", OVER)):
        claimed[order] = accepted_and_claimed(ledger, order_id=order, connection_id=shop, lease=lease)
    write(ledger, answered(claimed["answered"], yes(order_id="answered")))
    with ledger.begin() as db:
        (lost,) = claims.take_over(db, "w-2", LEASE, 10)
    before = {order: get(ledger, claimed[order].id) for order in ("answered", "lost")}

    assert [shop] == release(ledger, *claimed.values())
    assert "pending" == get(ledger, claimed["mine"].id).status
    assert before == {order: get(ledger, claimed[order].id) for order in ("answered", "lost")}
    assert {lost.id} == write(ledger, answered(lost, yes(order_id="lost"))).applied


def test_a_claim_that_was_given_back_and_made_again_is_not_given_back_by_the_old_one(
    ledger: Engine, shop: str
) -> None:
    first = accepted_and_claimed(ledger, connection_id=shop)
    release(ledger, first)
    (second,) = claim(ledger)

    assert [] == release(ledger, first)
    assert "in_flight" == get(ledger, second.id).status
    assert [shop] == release(ledger, second)


def test_a_late_result_of_a_claim_that_was_given_back_changes_nothing_but_its_attempts(
    ledger: Engine, shop: str
) -> None:
    released = accepted_and_claimed(ledger, connection_id=shop)
    release(ledger, released)
    before = get(ledger, released.id)

    assert frozenset() == write(ledger, answered(released, yes())).applied
    assert before == get(ledger, released.id)
    assert (["accepted"], []) == (reasons(ledger, released.id), told(ledger))

    (current,) = claim(ledger)
    assert frozenset() == write(ledger, answered(released, yes())).applied
    assert "in_flight" == get(ledger, released.id).status
    assert {current.id} == write(ledger, answered(current, yes())).applied
    assert ["accepted", "accepted"] == reasons(ledger, current.id)


def test_what_was_sent_before_keeps_the_time_of_its_first_request_when_it_is_given_back(
    ledger: Engine, shop: str
) -> None:
    first = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(first, NoReply("read_timeout", sent=True)))
    sent_at = get(ledger, first.id).first_sent_at
    again = send_again(ledger, first.id)

    assert [shop] == release(ledger, again)
    assert (first.state.first_sent_at, "pending", "unknown", 1) == (
        sent_at,
        get(ledger, first.id).status,
        get(ledger, first.id).verdict,
        get(ledger, first.id).attempts,
    )
    assert sent_at == get(ledger, first.id).first_sent_at


def test_a_refusal_that_must_be_read_keeps_its_first_request_when_it_is_given_back(ledger: Engine, shop: str) -> None:
    record_id = refused_and_unread(ledger, shop)
    sent_at = get(ledger, record_id).first_sent_at
    assert sent_at is not None

    assert [shop] == release(ledger, send_again(ledger, record_id))
    assert (sent_at, "refusal") == (get(ledger, record_id).first_sent_at, get(ledger, record_id).evidence)


def test_a_replay_is_warned_of_anew(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, reply(422, error="no", origin="trackstar")))
    make_due(ledger, claimed.id, "warned_at")
    with ledger.begin() as db:
        assert {claimed.id} == transitions.replay(db, [claimed.id])
        assert [None] == list(db.execute(select(c.warned_at).where(c.id == claimed.id)).scalars())


def test_what_only_an_earlier_generation_sent_has_no_first_request_when_it_is_given_back(
    ledger: Engine, shop: str
) -> None:
    sent = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(sent, reply(422, error="no", origin="trackstar")))
    with ledger.begin() as db:
        assert {sent.id} == transitions.replay(db, [sent.id])
    (replayed,) = claim(ledger)
    assert get(ledger, sent.id).first_sent_at is not None

    release(ledger, replayed)
    assert get(ledger, sent.id).first_sent_at is None


# -- rows that a worker of the release before had queued


def queue_as_the_release_before(ledger: Engine, record_id: str, *, until: timedelta = timedelta(minutes=1)) -> None:
    values = {"status": "queued", "lease_owner": "w-0", "lease_expires_at": datetime.now(UTC) + until}
    with ledger.begin() as db:
        db.execute(update(cancellations).where(c.id == record_id).values(**values))


def test_a_row_that_was_queued_and_never_claimed_is_pending_again_when_its_lease_is_over(
    ledger: Engine, shop: str
) -> None:
    requests = {order: job(order, shop) for order in ("lost", "on its way", "in flight")}
    accept(ledger, requests["in flight"])
    claim(ledger, lease=OVER)
    accept(ledger, requests["lost"], requests["on its way"])
    queue_as_the_release_before(ledger, requests["lost"].record_id, until=timedelta(seconds=-1))
    queue_as_the_release_before(ledger, requests["on its way"].record_id)

    with ledger.begin() as db:
        assert [shop] == transitions.requeue_unclaimed(db, 10)
    assert {"lost": "pending", "on its way": "queued", "in flight": "in_flight"} == {
        order: get(ledger, request.record_id).status for order, request in requests.items()
    }
    assert ["lost"] == orders(claim(ledger))


# -- recording


def test_a_proven_cancel_is_recorded_with_its_evidence_and_its_event(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    recorded = write(ledger, answered(claimed, yes()))

    found = get(ledger, claimed.id)
    assert {found.id} == recorded.applied
    assert ("succeeded", "cancelled", "response", 1, "cancelled", SafeToRefund.YES) == (
        found.status,
        found.verdict,
        found.evidence,
        found.attempts,
        found.order_status,
        found.safe_to_refund,
    )
    assert ["accepted"] == reasons(ledger, found.id)
    ((kind, event),) = told(ledger)
    assert "cancellation.ended" == kind
    assert {
        "id": found.id,
        "connection_id": shop,
        "order_id": "o-1",
        "generation": 1,
        "status": "succeeded",
        "verdict": "cancelled",
        "evidence": "response",
        "safe_to_refund": "yes",
        "reason": "accepted",
        "attempts": 1,
        "as_of": claimed.claimed_at.isoformat(),
        "known_by": None,
        "needs_person": None,
    } == event


def test_recording_twice_is_recording_once(ledger: Engine, shop: str) -> None:
    result = answered(accepted_and_claimed(ledger, connection_id=shop), yes())
    write(ledger, result)
    before = get(ledger, result.claim.id)

    assert frozenset() == write(ledger, result).applied
    assert before == get(ledger, result.claim.id)
    assert (1, 1) == (count(ledger, attempts), len(told(ledger)))


def test_a_stale_record_is_refused_and_its_attempt_is_kept(ledger: Engine, shop: str) -> None:
    stale = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as db:
        (lost,) = claims.take_over(db, "w-2", LEASE, 10)
    write(ledger, rescue(lost))
    fresh = send_again(ledger, stale.id, owner="w-2")

    assert frozenset() == write(ledger, answered(stale, reply(422, error="no", origin="trackstar"))).applied
    assert ("in_flight", "unknown") == (
        get(ledger, stale.id).status,
        get(ledger, stale.id).verdict,
    )
    assert {stale.id} == write(ledger, answered(fresh, yes())).applied
    assert ["validation_failed", "accepted"] == reasons(ledger, stale.id)
    assert ["cancellation.ended"] == [kind for kind, _ in told(ledger)]


def test_a_lost_worker_leaves_a_cancellation_in_doubt(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as db:
        (lost,) = claims.take_over(db, "w-2", LEASE, 10)
        assert [] == claims.take_over(db, "w-3", LEASE, 10)
    write(ledger, rescue(lost))

    found = get(ledger, claimed.id)
    assert ("waiting", "unknown", 1) == (found.status, found.verdict, found.attempts)
    assert ["worker_lost"] == reasons(ledger, found.id)


def test_a_lost_attempt_is_dated_by_the_first_or_by_its_lease(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    first = get(ledger, claimed.id).first_sent_at
    found = []
    for _ in range(2):
        with ledger.begin() as db:
            (lost,) = claims.take_over(db, "w-2", LEASE, 10)
        (row,) = rescue(lost).attempts
        found.append((row.started_at, lost.claimed_at))
        write(ledger, answered(lost, reply(503)))
        make_due(ledger, claimed.id, "first_sent_at")
        make_due(ledger, claimed.id)
        with ledger.begin() as db:
            transitions.promote_due(db, 10)
        claim(ledger, lease=OVER)

    (one, _), (two, rescued) = found
    assert first == one
    assert rescued - timedelta(seconds=LEASE) == two


def test_what_was_never_sent_has_no_retry_horizon(ledger: Engine, shop: str) -> None:
    too_late = Outcome(kind=Kind.SLOW_DOWN, reason="started_too_late", retry_after=RetryAfter(0.0))
    no_token = Outcome(kind=Kind.NO_ACCESS, reason="no_access_token")
    unsent = []
    for number, outcome in enumerate((too_late, no_token)):
        claimed = accepted_and_claimed(ledger, connection_id=shop, order_id=f"o-{number}")
        write(ledger, not_sent(claimed, outcome))
        unsent.append(get(ledger, claimed.id))
        with ledger.begin() as db:
            holds.resume(db, [shop], holds.ALL)

    assert ["waiting", "pending"] == [found.status for found in unsent]
    assert [None, None] == [found.first_sent_at for found in unsent]


def test_what_was_sent_once_keeps_its_retry_horizon_when_it_is_given_back(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, reply(503)))
    sent = get(ledger, claimed.id).first_sent_at
    again = send_again(ledger, claimed.id)
    write(ledger, not_sent(again, Outcome(kind=Kind.SLOW_DOWN, reason="started_too_late")))

    assert sent is not None
    assert sent == get(ledger, claimed.id).first_sent_at


def test_a_live_claim_is_not_taken_over(ledger: Engine, shop: str) -> None:
    accepted_and_claimed(ledger, connection_id=shop)

    with ledger.begin() as db:
        assert [] == claims.take_over(db, "w-2", LEASE, 10)
        assert [] == transitions.requeue_unclaimed(db, 10)


def test_two_threads_that_race_take_a_lost_claim_over_once(ledger: Engine, shop: str) -> None:
    for number in range(10):
        accepted_and_claimed(ledger, order_id=f"o-{number}", connection_id=shop, lease=OVER)
    both = Barrier(2)

    def race(owner: str) -> list[str]:
        both.wait()
        with ledger.begin() as db:
            return [lost.id for lost in claims.take_over(db, owner, LEASE, 10)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert 10 == len(one) + len(other) == len({*one, *other})


def test_a_late_answer_replaces_the_guess_that_its_worker_was_lost(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as db:
        (lost,) = claims.take_over(db, "w-2", LEASE, 10)
    write(ledger, rescue(lost))
    write(ledger, answered(claimed, yes()))

    assert ["accepted"] == reasons(ledger, claimed.id)
    assert "waiting" == get(ledger, claimed.id).status


def test_the_guess_that_a_worker_was_lost_replaces_no_answer(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as db:
        (lost,) = claims.take_over(db, "w-2", LEASE, 10)

    assert frozenset() == write(ledger, answered(claimed, yes())).applied
    write(ledger, rescue(lost))
    assert ["accepted"] == reasons(ledger, claimed.id)


@pytest.mark.parametrize("answer_first", [True, False])
def test_a_worker_that_rescued_its_own_claim_writes_the_answer_alone(
    ledger: Engine, shop: str, *, answer_first: bool
) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    both = [answered(claimed, yes()), rescue(claimed)]
    write(ledger, *(both if answer_first else reversed(both)))

    assert ["accepted"] == reasons(ledger, claimed.id)
    assert "succeeded" == get(ledger, claimed.id).status


def test_a_batch_of_records_is_written_in_one_transaction(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", shop) for number in range(200)]
    accept(ledger, *requests)
    claimed = claim(ledger, 200)
    recorded = write(ledger, *(answered(each, yes(order_id=each.order_id)) for each in claimed))

    assert 200 == len(recorded.applied)
    assert (200, 200) == (count(ledger, attempts), len(told(ledger)))
    with ledger.connect() as db:
        joined = cancellations.join(documents, documents.c.cancellation_id == c.id)
        kept = db.execute(select(c.order_id, documents.c.order_snapshot).select_from(joined)).all()
    assert {each.order_id for each in requests} == {json.loads(row.order_snapshot)["id"] for row in kept}
    assert all(row.order_id == json.loads(row.order_snapshot)["id"] for row in kept)


SNAPSHOT = (
    '{"id":  "o-1","status":"cancelled", "future_field": {"deep":[null, 1.10, 1e2, -0.0]},"phone_number":null,\n'
    ' "big": 123456789012345678901234567890,\t"name":"J\\u00f6rg \\ud83d\\ude00 \u2603",'
    '"nul":"\\u0000", "q":"\\"\\\\" }'
)


def test_a_snapshot_is_kept_byte_for_byte(ledger: Engine, shop: str) -> None:
    body = f'{{"data": {SNAPSHOT}, "id": "o-1", "unused_fields": ["a",  null]}}'
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, read_reply(200, body.encode())))

    with read_only(ledger) as db:
        found = queries.get(db, claimed.id, snapshot=True)
    assert found
    assert SNAPSHOT == found.order_snapshot
    assert '["a",  null]' == found.unused_fields


def test_what_is_no_json_becomes_no_snapshot(ledger: Engine, shop: str) -> None:
    """NaN is Python's word; a reader in another language could not read such a snapshot."""
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, read_reply(200, b'{"data": {"id": "o-1", "total_price": NaN}, "id": "o-1"}')))

    found = get(ledger, claimed.id)
    assert ("waiting", "not_json") == (found.status, found.outcome_reason)
    assert 0 == count(ledger, documents)


def test_an_answer_without_an_order_keeps_the_last_one_that_was_seen(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    seen = classify_read(yes("fulfilled"), "o-1")
    refusal = reply(400, error="shipped", origin="integration")
    write(ledger, answered(claimed, refusal, seen))

    found = get(ledger, claimed.id)
    assert ("rejected", "not_cancelled", "read_back", "fulfilled", SafeToRefund.NO) == (
        found.status,
        found.verdict,
        found.evidence,
        found.order_status,
        found.safe_to_refund,
    )
    assert "shipped" == found.outcome_message


# -- expiry


def test_what_was_never_sent_expires_as_not_cancelled(ledger: Engine, shop: str) -> None:
    late, early = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (-1, 600))
    request = job("late", shop, send_by=late)
    accept(ledger, request, job("early", shop, send_by=early), job("whenever", shop))

    assert {request.record_id} == expire_overdue(ledger)
    found = get(ledger, request.record_id)
    assert ("expired", "not_cancelled", "never_sent", 0, SafeToRefund.NO) == (
        found.status,
        found.verdict,
        found.evidence,
        found.attempts,
        found.safe_to_refund,
    )
    assert ["cancellation.ended"] == [kind for kind, _ in told(ledger)]
    assert set() == expire_overdue(ledger)


def test_what_may_have_landed_expires_as_unknown_and_is_read_back(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, send_by=datetime.now(UTC) + timedelta(minutes=5))
    write(ledger, answered(claimed, NoReply("read_timeout", sent=True)))
    assert "waiting" == get(ledger, claimed.id).status
    make_due(ledger, claimed.id, "send_by")

    assert {claimed.id} == expire_overdue(ledger)
    found = get(ledger, claimed.id)
    assert ("expired", "unknown", None, SafeToRefund.NOT_YET) == (
        found.status,
        found.verdict,
        found.evidence,
        found.safe_to_refund,
    )
    assert found.confirm_at is not None


def test_what_is_in_flight_does_not_expire(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, send_by=datetime.now(UTC) + timedelta(minutes=5))
    make_due(ledger, claimed.id, "send_by")

    assert set() == expire_overdue(ledger)
    assert "in_flight" == get(ledger, claimed.id).status


# -- confirming


def unconfirmed(ledger: Engine, shop: str) -> str:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, yes("open")))
    found = get(ledger, claimed.id)
    assert ("succeeded", "accepted", SafeToRefund.NOT_YET) == (found.status, found.verdict, found.safe_to_refund)
    make_due(ledger, found.id, "confirm_at")
    return found.id


def read_again(ledger: Engine, seen: Reply) -> ConfirmResult:
    with ledger.begin() as db:
        (due,) = claims.claim_read_backs(db, LEASE, 10)
    found = confirm(due.known, classify_read(seen, due.order_id), now=due.claimed_at, crawls=None, policy=POLICY)
    row = AttemptRow(kind="read", started_at=due.claimed_at, reason="read", status=seen.status)
    return ConfirmResult(claim=due, attempts=(row,), confirmation=found)


@pytest.mark.parametrize(
    ("verdict", "kind", "refund", "seen"),
    [
        ("cancelled", "cancellation.verdict_raised", SafeToRefund.YES, "cancelled"),
        ("not_cancelled", "cancellation.contradicted", SafeToRefund.NO, "fulfilled"),
    ],
)
def test_a_later_read_back_settles_an_unproven_yes(
    ledger: Engine, shop: str, verdict: str, kind: str, refund: SafeToRefund, seen: str
) -> None:
    record_id = unconfirmed(ledger, shop)
    write(ledger, read_again(ledger, yes(seen)))

    found = get(ledger, record_id)
    assert ("succeeded", verdict, "read_back", seen, None, refund) == (
        found.status,
        found.verdict,
        found.evidence,
        found.order_status,
        found.confirm_at,
        found.safe_to_refund,
    )
    assert ["cancellation.ended", kind] == [kind for kind, _ in told(ledger)]
    assert {"verdict": verdict, "evidence": "read_back", "safe_to_refund": str(refund)}.items() <= (
        told(ledger)[1][1].items()
    )


def test_a_read_back_that_proves_nothing_is_kept_as_an_attempt_and_tells_nothing(ledger: Engine, shop: str) -> None:
    record_id = unconfirmed(ledger, shop)
    write(ledger, read_again(ledger, yes("open")))

    assert ("accepted", "response") == (get(ledger, record_id).verdict, get(ledger, record_id).evidence)
    assert ["cancel", "read"] == _kinds(ledger, record_id)
    assert ["cancellation.ended"] == [kind for kind, _ in told(ledger)]


def _kinds(ledger: Engine, record_id: str) -> list[str]:
    with ledger.connect() as db:
        found = queries.timeline(db, record_id)
    assert found is not None
    return [row["kind"] for row in found.attempts]


def test_a_read_back_is_claimed_once_and_again_when_its_reader_is_lost(ledger: Engine, shop: str) -> None:
    record_id = unconfirmed(ledger, shop)
    with ledger.begin() as db:
        assert [record_id] == [due.id for due in claims.claim_read_backs(db, LEASE, 10)]
        assert [] == claims.claim_read_backs(db, LEASE, 10)
    make_due(ledger, record_id, "confirm_at")
    with ledger.begin() as db:
        assert [2 + 1] == [due.lease.token for due in claims.claim_read_backs(db, LEASE, 10)]


def test_a_stale_read_back_changes_nothing(ledger: Engine, shop: str) -> None:
    record_id = unconfirmed(ledger, shop)
    stale = read_again(ledger, yes("fulfilled"))
    make_due(ledger, record_id, "confirm_at")
    write(ledger, read_again(ledger, yes("cancelled")))

    assert frozenset() == write(ledger, stale).applied
    assert "cancelled" == get(ledger, record_id).verdict


def test_a_held_connection_is_not_read(ledger: Engine, shop: str) -> None:
    unconfirmed(ledger, shop)
    _hold(ledger, "operator")

    with ledger.begin() as db:
        assert [] == claims.claim_read_backs(db, LEASE, 10)


def test_a_connection_whose_warehouse_is_down_is_still_read(ledger: Engine, shop: str) -> None:
    unconfirmed(ledger, shop)
    _hold(ledger, "outage")

    with ledger.begin() as db:
        assert 1 == len(claims.claim_read_backs(db, LEASE, 10))


# -- holding connections

WRONG_TOKEN = reply(401, error="no", origin="trackstar")


def _hold(ledger: Engine, reason: str, name: str = "shop-1", probe_at: datetime | None = None) -> None:
    with ledger.begin() as db:
        db.execute(
            update(connection_rows)
            .where(connection_rows.c.id == name)
            .values(hold_reason=reason, held_at=datetime.now(UTC), probe_at=probe_at)
        )


def test_a_wrong_token_holds_the_connection_and_spends_no_attempt(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    recorded = write(ledger, answered(claimed, WRONG_TOKEN))

    found = get(ledger, claimed.id)
    assert {shop} == recorded.held
    assert ("pending", 0, None, "credentials") == (found.status, found.attempts, found.verdict, found.hold_reason)
    assert [("connection.held", {"connection_id": shop, "reason": "credentials"})] == told(ledger)
    with ledger.begin() as db:
        assert {} == whose_turn(db)


def test_a_connection_is_held_once_and_told_once(ledger: Engine, shop: str) -> None:
    requests = [job("a", shop), job("b", shop)]
    accept(ledger, *requests)
    first, second = claim(ledger)
    write(ledger, answered(first, WRONG_TOKEN))

    assert frozenset() == write(ledger, answered(second, WRONG_TOKEN)).held
    assert 1 == count(ledger, events)


def test_a_probe_that_is_answered_opens_the_connection(ledger: Engine, shop: str) -> None:
    write(ledger, answered(accepted_and_claimed(ledger, connection_id=shop), WRONG_TOKEN))
    _hold(ledger, "credentials", probe_at=datetime.now(UTC) - timedelta(seconds=1))
    with ledger.begin() as db:
        assert {shop: True} == whose_turn(db)
        assert [shop] == holds.claim_probes(db)
        assert [] == holds.claim_probes(db)
        assert {} == whose_turn(db)
    (probe,) = claim(ledger, 1, probes=True)

    assert "credentials" == probe.hold_reason
    assert {shop} == write(ledger, answered(probe, yes())).resumed
    assert hold_of(ledger) is None
    assert "connection.resumed" in [kind for kind, _ in told(ledger)]


def test_a_probe_is_a_cancel_where_there_is_one_to_send(ledger: Engine, shop: str) -> None:
    refused = accepted_and_claimed(ledger, connection_id=shop, order_id="refused")
    unread = ReadBack(shows=OrderState.LATER, reason="read_paced", spends_attempt=False)
    write(ledger, answered(refused, reply(422, error="no", origin="integration"), unread))
    make_due(ledger, refused.id)
    with ledger.begin() as db:
        transitions.promote_due(db, 10)
    accept(ledger, job("fresh", shop))
    _hold(ledger, holds.OUTAGE, probe_at=datetime.now(UTC) - timedelta(seconds=1))
    (first,), (second,) = claim(ledger, 1, probes=True), claim(ledger, 1, probes=True)

    assert ["fresh", "refused"] == [first.order_id, second.order_id]
    assert (SendClaim, RefusalClaim) == (type(first), type(second))


def test_no_single_connection_decides_for_all_whether_trackstar_is_back(
    ledger: Engine, shop: str, vault: TokenVault
) -> None:
    with ledger.begin() as db:
        connections.add(db, "a-shop", vault.encrypt("token"))
    accept(ledger, *(job(str(number), name) for number in range(5) for name in ("a-shop", shop)))
    with ledger.begin() as db:
        assert 2 == holds.hold_all(db)
    probed = set()
    for _ in range(40):
        with ledger.begin() as db:
            db.execute(update(connection_rows).values(probe_at=datetime.now(UTC) - timedelta(seconds=1)))
        with ledger.begin() as db:
            (one,) = holds.claim_probes(db)
        probed.add(one)

    assert {"a-shop", shop} == probed


def test_a_wrong_token_is_told_also_of_a_connection_that_was_down(ledger: Engine, shop: str) -> None:
    accept(ledger, job(connection_id=shop))
    _hold(ledger, holds.OUTAGE, probe_at=datetime.now(UTC))
    (probe,) = claim(ledger, 1, probes=True)

    assert {shop} == write(ledger, answered(probe, WRONG_TOKEN)).held
    assert holds.CREDENTIALS == hold_of(ledger)


def test_a_read_of_what_is_proven_brings_no_document_back(ledger: Engine, shop: str) -> None:
    record_id = unconfirmed(ledger, shop)
    write(ledger, read_again(ledger, yes()))
    with ledger.begin() as db:
        db.execute(documents.delete())
    make_due(ledger, record_id, "confirm_at")
    write(ledger, read_again(ledger, yes()))

    assert 0 == count(ledger, documents)


@pytest.mark.parametrize("reason", [holds.OUTAGE, holds.TRACKSTAR_OUTAGE])
def test_a_read_says_nothing_of_a_warehouse_that_is_down(ledger: Engine, shop: str, reason: str) -> None:
    unconfirmed(ledger, shop)
    _hold(ledger, reason)
    summary = write(ledger, read_again(ledger, yes()))

    assert (frozenset(), False) == (summary.resumed, summary.trackstar_resumed)
    assert reason == hold_of(ledger)


@pytest.mark.parametrize("answer", [WRONG_TOKEN, NoReply("connect_failed", sent=False)], ids=["401", "no_reply"])
def test_a_probe_that_proves_nothing_opens_nothing(ledger: Engine, shop: str, answer: Answer) -> None:
    accept(ledger, job(connection_id=shop))
    _hold(ledger, "credentials", probe_at=datetime.now(UTC))
    (probe,) = claim(ledger, 1, probes=True)

    assert frozenset() == write(ledger, answered(probe, answer)).resumed
    assert "credentials" == hold_of(ledger)


def test_a_new_token_ends_the_hold_that_a_wrong_one_caused(ledger: Engine, shop: str, vault: TokenVault) -> None:
    write(ledger, answered(accepted_and_claimed(ledger, connection_id=shop), WRONG_TOKEN))
    with ledger.begin() as db:
        connections.add(db, shop, vault.encrypt("new"))
        assert {shop: False} == whose_turn(db)

    (claimed,) = claim(ledger)
    assert "new" == vault.decrypt(claimed.encrypted_token or "")
    assert ["connection.held", "connection.resumed"] == [kind for kind, _ in told(ledger)]


def test_a_new_token_does_not_end_an_operators_hold(ledger: Engine, shop: str, vault: TokenVault) -> None:
    _hold(ledger, "operator")
    with ledger.begin() as db:
        connections.add(db, shop, vault.encrypt("new"))

    assert "operator" == hold_of(ledger)


def test_an_operator_ends_any_hold_of_a_connection_with_a_token(ledger: Engine, shop: str) -> None:
    _hold(ledger, "outage")
    accept(ledger, job(connection_id="shop-without-token"))
    with ledger.begin() as db:
        assert holds.resume(db, [shop], holds.ALL)
        assert not holds.resume(db, [shop], holds.ALL)
        assert not holds.resume(db, ["shop-without-token"], holds.ALL)

    assert (None, "unknown_connection") == (hold_of(ledger), hold_of(ledger, "shop-without-token"))


def test_a_hold_touches_no_row_and_held_rows_still_expire(ledger: Engine, shop: str) -> None:
    request = job(connection_id=shop, send_by=datetime.now(UTC) - timedelta(seconds=1))
    accept(ledger, request)
    _hold(ledger, "operator")

    assert {request.record_id} == expire_overdue(ledger)


# -- the outbox


def test_an_event_is_leased_published_and_done(ledger: Engine) -> None:
    with ledger.begin() as db:
        outbox.add_events(db, [(None, "a.b", {"n": 1}), (None, "a.c", {"n": 2})])
    with ledger.begin() as db:
        taken = outbox.take_unpublished(db, 10)
        assert [] == outbox.take_unpublished(db, 10)

    with ledger.begin() as db:
        written = db.execute(select(events.c.id, events.c.type, events.c.payload).order_by(events.c.id)).all()
        assert [(taken[0], "a.b", '{"n":1}'), (taken[1], "a.c", '{"n":2}')] == [tuple(row) for row in written]
        outbox.mark_published(db, taken)
        assert {None} == set(db.execute(select(events.c.publish_at)).scalars())


def test_events_that_their_writer_publishes_fall_to_others_when_it_does_not(ledger: Engine) -> None:
    with ledger.begin() as db:
        written = outbox.add_leased_events(db, [(None, "a.b", {"n": n}) for n in range(3)])
    with ledger.begin() as db:
        assert [] == outbox.take_unpublished(db, 10)
        db.execute(update(events).values(publish_at=datetime.now(UTC) - timedelta(seconds=1)))
        assert written == outbox.take_unpublished(db, 10)


def test_events_of_a_publisher_that_died_are_taken_again_in_order(ledger: Engine) -> None:
    with ledger.begin() as db:
        outbox.add_events(db, [(None, "a.b", {"n": n}) for n in range(5)])
    with ledger.begin() as db:
        taken = outbox.take_unpublished(db, 10)
    with ledger.begin() as db:
        db.execute(update(events).values(publish_at=datetime.now(UTC) - timedelta(seconds=1)))
        assert taken == outbox.take_unpublished(db, 10)


def test_two_publishers_never_lease_the_same_event(ledger: Engine) -> None:
    with ledger.begin() as db:
        outbox.add_events(db, [(None, "a.b", {"n": n}) for n in range(40)])
    both = Barrier(2)

    def race(_: int) -> list[int]:
        both.wait()
        found: list[int] = []
        for _ in range(20):
            with ledger.begin() as db:
                found += outbox.take_unpublished(db, 2)
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, (1, 2))

    assert 40 == len(one) + len(other) == len({*one, *other})


def test_a_transaction_that_is_rolled_back_announces_nothing(ledger: Engine) -> None:
    db = ledger.connect()
    outbox.add_events(db, [(None, "a.b", {})])
    db.rollback()
    db.close()

    assert [] == told(ledger)


# -- one statement that is a transaction of its own


@pytest.mark.parametrize("first", ["SELECT 1", "DELETE FROM events"])
def test_a_second_statement_inside_autocommit_fails_its_test(
    ledger: Engine, second_statements: list[str], first: str
) -> None:
    for _ in range(2):  # the same pooled connection, counted anew
        with autocommit(ledger) as db:
            db.execute(text(first))
            with pytest.raises(AssertionError, match="SELECT 2"):
                db.execute(text("SELECT 2"))

    assert 2 == len(second_statements)
    second_statements.clear()  # else this test would fail, as it should


def test_transactions_and_questions_may_have_many_statements(ledger: Engine, second_statements: list[str]) -> None:
    with autocommit(ledger) as db:
        db.execute(text("SELECT 1"))
    for way in (read_only(ledger), ledger.begin()):
        with way as db:
            db.execute(text("SELECT 1"))
            db.execute(text("SELECT 2"))

    assert [] == second_statements


def test_what_is_one_statement_on_postgresql_is_one(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", name) for number in range(3) for name in (shop, "a stranger")]
    with counted(ledger) as statements:
        transitions.accept_batch(ledger, requests)
        claimed, _ = transitions.claim_shares(ledger, {shop: 2, "a stranger": 2}, "w-1", LEASE, {})
        with autocommit(ledger) as db:
            assert [shop, shop] == transitions.release_unsent(db, [each.lease for each in claimed[shop]])
        with ledger.begin() as db:
            news = outbox.add_leased_events(db, [(None, "a.b", {"n": n}) for n in range(3)])
        with autocommit(ledger) as db:
            outbox.mark_published(db, news)

    if ledger.dialect.name == "postgresql":
        assert ["WITH", "WITH", "WITH", "BEGIN", "INSERT", "WITH"] == statements


# -- asking


def test_the_newest_cancellations_are_found_by_order_connection_and_status(ledger: Engine, shop: str) -> None:
    accept(ledger, job("o-1", shop), job("o-2", shop), job("o-1", "shop-2"))
    with ledger.connect() as db:

        def found(limit: int = 50, **wanted: Any) -> set[tuple[str, str]]:
            return {(each.connection_id, each.order_id) for each in filters.find(db, Filter(**wanted), limit=limit)}

        assert {(shop, "o-1"), ("shop-2", "o-1")} == found(order_id="o-1")
        assert {(shop, "o-1"), (shop, "o-2")} == found(connection_id=shop)
        assert set() == found(status=(Status.WAITING,))
        assert 3 == len(found(status=(Status.PENDING, Status.WAITING)))
        assert set() == found(since=datetime.now(UTC) + timedelta(hours=1))
        assert 1 == len(found(limit=1))


# -- secrets at rest


def test_a_token_is_at_rest_only_encrypted(ledger: Engine, vault: TokenVault) -> None:
    secret = "tok-4711-very-secret"
    with ledger.begin() as db:
        connections.add(db, "shop-1", vault.encrypt(secret))
        encrypted = db.execute(select(connection_rows.c.access_token)).scalar_one()

    assert secret == vault.decrypt(encrypted)
    assert secret not in encrypted
    if ledger.dialect.name == "sqlite":
        path = Path(ledger.url.database or "")
        kept = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        assert encrypted.encode() in kept  # it is there, so what follows means something
        assert secret.encode() not in kept
