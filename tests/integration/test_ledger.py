"""The ledger's promises, on SQLite and on PostgreSQL: each row goes one way, once, whoever races for it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, func, select, update

from worker.attempt import rescue
from worker.cancellation.answer import Answer, NoReply, Reply, read_reply
from worker.cancellation.lifecycle import Policy, SafeToRefund, confirm, decide, expire
from worker.cancellation.outcome import Reading, classify, classify_read
from worker.cancellation.request import CancelRequest
from worker.ledger import accepting, agenda, by_hand, claims, connections, holds, outbox, reading, recording, turns
from worker.ledger.accepting import DeadLetter
from worker.ledger.moving import apply_unsent
from worker.ledger.recording import AttemptRow, Record, Recorded
from worker.ledger.tables import attempts, cancellations, dead_letters, events
from worker.ledger.tables import connections as connection_rows

if TYPE_CHECKING:
    from worker.ledger.claims import Claim
    from worker.ledger.credentials import TokenVault
    from worker.ledger.reading import Cancellation

LEASE = 60.0
OVER = -1.0  # a lease that has ended already
POLICY = Policy()
c = cancellations.c


def job(order_id: str = "o-1", connection_id: str = "shop-1", **fields: Any) -> CancelRequest:
    return CancelRequest(connection_id=connection_id, order_id=order_id, **fields)


def accept(ledger: Engine, *requests: CancelRequest) -> set[str]:
    with ledger.begin() as connection:
        return accepting.accept(connection, requests)


def get(ledger: Engine, record_id: str) -> Cancellation:
    with ledger.connect() as connection:
        found = reading.get(connection, record_id)
    assert found is not None
    return found


def count(ledger: Engine, table: Any) -> int:
    with ledger.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def queue(ledger: Engine, share: int = 100, owner: str = "w-1", lease: float = LEASE) -> list[str]:
    """Hand out what is pending on shop-1, in its order."""
    with ledger.begin() as connection:
        # A held connection's probe goes the same way.
        queued = turns.queue(connection, {"shop-1": share}, owner, lease, probes=True).get("shop-1", [])
        orders = {str(row.id): row.order_id for row in connection.execute(select(c.id, c.order_id))}
    return [orders[row.id] for row in queued]


def whose_turn(connection: Connection) -> dict[str, bool]:
    """Return who may send; True marks one that may only probe."""
    return {each.connection_id: each.probing for each in turns.senders(connection)}


def claim(ledger: Engine, *ids: str, owner: str = "w-1", lease: float = LEASE) -> list[Claim]:
    with ledger.begin() as connection:
        return claims.claim(connection, ids, owner, lease)


def accepted_and_claimed(ledger: Engine, *, owner: str = "w-1", lease: float = LEASE, **fields: Any) -> Claim:
    request = job(**fields)
    accept(ledger, request)
    queue(ledger, owner=owner)
    (claimed,) = claim(ledger, request.record_id, owner=owner, lease=lease)
    return claimed


def answered(claimed: Claim, answer: Answer, seen: Reading | None = None) -> Record:
    """Judge an answer as an attempt does."""
    outcome = classify(answer, claimed.order_id)
    move = decide(claimed.state, outcome, seen, now=claimed.claimed_at, jitter=0.5, policy=POLICY)
    row = AttemptRow(
        kind="cancel",
        started_at=claimed.claimed_at,
        reason=outcome.reason,
        status=answer.status if isinstance(answer, Reply) else None,
    )
    return Record(claim=claimed, attempts=(row,), move=move)


def write(ledger: Engine, *records: Record) -> Recorded:
    with ledger.begin() as connection:
        return recording.record(connection, records)


def reply(status: int = 200, **body: Any) -> Reply:
    return read_reply(status, json.dumps(body).encode())


def yes(status: str = "cancelled", order_id: str = "o-1") -> Reply:
    return reply(data={"id": order_id, "status": status}, id=order_id)


def expire_overdue(ledger: Engine) -> set[str]:
    with ledger.begin() as connection:
        moves = [(row.id, expire(row.state, now=row.now, policy=POLICY)) for row in agenda.overdue(connection, 100)]
        return apply_unsent(connection, moves)


def make_due(ledger: Engine, record_id: str, column: str = "run_at") -> None:
    """Let the time come at which this row is due."""
    past = datetime.now(UTC) - timedelta(hours=1)
    with ledger.begin() as connection:
        connection.execute(update(cancellations).where(c.id == record_id).values({column: past}))


def send_again(ledger: Engine, record_id: str, owner: str = "w-1") -> Claim:
    make_due(ledger, record_id)
    with ledger.begin() as connection:
        agenda.promote_due(connection, 10)
    queue(ledger, owner=owner)
    (claimed,) = claim(ledger, record_id, owner=owner)
    return claimed


def reasons(ledger: Engine, record_id: str) -> list[str]:
    with ledger.connect() as connection:
        found = reading.timeline(connection, record_id)
    assert found is not None
    return [row["reason"] for row in found.attempts]


def told(ledger: Engine) -> list[tuple[str, dict[str, Any]]]:
    with ledger.connect() as connection:
        rows = connection.execute(select(events.c.type, events.c.payload).order_by(events.c.id))
        return [(row.type, json.loads(row.payload)) for row in rows]


def hold_of(ledger: Engine, name: str = "shop-1") -> str | None:
    with ledger.connect() as connection:
        return next(row.hold_reason for row in connections.list_all(connection) if row.id == name)


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
        "requested_at": soon - timedelta(days=1),
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
    with ledger.connect() as connection:
        assert {known.record_id: "o-1"} == accepting.find_conflicts(connection, [wrong, job("o-3", shop)])
    assert "o-1" == get(ledger, known.record_id).order_id


def test_the_same_order_id_of_two_connections_is_two_records(ledger: Engine) -> None:
    assert 2 == len(accept(ledger, job(connection_id="shop-1"), job(connection_id="shop-2")))


def test_jobs_of_an_unknown_connection_wait_held_until_it_is_added(ledger: Engine, vault: TokenVault) -> None:
    request = job()
    accept(ledger, request)

    assert ("pending", "unknown_connection") == (get(ledger, request.record_id).status, hold_of(ledger))
    with ledger.begin() as connection:
        assert {} == whose_turn(connection)
        connections.add(connection, "shop-1", vault.seal("t"))
        assert {"shop-1": False} == whose_turn(connection)
    assert [("connection.resumed", {"connection_id": "shop-1"})] == told(ledger)


def test_accepting_does_not_hold_a_connection_that_is_known(ledger: Engine, shop: str) -> None:
    accept(ledger, job(connection_id=shop))

    assert hold_of(ledger, shop) is None


def test_thousands_of_jobs_are_one_batch(ledger: Engine, shop: str) -> None:
    assert 3000 == len(accept(ledger, *(job(f"o-{number}", shop) for number in range(3000))))


@pytest.mark.parametrize("order_id", ["a/b c%?#+=", "ünï\N{SNOWMAN}", "'; DROP TABLE cancellations; --", '"\\', "a,b"])
def test_an_order_id_is_kept_as_it_is(ledger: Engine, shop: str, order_id: str) -> None:
    request = job(order_id, shop)
    accept(ledger, request)

    assert order_id == get(ledger, request.record_id).order_id


def test_an_unreadable_message_is_kept_once_and_announced(ledger: Engine) -> None:
    letter = DeadLetter(source="inbox", entry_id="1-1", raw=b"\xff\x00{", reason="not_json", error="It is no JSON.")
    for _ in range(2):
        with ledger.begin() as connection:
            accepting.bury(connection, [letter])

    with ledger.connect() as connection:
        assert [b"\xff\x00{"] == [bytes(raw) for raw in connection.execute(select(dead_letters.c.raw)).scalars()]
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
        order for _ in range(6) for order in queue(ledger, 1)
    ]
    assert [] == queue(ledger, 1)


def test_two_dispatchers_never_hand_out_the_same_row(ledger: Engine, shop: str) -> None:
    accept(ledger, *(job(f"o-{number}", shop) for number in range(40)))
    both = Barrier(2)

    def race(owner: str) -> list[str]:
        both.wait()
        return [order for _ in range(10) for order in queue(ledger, 2, owner)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert set() == set(one) & set(other)
    assert 40 == len(one) + len(other)


def test_a_dispatcher_hands_back_only_what_it_queued_and_nobody_claimed(ledger: Engine, shop: str) -> None:
    ids = {}
    for owner, order in (("w-1", "mine"), ("w-1", "claimed"), ("w-2", "other")):
        request = job(order, shop)
        accept(ledger, request)
        queue(ledger, owner=owner)
        ids[order] = request.record_id
    claim(ledger, ids["claimed"])

    with ledger.begin() as connection:
        assert 1 == turns.hand_back(connection, ids.values(), "w-1")
    states = {order: get(ledger, record_id).status for order, record_id in ids.items()}
    assert {"mine": "pending", "claimed": "in_flight", "other": "queued"} == states


def test_a_dispatcher_that_ends_hands_back_all_it_queued(ledger: Engine, shop: str) -> None:
    accept(ledger, job("a", shop), job("b", shop))
    queue(ledger)

    with ledger.begin() as connection:
        assert 0 == turns.hand_back_all(connection, "w-2")
        assert 2 == turns.hand_back_all(connection, "w-1")
    assert ["a", "b"] == sorted(queue(ledger))


def test_a_queued_row_whose_message_was_lost_is_offered_again(ledger: Engine, shop: str) -> None:
    accept(ledger, job("lost", shop), job("on its way", shop))
    (lost,) = queue(ledger, 1, lease=OVER)
    queue(ledger, 1)

    with ledger.begin() as connection:
        assert ["shop-1"] == agenda.take_back_lost_messages(connection, 10)
    assert [lost] == queue(ledger)


def test_only_what_is_due_is_promoted(ledger: Engine, shop: str) -> None:
    ids = []
    for order in ("due", "later"):
        claimed = accepted_and_claimed(ledger, order_id=order, connection_id=shop)
        write(ledger, answered(claimed, NoReply("connect_failed", sent=False)))
        ids.append(claimed.fence.id)
    make_due(ledger, ids[0])
    make_later = datetime.now(UTC) + timedelta(hours=1)
    with ledger.begin() as connection:
        connection.execute(update(cancellations).where(c.id == ids[1]).values(run_at=make_later))
        assert [shop] == agenda.promote_due(connection, 10)

    assert ["pending", "waiting"] == [get(ledger, record_id).status for record_id in ids]
    assert get(ledger, ids[0]).run_at is None


def test_one_look_tells_all_that_is_due(ledger: Engine, shop: str) -> None:
    with ledger.connect() as connection:
        idle = agenda.look(connection)
    assert float("inf") == idle.seconds_to_next

    soon = datetime.now(UTC) + timedelta(minutes=5)
    accept(ledger, job("a", shop), job("b", shop, send_by=soon))
    queue(ledger, 1)
    with ledger.connect() as connection:
        busy = agenda.look(connection)

    assert soon == busy.send_by
    assert LEASE - 10 < busy.seconds_to_next <= LEASE


# -- claiming


def test_a_claim_tells_all_that_an_attempt_must_know(ledger: Engine, shop: str, vault: TokenVault) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)

    assert ("o-1", shop, 1, 0) == (
        claimed.order_id,
        claimed.connection_id,
        claimed.fence.claim,
        claimed.state.attempts,
    )
    assert claimed.fence.id == claimed.idempotency_key
    assert claimed.claimed_at - claimed.state.first_sent_at < timedelta(seconds=1)
    assert "token-of-shop-1" == vault.open(claimed.sealed_token or "")
    assert claimed.hold_reason is None


def test_two_threads_that_race_claim_each_row_once(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", shop) for number in range(40)]
    ids = [request.record_id for request in requests]
    accept(ledger, *requests)
    queue(ledger)
    both = Barrier(2)

    def race(owner: str) -> list[str]:
        both.wait()
        # One by one, so that they meet often.
        return [each.fence.id for record_id in ids for each in claim(ledger, record_id, owner=owner)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert sorted(ids) == sorted(one + other)
    with ledger.connect() as connection:
        assert {1} == set(connection.execute(select(c.claims)).scalars())


@pytest.mark.parametrize("status", ["pending", "in_flight", "waiting", "succeeded"])
def test_only_a_queued_row_can_be_claimed(ledger: Engine, shop: str, status: str) -> None:
    request = job(connection_id=shop)
    if status == "pending":
        accept(ledger, request)
    else:
        claimed = accepted_and_claimed(ledger, connection_id=shop)
        if status == "waiting":
            write(ledger, answered(claimed, NoReply("connect_failed", sent=False)))
        if status == "succeeded":
            write(ledger, answered(claimed, yes()))
    assert status == get(ledger, request.record_id).status

    assert [] == claim(ledger, request.record_id, owner="w-2")
    assert [] == claim(ledger, "00000000-0000-5000-8000-000000000000")
    assert [] == claim(ledger)


def test_a_cancel_that_is_worthless_by_now_is_not_claimed(ledger: Engine, shop: str) -> None:
    request = job(connection_id=shop, send_by=datetime.now(UTC) - timedelta(seconds=1))
    accept(ledger, request)
    queue(ledger)

    assert [] == claim(ledger, request.record_id)


# -- recording


def test_a_proven_cancel_is_recorded_with_its_evidence_and_its_event(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    recorded = write(ledger, answered(claimed, yes()))

    found = get(ledger, claimed.fence.id)
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
        "at": found.ended_at.isoformat() if found.ended_at else None,
    } == event


def test_recording_twice_is_recording_once(ledger: Engine, shop: str) -> None:
    record = answered(accepted_and_claimed(ledger, connection_id=shop), yes())
    write(ledger, record)
    before = get(ledger, record.claim.fence.id)

    assert frozenset() == write(ledger, record).applied
    assert before == get(ledger, record.claim.fence.id)
    assert (1, 1) == (count(ledger, attempts), count(ledger, events))


def test_a_stale_record_is_refused_and_its_attempt_is_kept(ledger: Engine, shop: str) -> None:
    stale = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as connection:
        (lost,) = claims.take_over(connection, "w-2", LEASE, 10)
    write(ledger, rescue(lost, POLICY))
    fresh = send_again(ledger, stale.fence.id, owner="w-2")

    assert frozenset() == write(ledger, answered(stale, reply(422, error="no", origin="trackstar"))).applied
    assert ("in_flight", "unknown") == (
        get(ledger, stale.fence.id).status,
        get(ledger, stale.fence.id).verdict,
    )
    assert {stale.fence.id} == write(ledger, answered(fresh, yes())).applied
    assert ["validation_failed", "accepted"] == reasons(ledger, stale.fence.id)
    assert ["cancellation.ended"] == [kind for kind, _ in told(ledger)]


def test_a_lost_worker_leaves_a_cancellation_in_doubt(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as connection:
        (lost,) = claims.take_over(connection, "w-2", LEASE, 10)
        assert [] == claims.take_over(connection, "w-3", LEASE, 10)
    write(ledger, rescue(lost, POLICY))

    found = get(ledger, claimed.fence.id)
    assert ("waiting", "unknown", 1) == (found.status, found.verdict, found.attempts)
    assert ["worker_lost"] == reasons(ledger, found.id)


def test_a_live_claim_is_not_taken_over(ledger: Engine, shop: str) -> None:
    accepted_and_claimed(ledger, connection_id=shop)

    with ledger.begin() as connection:
        assert [] == claims.take_over(connection, "w-2", LEASE, 10)
        assert [] == agenda.take_back_lost_messages(connection, 10)


def test_two_threads_that_race_take_a_lost_claim_over_once(ledger: Engine, shop: str) -> None:
    for number in range(10):
        accepted_and_claimed(ledger, order_id=f"o-{number}", connection_id=shop, lease=OVER)
    both = Barrier(2)

    def race(owner: str) -> list[str]:
        both.wait()
        with ledger.begin() as connection:
            return [lost.fence.id for lost in claims.take_over(connection, owner, LEASE, 10)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, ("w-1", "w-2"))

    assert 10 == len(one) + len(other) == len({*one, *other})


def test_a_late_answer_replaces_the_guess_that_its_worker_was_lost(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as connection:
        (lost,) = claims.take_over(connection, "w-2", LEASE, 10)
    write(ledger, rescue(lost, POLICY))
    write(ledger, answered(claimed, yes()))

    assert ["accepted"] == reasons(ledger, claimed.fence.id)
    assert "waiting" == get(ledger, claimed.fence.id).status


def test_the_guess_that_a_worker_was_lost_replaces_no_answer(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, lease=OVER)
    with ledger.begin() as connection:
        (lost,) = claims.take_over(connection, "w-2", LEASE, 10)

    assert frozenset() == write(ledger, answered(claimed, yes())).applied
    write(ledger, rescue(lost, POLICY))
    assert ["accepted"] == reasons(ledger, claimed.fence.id)


@pytest.mark.parametrize("answer_first", [True, False])
def test_a_worker_that_rescued_its_own_claim_writes_the_answer_alone(
    ledger: Engine, shop: str, *, answer_first: bool
) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    both = [answered(claimed, yes()), rescue(claimed, POLICY)]
    write(ledger, *(both if answer_first else reversed(both)))

    assert ["accepted"] == reasons(ledger, claimed.fence.id)
    assert "succeeded" == get(ledger, claimed.fence.id).status


def test_a_batch_of_records_is_written_in_one_transaction(ledger: Engine, shop: str) -> None:
    requests = [job(f"o-{number}", shop) for number in range(200)]
    accept(ledger, *requests)
    queue(ledger, 200)
    claimed = claim(ledger, *(request.record_id for request in requests))
    recorded = write(ledger, *(answered(each, yes(order_id=each.order_id)) for each in claimed))

    assert 200 == len(recorded.applied)
    assert (200, 200) == (count(ledger, attempts), count(ledger, events))
    with ledger.connect() as connection:
        kept = connection.execute(select(c.order_id, c.order_snapshot)).all()
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

    found = get(ledger, claimed.fence.id)
    assert SNAPSHOT == found.order_snapshot
    assert '["a",  null]' == found.unused_fields


def test_what_is_no_json_becomes_no_snapshot(ledger: Engine, shop: str) -> None:
    """NaN is Python's word; a reader in another language could not read such a snapshot."""
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, read_reply(200, b'{"data": {"id": "o-1", "total_price": NaN}, "id": "o-1"}')))

    found = get(ledger, claimed.fence.id)
    assert ("waiting", None, "not_json") == (found.status, found.order_snapshot, found.outcome_reason)


def test_an_answer_without_an_order_keeps_the_last_one_that_was_seen(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    seen = classify_read(yes("fulfilled"), "o-1")
    refusal = reply(400, error="shipped", origin="integration")
    write(ledger, answered(claimed, refusal, seen))

    found = get(ledger, claimed.fence.id)
    assert ("rejected", "not_cancelled", "read_back", "fulfilled", SafeToRefund.NO) == (
        found.status,
        found.verdict,
        found.evidence,
        found.order_status,
        found.safe_to_refund,
    )
    assert "shipped" == found.outcome_message


# -- time: expiry and withdrawal


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
    assert "waiting" == get(ledger, claimed.fence.id).status
    make_due(ledger, claimed.fence.id, "send_by")

    assert {claimed.fence.id} == expire_overdue(ledger)
    found = get(ledger, claimed.fence.id)
    assert ("expired", "unknown", None, SafeToRefund.NOT_YET) == (
        found.status,
        found.verdict,
        found.evidence,
        found.safe_to_refund,
    )
    assert found.confirm_at is not None


def test_what_is_in_flight_does_not_expire(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop, send_by=datetime.now(UTC) + timedelta(minutes=5))
    make_due(ledger, claimed.fence.id, "send_by")

    assert set() == expire_overdue(ledger)
    assert "in_flight" == get(ledger, claimed.fence.id).status


@pytest.mark.parametrize("queued", [False, True])
def test_what_was_not_sent_can_be_withdrawn(ledger: Engine, shop: str, queued: bool) -> None:
    request = job(connection_id=shop)
    accept(ledger, request)
    if queued:
        queue(ledger)
    with ledger.begin() as connection:
        by_hand.take_back(connection, request.record_id, POLICY)

    found = get(ledger, request.record_id)
    assert ("withdrawn", "not_cancelled", "never_sent") == (found.status, found.verdict, found.evidence)
    assert [] == claim(ledger, request.record_id)
    assert ["cancellation.ended"] == [kind for kind, _ in told(ledger)]


@pytest.mark.parametrize("answer", [None, NoReply("read_timeout", sent=True), yes()], ids=["none", "doubt", "yes"])
def test_what_may_have_landed_can_not_be_withdrawn(ledger: Engine, shop: str, answer: Answer | None) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    if answer:
        write(ledger, answered(claimed, answer))
    before = get(ledger, claimed.fence.id)

    with pytest.raises(by_hand.TooLateError, match=claimed.fence.id), ledger.begin() as connection:
        by_hand.take_back(connection, claimed.fence.id, POLICY)
    assert before == get(ledger, claimed.fence.id)


def test_what_could_not_be_sent_can_be_withdrawn(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, NoReply("connect_failed", sent=False)))
    with ledger.begin() as connection:
        by_hand.take_back(connection, claimed.fence.id, POLICY)

    assert "withdrawn" == get(ledger, claimed.fence.id).status


def test_an_unknown_id_can_not_be_withdrawn(ledger: Engine) -> None:
    with pytest.raises(by_hand.UnknownCancellationError), ledger.begin() as connection:
        by_hand.take_back(connection, "00000000-0000-5000-8000-000000000000", POLICY)


# -- confirming


def unconfirmed(ledger: Engine, shop: str) -> str:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    write(ledger, answered(claimed, yes("open")))
    found = get(ledger, claimed.fence.id)
    assert ("succeeded", "accepted", SafeToRefund.NOT_YET) == (found.status, found.verdict, found.safe_to_refund)
    make_due(ledger, found.id, "confirm_at")
    return found.id


def read_again(ledger: Engine, seen: Reply) -> Record:
    with ledger.begin() as connection:
        (due,) = claims.claim_read_backs(connection, LEASE, 10)
    assert due.state.verdict is not None
    assert due.ended_at is not None
    found = confirm(
        due.state.verdict,
        due.state.evidence,
        due.ended_at,
        classify_read(seen, due.order_id),
        now=due.claimed_at,
        policy=POLICY,
    )
    row = AttemptRow(kind="read", started_at=due.claimed_at, reason="read", status=seen.status)
    return Record(claim=due, attempts=(row,), confirmation=found)


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
    with ledger.connect() as connection:
        found = reading.timeline(connection, record_id)
    assert found is not None
    return [row["kind"] for row in found.attempts]


def test_a_read_back_is_claimed_once_and_again_when_its_reader_is_lost(ledger: Engine, shop: str) -> None:
    record_id = unconfirmed(ledger, shop)
    with ledger.begin() as connection:
        assert [record_id] == [due.fence.id for due in claims.claim_read_backs(connection, LEASE, 10)]
        assert [] == claims.claim_read_backs(connection, LEASE, 10)
    make_due(ledger, record_id, "confirm_at")
    with ledger.begin() as connection:
        assert [2 + 1] == [due.fence.claim for due in claims.claim_read_backs(connection, LEASE, 10)]


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

    with ledger.begin() as connection:
        assert [] == claims.claim_read_backs(connection, LEASE, 10)


def test_a_connection_whose_warehouse_is_down_is_still_read(ledger: Engine, shop: str) -> None:
    unconfirmed(ledger, shop)
    _hold(ledger, "outage")

    with ledger.begin() as connection:
        assert 1 == len(claims.claim_read_backs(connection, LEASE, 10))


# -- holding connections

WRONG_TOKEN = reply(401, error="no", origin="trackstar")


def _hold(ledger: Engine, reason: str, name: str = "shop-1", probe_at: datetime | None = None) -> None:
    with ledger.begin() as connection:
        connection.execute(
            update(connection_rows)
            .where(connection_rows.c.id == name)
            .values(hold_reason=reason, held_at=datetime.now(UTC), probe_at=probe_at)
        )


def test_a_wrong_token_holds_the_connection_and_spends_no_attempt(ledger: Engine, shop: str) -> None:
    claimed = accepted_and_claimed(ledger, connection_id=shop)
    recorded = write(ledger, answered(claimed, WRONG_TOKEN))

    found = get(ledger, claimed.fence.id)
    assert {shop} == recorded.held
    assert ("pending", 0, None, "credentials") == (found.status, found.attempts, found.verdict, found.hold_reason)
    assert [("connection.held", {"connection_id": shop, "reason": "credentials"})] == told(ledger)
    with ledger.begin() as connection:
        assert {} == whose_turn(connection)


def test_a_connection_is_held_once_and_told_once(ledger: Engine, shop: str) -> None:
    requests = [job("a", shop), job("b", shop)]
    accept(ledger, *requests)
    queue(ledger)
    first, second = claim(ledger, *(request.record_id for request in requests))
    write(ledger, answered(first, WRONG_TOKEN))

    assert frozenset() == write(ledger, answered(second, WRONG_TOKEN)).held
    assert 1 == count(ledger, events)


def test_a_probe_that_is_answered_opens_the_connection(ledger: Engine, shop: str) -> None:
    write(ledger, answered(accepted_and_claimed(ledger, connection_id=shop), WRONG_TOKEN))
    _hold(ledger, "credentials", probe_at=datetime.now(UTC) - timedelta(seconds=1))
    with ledger.begin() as connection:
        assert {shop: True} == whose_turn(connection)
        assert [shop] == holds.claim_probes(connection)
        assert [] == holds.claim_probes(connection)
        assert {} == whose_turn(connection)
    queue(ledger, 1)
    (probe,) = claim(ledger, job(connection_id=shop).record_id)

    assert "credentials" == probe.hold_reason
    assert {shop} == write(ledger, answered(probe, yes())).resumed
    assert hold_of(ledger) is None
    assert "connection.resumed" in [kind for kind, _ in told(ledger)]


@pytest.mark.parametrize("answer", [WRONG_TOKEN, NoReply("connect_failed", sent=False)], ids=["401", "no_reply"])
def test_a_probe_that_proves_nothing_opens_nothing(ledger: Engine, shop: str, answer: Answer) -> None:
    accept(ledger, job(connection_id=shop))
    _hold(ledger, "credentials", probe_at=datetime.now(UTC))
    queue(ledger, 1)
    (probe,) = claim(ledger, job(connection_id=shop).record_id)

    assert frozenset() == write(ledger, answered(probe, answer)).resumed
    assert "credentials" == hold_of(ledger)


def test_a_new_token_ends_the_hold_that_a_wrong_one_caused(ledger: Engine, shop: str, vault: TokenVault) -> None:
    write(ledger, answered(accepted_and_claimed(ledger, connection_id=shop), WRONG_TOKEN))
    with ledger.begin() as connection:
        connections.add(connection, shop, vault.seal("new"))
        assert {shop: False} == whose_turn(connection)

    queue(ledger)
    (claimed,) = claim(ledger, job(connection_id=shop).record_id)
    assert "new" == vault.open(claimed.sealed_token or "")
    assert ["connection.held", "connection.resumed"] == [kind for kind, _ in told(ledger)]


def test_a_new_token_does_not_end_an_operators_hold(ledger: Engine, shop: str, vault: TokenVault) -> None:
    _hold(ledger, "operator")
    with ledger.begin() as connection:
        connections.add(connection, shop, vault.seal("new"))

    assert "operator" == hold_of(ledger)


def test_an_operator_ends_any_hold_of_a_connection_with_a_token(ledger: Engine, shop: str) -> None:
    _hold(ledger, "outage")
    accept(ledger, job(connection_id="shop-without-token"))
    with ledger.begin() as connection:
        assert holds.resume(connection, [shop], holds.ALL)
        assert not holds.resume(connection, [shop], holds.ALL)
        assert not holds.resume(connection, ["shop-without-token"], holds.ALL)

    assert (None, "unknown_connection") == (hold_of(ledger), hold_of(ledger, "shop-without-token"))


def test_a_hold_touches_no_row_and_held_rows_still_expire(ledger: Engine, shop: str) -> None:
    request = job(connection_id=shop, send_by=datetime.now(UTC) - timedelta(seconds=1))
    accept(ledger, request)
    _hold(ledger, "operator")

    assert {request.record_id} == expire_overdue(ledger)


# -- the outbox


def test_an_event_is_leased_published_and_done(ledger: Engine) -> None:
    with ledger.begin() as connection:
        outbox.announce(connection, [(None, "a.b", {"n": 1}), (None, "a.c", {"n": 2})])
    with ledger.begin() as connection:
        taken = outbox.take_unpublished(connection, 10)
        assert [] == outbox.take_unpublished(connection, 10)

    assert [("a.b", '{"n":1}'), ("a.c", '{"n":2}')] == [(event.type, event.payload) for event in taken]
    with ledger.begin() as connection:
        outbox.mark_published(connection, [event.id for event in taken])
        assert {None} == set(connection.execute(select(events.c.publish_at)).scalars())


def test_events_that_their_writer_publishes_fall_to_others_when_it_does_not(ledger: Engine) -> None:
    with ledger.begin() as connection:
        written = outbox.announce_leased(connection, [(None, "a.b", {"n": n}) for n in range(3)])
    with ledger.begin() as connection:
        assert [] == outbox.take_unpublished(connection, 10)
        connection.execute(update(events).values(publish_at=datetime.now(UTC) - timedelta(seconds=1)))
        assert written == outbox.take_unpublished(connection, 10)


def test_events_of_a_publisher_that_died_are_taken_again_in_order(ledger: Engine) -> None:
    with ledger.begin() as connection:
        outbox.announce(connection, [(None, "a.b", {"n": n}) for n in range(5)])
    with ledger.begin() as connection:
        taken = outbox.take_unpublished(connection, 10)
    with ledger.begin() as connection:
        connection.execute(update(events).values(publish_at=datetime.now(UTC) - timedelta(seconds=1)))
        assert taken == outbox.take_unpublished(connection, 10)


def test_two_publishers_never_lease_the_same_event(ledger: Engine) -> None:
    with ledger.begin() as connection:
        outbox.announce(connection, [(None, "a.b", {"n": n}) for n in range(40)])
    both = Barrier(2)

    def race(_: int) -> list[int]:
        both.wait()
        found: list[int] = []
        for _ in range(20):
            with ledger.begin() as connection:
                found += [event.id for event in outbox.take_unpublished(connection, 2)]
        return found

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(race, (1, 2))

    assert 40 == len(one) + len(other) == len({*one, *other})


def test_a_transaction_that_is_rolled_back_announces_nothing(ledger: Engine) -> None:
    connection = ledger.connect()
    outbox.announce(connection, [(None, "a.b", {})])
    connection.rollback()
    connection.close()

    assert [] == told(ledger)


# -- asking


def test_the_newest_cancellations_are_found_by_order_connection_and_status(ledger: Engine, shop: str) -> None:
    accept(ledger, job("o-1", shop), job("o-2", shop), job("o-1", "shop-2"))
    with ledger.connect() as connection:

        def found(**wanted: Any) -> set[tuple[str, str]]:
            return {(each.connection_id, each.order_id) for each in reading.find(connection, **wanted)}

        assert {(shop, "o-1"), ("shop-2", "o-1")} == found(order_id="o-1")
        assert {(shop, "o-1"), (shop, "o-2")} == found(connection_id=shop)
        assert set() == found(status=["waiting"])
        assert 3 == len(found(status=["pending", "waiting"]))
        assert set() == found(since=datetime.now(UTC) + timedelta(hours=1))
        assert 1 == len(found(limit=1))


# -- secrets at rest


def test_a_token_is_at_rest_only_encrypted(ledger: Engine, vault: TokenVault) -> None:
    secret = "tok-4711-very-secret"
    with ledger.begin() as connection:
        connections.add(connection, "shop-1", vault.seal(secret))
        sealed = connection.execute(select(connection_rows.c.access_token)).scalar_one()

    assert secret == vault.open(sealed)
    assert secret not in sealed
    if ledger.dialect.name == "sqlite":
        path = Path(ledger.url.database or "")
        kept = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
        assert sealed.encode() in kept  # it is there, so what follows means something
        assert secret.encode() not in kept
