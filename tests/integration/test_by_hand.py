"""What a person may change: run an ended cancellation again, send a dead letter again. On both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, update

from worker.attempt import rescue
from worker.cancellation.lifecycle import Confirmation, Evidence, Move, Policy, Status, Verdict
from worker.cancellation.request import CancelRequest
from worker.ledger import accepting, by_hand, claims, dead_letters, reading, recording, turns
from worker.ledger.accepting import DeadLetter
from worker.ledger.moving import apply_unsent
from worker.ledger.recording import Record
from worker.ledger.tables import cancellations, events

if TYPE_CHECKING:
    from worker.ledger.claims import Claim
    from worker.ledger.reading import Cancellation

c = cancellations.c
REQUEST = CancelRequest(
    connection_id="shop-1", order_id="o-1", send_by=datetime.now(UTC) + timedelta(hours=1), reason="changed my mind"
)
ID = REQUEST.record_id

pytestmark = pytest.mark.usefixtures("shop")


def get(ledger: Engine) -> Cancellation:
    with ledger.connect() as connection:
        found = reading.get(connection, ID)
    assert found is not None
    return found


def claim(ledger: Engine) -> Claim:
    with ledger.begin() as connection:
        turns.queue(connection, {"shop-1": 1}, "w-1", 60)
    with ledger.begin() as connection:
        (claimed,) = claims.claim(connection, [ID], "w-1", 60)
    return claimed


def end(ledger: Engine, status: Status, verdict: Verdict, evidence: Evidence | None = None) -> Claim:
    """Accept it, claim it, and let it end so."""
    with ledger.begin() as connection:
        accepting.accept(connection, [REQUEST])
    claimed = claim(ledger)
    move = Move(status=status, attempts=1, reason="for_a_test", verdict=verdict, evidence=evidence)
    with ledger.begin() as connection:
        recording.record(connection, [Record(claim=claimed, attempts=(), move=move)])
    return claimed


def replay(ledger: Engine, *ids: str, **options: Any) -> set[str]:
    with ledger.begin() as connection:
        return by_hand.replay(connection, ids or [ID], **options)


@pytest.mark.parametrize(
    ("status", "verdict", "kept"),
    [
        (Status.REJECTED, Verdict.NOT_CANCELLED, None),
        (Status.EXHAUSTED, Verdict.UNKNOWN, Verdict.UNKNOWN),
        (Status.EXPIRED, Verdict.UNKNOWN, Verdict.UNKNOWN),
        (Status.SUCCEEDED, Verdict.ACCEPTED, Verdict.UNKNOWN),
    ],
)
def test_a_replay_is_a_new_generation_with_a_new_key_that_keeps_the_doubt_of_the_old(
    ledger: Engine, status: Status, verdict: Verdict, kept: Verdict | None
) -> None:
    before = end(ledger, status, verdict)

    assert {ID} == replay(ledger)

    again = get(ledger)
    assert ("pending", 2, 0, kept) == (again.status, again.generation, again.attempts, again.verdict)
    assert (None, None, None, None) == (again.ended_at, again.send_by, again.evidence, again.outcome_reason)
    assert "not yet" == str(again.safe_to_refund)
    assert again.reason == REQUEST.reason

    after = claim(ledger)
    assert before.idempotency_key != after.idempotency_key
    assert after.idempotency_key.startswith(ID)


def test_what_is_proven_cancelled_is_not_replayed(ledger: Engine) -> None:
    end(ledger, Status.SUCCEEDED, Verdict.CANCELLED, Evidence.RESPONSE)
    before = get(ledger)

    assert set() == replay(ledger)
    assert before == get(ledger)


def test_what_has_not_ended_is_not_replayed(ledger: Engine) -> None:
    with ledger.begin() as connection:
        accepting.accept(connection, [REQUEST])

    assert set() == replay(ledger)
    claim(ledger)
    assert set() == replay(ledger)
    assert 1 == get(ledger).generation


def test_an_id_of_nobody_is_left_out(ledger: Engine) -> None:
    end(ledger, Status.REJECTED, Verdict.NOT_CANCELLED)

    assert {ID} == replay(ledger, "00000000-0000-5000-8000-00000000000f", "no id at all", ID)


def test_a_new_send_by_may_be_given(ledger: Engine) -> None:
    end(ledger, Status.EXPIRED, Verdict.NOT_CANCELLED)
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    replay(ledger, send_by=moment)

    assert moment == get(ledger).send_by


def test_an_answer_of_the_generation_before_changes_nothing(ledger: Engine) -> None:
    stale = end(ledger, Status.REJECTED, Verdict.NOT_CANCELLED)
    replay(ledger)
    current = claim(ledger)
    with ledger.begin() as connection:
        recorded = recording.record(connection, [rescue(stale, Policy())])

    assert frozenset() == recorded.applied
    assert "in_flight" == get(ledger).status
    assert stale.fence.claim < current.fence.claim


def test_the_timeline_shows_both_generations(ledger: Engine) -> None:
    end(ledger, Status.REJECTED, Verdict.NOT_CANCELLED)
    replay(ledger)
    with ledger.connect() as connection:
        told = connection.execute(
            select(events.c.type).where(events.c.cancellation_id == ID).order_by(events.c.id)
        ).scalars()

        assert ["cancellation.ended", "cancellation.replayed"] == list(told)


def test_a_read_back_that_was_due_does_not_touch_a_replayed_one(ledger: Engine) -> None:
    end(ledger, Status.SUCCEEDED, Verdict.ACCEPTED)
    with ledger.begin() as connection:
        connection.execute(update(cancellations).values(confirm_at=datetime(2001, 1, 1, tzinfo=UTC)))
    replay(ledger)
    with ledger.begin() as connection:
        assert [] == claims.claim_read_backs(connection, 60, 10)


def test_a_read_back_under_way_does_not_touch_a_replayed_one_that_has_ended_too(ledger: Engine) -> None:
    end(ledger, Status.EXHAUSTED, Verdict.UNKNOWN)
    with ledger.begin() as connection:
        connection.execute(update(cancellations).values(confirm_at=datetime(2001, 1, 1, tzinfo=UTC)))
    with ledger.begin() as connection:
        (stale,) = claims.claim_read_backs(connection, 60, 10)
    replay(ledger)
    with ledger.begin() as connection:
        expired = Move(status=Status.EXPIRED, attempts=0, reason="for_a_test", verdict=Verdict.UNKNOWN)
        assert {ID} == apply_unsent(connection, [(ID, expired)])
    found = Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None)
    with ledger.begin() as connection:
        recorded = recording.record(connection, [Record(claim=stale, attempts=(), confirmation=found)])

    assert frozenset() == recorded.applied
    assert ("expired", "unknown") == (get(ledger).status, get(ledger).verdict)


def test_a_dead_letter_is_kept_after_it_was_requeued(ledger: Engine) -> None:
    letter = DeadLetter(source="inbox", entry_id="1-1", raw=b"\x00\xff", reason="not_json", error="It is not JSON.")
    with ledger.begin() as connection:
        accepting.bury(connection, [letter])
    with ledger.connect() as connection:
        (kept,) = dead_letters.find(connection)
    with ledger.begin() as connection:
        dead_letters.note_requeued(connection, kept.id)
    with ledger.connect() as connection:
        assert [] == dead_letters.find(connection)
        (again,) = dead_letters.find(connection, requeued=True)

    assert (b"\x00\xff", "not_json", None) == (again.raw, again.reason, kept.requeued_at)
    assert again.requeued_at is not None
    with pytest.raises(dead_letters.UnknownLetterError, match="no dead letter 99"), ledger.connect() as connection:
        dead_letters.get(connection, 99)
