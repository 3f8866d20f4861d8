"""What a person may change: take a job back, run an ended one again, send a dead letter again. On both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, update

from worker.cancellation.lifecycle import Transition
from worker.cancellation.policy import Policy
from worker.cancellation.proof import Confirmation
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.errors import TooLateError, UnknownCancellationError
from worker.ledger import claims, dead_letters, queries, results, transitions
from worker.ledger.dead_letters import DeadLetter
from worker.ledger.results import AttemptResult, CommitSummary, ConfirmResult
from worker.ledger.schema import cancellations, events
from worker.ledger.transitions import end_unsent

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.ledger.claims import AttemptClaim
    from worker.ledger.record import Cancellation

c = cancellations.c
NO_REFUND = ~events.c.type.startswith("refund.")  # which `test_refunds.py` is about
REQUEST = CancelRequest(
    connection_id="shop-1", order_id="o-1", send_by=datetime.now(UTC) + timedelta(hours=1), reason="changed my mind"
)
ID = REQUEST.record_id

pytestmark = pytest.mark.usefixtures("shop")


def get(ledger: Engine) -> Cancellation:
    with ledger.connect() as db:
        found = queries.get(db, ID)
    assert found is not None
    return found


def claim(ledger: Engine) -> AttemptClaim:
    with ledger.begin() as db:
        (claimed,) = transitions.claim_next(db, {"shop-1": 1}, "w-1", 60)["shop-1"]
    return claimed


def accept(ledger: Engine) -> None:
    with ledger.begin() as db:
        transitions.accept(db, [REQUEST])


def write(ledger: Engine, claimed: AttemptClaim, transition: Transition) -> CommitSummary:
    """Write what came of a claim, without its requests."""
    with ledger.begin() as db:
        return results.commit_results(db, [AttemptResult(claim=claimed, attempts=(), transition=transition)])


def end(ledger: Engine, status: Status, verdict: Verdict, evidence: Evidence | None = None) -> AttemptClaim:
    """Accept it, claim it, and let it end so."""
    accept(ledger)
    claimed = claim(ledger)
    write(
        ledger,
        claimed,
        Transition(status=status, attempts=1, reason="for_a_test", verdict=verdict, evidence=evidence),
    )
    return claimed


def wait_for_a_retry(ledger: Engine, verdict: Verdict | None) -> None:
    """Accept it, claim it, and let it wait."""
    accept(ledger)
    run_at = datetime.now(UTC) + timedelta(hours=1)
    retry = Transition(status=Status.WAITING, attempts=1, reason="for_a_test", verdict=verdict, run_at=run_at)
    write(ledger, claim(ledger), retry)


def replay(ledger: Engine, *ids: str, **options: Any) -> set[str]:
    with ledger.begin() as db:
        return transitions.replay(db, ids or [ID], **options)


def told(ledger: Engine) -> list[str]:
    with ledger.connect() as db:
        return list(db.execute(select(events.c.type).where(NO_REFUND).order_by(events.c.id)).scalars())


# -- withdraw


def withdraw(ledger: Engine, record_id: str = ID) -> None:
    with ledger.begin() as db:
        transitions.withdraw(db, record_id, Policy())


def given_back(ledger: Engine) -> None:
    claimed = claim(ledger)
    with ledger.begin() as db:
        assert ["shop-1"] == transitions.release_unsent(db, [claimed.lease])


def queued_by_the_release_before(ledger: Engine) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(status="queued", lease_owner="w-0", lease_expires_at=soon))


def as_accepted(_: Engine) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize("happens", [as_accepted, given_back, queued_by_the_release_before])
def test_what_was_not_sent_can_be_withdrawn(ledger: Engine, happens: Callable[[Engine], None]) -> None:
    accept(ledger)
    happens(ledger)
    withdraw(ledger)

    found = get(ledger)
    assert ("withdrawn", "not_cancelled", "never_sent") == (found.status, found.verdict, found.evidence)
    with ledger.begin() as db:
        assert {} == transitions.claim_next(db, {"shop-1": 1}, "w-1", 60)
    assert ["cancellation.ended"] == told(ledger)


def test_what_could_not_be_sent_can_be_withdrawn(ledger: Engine) -> None:
    wait_for_a_retry(ledger, None)
    withdraw(ledger)

    assert "withdrawn" == get(ledger).status


def in_flight(ledger: Engine) -> None:
    accept(ledger)
    claim(ledger)


def in_doubt(ledger: Engine) -> None:
    wait_for_a_retry(ledger, Verdict.UNKNOWN)


def accepted_by_trackstar(ledger: Engine) -> None:
    end(ledger, Status.SUCCEEDED, Verdict.ACCEPTED, Evidence.RESPONSE)


@pytest.mark.parametrize("happens", [in_flight, in_doubt, accepted_by_trackstar])
def test_what_may_have_landed_can_not_be_withdrawn(ledger: Engine, happens: Callable[[Engine], None]) -> None:
    happens(ledger)
    before = get(ledger)

    with pytest.raises(TooLateError, match=ID):
        withdraw(ledger)
    assert before == get(ledger)


@pytest.mark.parametrize("record_id", ["00000000-0000-5000-8000-000000000000", "no id at all"])
def test_an_unknown_id_can_not_be_withdrawn(ledger: Engine, record_id: str) -> None:
    with pytest.raises(UnknownCancellationError, match=record_id):
        withdraw(ledger, record_id)


# -- replay


@pytest.mark.parametrize(
    ("status", "verdict", "kept"),
    [
        (Status.REJECTED, Verdict.NOT_CANCELLED, None),
        (Status.EXHAUSTED, Verdict.UNKNOWN, Verdict.UNKNOWN),
        (Status.EXPIRED, Verdict.UNKNOWN, Verdict.UNKNOWN),
        (Status.SUCCEEDED, Verdict.ACCEPTED, Verdict.ACCEPTED),
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
    assert REQUEST.reason == again.reason

    after = claim(ledger)
    assert (ID, f"{ID}-2") == (before.request_key, after.request_key)


def test_what_is_proven_cancelled_is_not_replayed(ledger: Engine) -> None:
    end(ledger, Status.SUCCEEDED, Verdict.CANCELLED, Evidence.RESPONSE)
    before = get(ledger)

    assert set() == replay(ledger)
    assert before == get(ledger)


def test_what_has_not_ended_is_not_replayed(ledger: Engine) -> None:
    accept(ledger)

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
    late = Transition(status=Status.SUCCEEDED, attempts=1, reason="for_a_test", verdict=Verdict.CANCELLED)

    assert frozenset() == write(ledger, stale, late).applied
    assert "in_flight" == get(ledger).status
    assert stale.lease.token < current.lease.token


def test_the_timeline_shows_both_generations(ledger: Engine) -> None:
    end(ledger, Status.REJECTED, Verdict.NOT_CANCELLED)
    replay(ledger)

    assert ["cancellation.ended", "cancellation.replayed"] == told(ledger)


def test_a_read_back_that_was_due_does_not_touch_a_replayed_one(ledger: Engine) -> None:
    end(ledger, Status.SUCCEEDED, Verdict.ACCEPTED)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(confirm_at=datetime(2001, 1, 1, tzinfo=UTC)))
    replay(ledger)
    with ledger.begin() as db:
        assert [] == claims.claim_read_backs(db, 60, 10)


def test_a_read_back_under_way_does_not_touch_a_replayed_one_that_has_ended_too(ledger: Engine) -> None:
    end(ledger, Status.EXHAUSTED, Verdict.UNKNOWN)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(confirm_at=datetime(2001, 1, 1, tzinfo=UTC)))
    with ledger.begin() as db:
        (stale,) = claims.claim_read_backs(db, 60, 10)
    replay(ledger)
    with ledger.begin() as db:
        expired = Transition(status=Status.EXPIRED, attempts=0, reason="for_a_test", verdict=Verdict.UNKNOWN)
        assert {ID} == end_unsent(db, [(ID, expired)])
    found = Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.READ_BACK, confirm_at=None)
    with ledger.begin() as db:
        summary = results.commit_results(db, [ConfirmResult(claim=stale, attempts=(), confirmation=found)])

    assert frozenset() == summary.applied
    assert ("expired", "unknown") == (get(ledger).status, get(ledger).verdict)


# -- dead letters


def test_a_dead_letter_is_kept_after_it_was_requeued(ledger: Engine) -> None:
    letter = DeadLetter(source="inbox", entry_id="1-1", raw=b"\x00\xff", reason="not_json", error="It is not JSON.")
    with ledger.begin() as db:
        dead_letters.insert_dead_letters(db, [letter])
    with ledger.connect() as db:
        (kept,) = dead_letters.find(db)
    with ledger.begin() as db:
        dead_letters.note_requeued(db, kept.id)
    with ledger.connect() as db:
        assert [] == dead_letters.find(db)
        (again,) = dead_letters.find(db, requeued=True)

    assert (b"\x00\xff", "not_json", None) == (again.raw, again.reason, kept.requeued_at)
    assert again.requeued_at is not None
    with pytest.raises(dead_letters.UnknownDeadLetterError, match="no dead letter 99"), ledger.connect() as db:
        dead_letters.get(db, 99)
