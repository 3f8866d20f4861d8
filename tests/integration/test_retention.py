"""What is forgotten after its time, and what of one order is erased at once, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, func, insert, select, update

from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger import redaction, retention
from worker.ledger.retention import Place
from worker.ledger.schema import attempts, cancellations, dead_letters, documents, events

if TYPE_CHECKING:
    from sqlalchemy import Table

pytestmark = pytest.mark.usefixtures("shop")

c = cancellations.c
NOW = datetime.now(UTC)
DAY = 86_400.0
OLD, YOUNG = NOW - timedelta(days=400), NOW - timedelta(days=300)
KEPT = 365 * DAY


def put(ledger: Engine, order_id: str, *, told: bool = True, **changes: Any) -> str:
    """Put a cancellation that ended long ago with a proof, and all that belongs to it; return its id."""
    request = CancelRequest(connection_id="shop-1", order_id=order_id)
    row = {
        "id": request.record_id,
        "connection_id": "shop-1",
        "order_id": order_id,
        "idempotency_key": request.intent_key,
        "priority": "normal",
        "requested_at": OLD,
        "received_at": OLD,
        "ended_at": OLD,
        "status": Status.SUCCEEDED,
        "verdict": Verdict.CANCELLED,
        "evidence": Evidence.RESPONSE,
        "requested_by": "somebody",
        "reason": "moved away",
        "outcome_message": "in their words",
        "metadata": {"ticket": 1},
        **changes,
    }
    tried = {"cancellation_id": request.record_id, "number": 1, "kind": "cancel", "generation": 1, "started_at": OLD}
    event = {"cancellation_id": request.record_id, "type": "cancellation.ended", "payload": "{}", "created_at": OLD}
    with ledger.begin() as db:
        db.execute(insert(cancellations).values(row))
        db.execute(insert(attempts).values({**tried, "reason": "http_400", "error": "theirs", "replayed": False}))
        db.execute(insert(events).values({**event, "publish_at": None if told else NOW}))
        kept = {"cancellation_id": request.record_id, "order_snapshot": "{}", "kept_at": row["ended_at"] or OLD}
        db.execute(insert(documents).values(kept))
    return request.record_id


def counts(ledger: Engine, *tables: Table) -> list[int]:
    with ledger.connect() as db:
        return [db.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]


def left(ledger: Engine) -> set[str]:
    with ledger.connect() as db:
        return {str(row.id) for row in db.execute(select(c.id))}


def prune(ledger: Engine, limit: int = 200) -> int:
    done, after = 0, None
    while True:
        with ledger.begin() as db:
            pruned = retention.prune_facts(db, KEPT, after, limit)
        done, after = done + pruned.count, pruned.after
        if after is None:
            return done


UNDECIDED = {
    "unknown": {"status": Status.EXHAUSTED, "verdict": Verdict.UNKNOWN, "evidence": None},
    "accepted": {"verdict": Verdict.ACCEPTED},
    "waits": {"status": Status.PENDING, "verdict": None, "evidence": None, "ended_at": None},
    "ended lately": {"ended_at": YOUNG},
    "came lately": {"received_at": YOUNG, "ended_at": YOUNG},
    "not told yet": {"told": False},
}


def test_what_has_ended_with_a_proof_goes_after_its_time_with_all_that_belongs_to_it(ledger: Engine) -> None:
    for order_id in ("o-1", "o-2"):
        put(ledger, order_id)

    assert 2 == prune(ledger)
    assert [0, 0, 0, 0] == counts(ledger, cancellations, attempts, events, documents)


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_what_is_undecided_young_or_not_told_stays_however_small_the_batches_are(ledger: Engine, limit: int) -> None:
    kept = {put(ledger, name, **changes) for name, changes in UNDECIDED.items()}
    for number in range(3):
        put(ledger, f"o-{number}")
    with ledger.connect() as db:
        assert 3 == retention.count_facts(db, KEPT)

    assert 3 == prune(ledger, limit)
    assert kept == left(ledger)
    assert [len(kept)] * 3 == counts(ledger, attempts, events, documents)


def test_it_goes_on_behind_what_was_looked_at(ledger: Engine) -> None:
    ids = sorted(put(ledger, f"o-{number}", **UNDECIDED["unknown"]) for number in range(3))
    with ledger.begin() as db:
        pruned = retention.prune_facts(db, KEPT, None, 2)

    assert (0, Place(OLD, ids[1])) == (pruned.count, pruned.after)


def test_documents_go_by_the_time_since_when_they_are_kept(ledger: Engine) -> None:
    put(ledger, "o-1", **UNDECIDED["unknown"])
    young = put(ledger, "o-2", ended_at=YOUNG)
    with ledger.begin() as db:
        assert [1, 0] == [retention.prune_documents(db, KEPT) for _ in range(2)]
        assert [young] == [str(row.cancellation_id) for row in db.execute(select(documents.c.cancellation_id))]

    assert [2] == counts(ledger, cancellations)


def test_dead_letters_go_after_their_time(ledger: Engine) -> None:
    letter = {"source": "s", "raw": b"x", "reason": "not_json", "error": "e"}
    with ledger.begin() as db:
        for received_at in (OLD, OLD, YOUNG):
            db.execute(insert(dead_letters).values({**letter, "received_at": received_at}))
        assert [1, 1, 0] == [retention.prune_dead_letters(db, KEPT, 1) for _ in range(3)]

    assert [1] == counts(ledger, dead_letters)


def test_what_is_personal_of_one_order_is_erased_and_what_is_known_stays(ledger: Engine) -> None:
    record_id, other = put(ledger, "o-1"), put(ledger, "o-2")
    with ledger.begin() as db:
        db.execute(update(cancellations).values(order_snapshot="{}", unused_fields="[]"))
        before = db.execute(select(cancellations).where(c.id == other)).one()
        assert {record_id} == redaction.redact(db, [record_id]).ids
        found = db.execute(select(cancellations).where(c.id == record_id)).one()
        errors = dict(db.execute(select(attempts.c.cancellation_id, attempts.c.error)).all())
        kept = {str(row.cancellation_id) for row in db.execute(select(documents.c.cancellation_id))}
        assert before == db.execute(select(cancellations).where(c.id == other)).one()

    personal = (found.requested_by, found.reason, found.metadata, found.outcome_message, found.order_snapshot)
    assert (None,) * 6 == (*personal, found.unused_fields)
    assert ("o-1", Status.SUCCEEDED, Verdict.CANCELLED, Evidence.RESPONSE, OLD) == (
        found.order_id, found.status, found.verdict, found.evidence, found.ended_at,
    )  # fmt: skip
    assert {record_id: None, other: "theirs"} == {str(each): error for each, error in errors.items()}
    assert {other} == kept
