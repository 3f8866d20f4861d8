"""What a person changes on a cancellation that waits for its turn, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import UNSET, json
from sqlalchemy import Engine, insert, select

from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Status, Verdict
from worker.ledger import transitions
from worker.ledger.changes import Change, change
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from sqlalchemy import Row

pytestmark = pytest.mark.usefixtures("shop")

c = cancellations.c
NOW = datetime.now(UTC)
SOON, LATER = NOW + timedelta(hours=1), NOW + timedelta(hours=2)


def put(ledger: Engine, order_id: str, **changes: Any) -> str:
    request = CancelRequest(connection_id="shop-1", order_id=order_id)
    row = {
        "id": request.record_id,
        "connection_id": "shop-1",
        "order_id": order_id,
        "idempotency_key": request.intent_key,
        "priority": "normal",
        "requested_at": NOW,
        "received_at": NOW,
        "status": Status.PENDING,
        "send_by": SOON,
        "warned_at": NOW,
        **changes,
    }
    with ledger.begin() as db:
        db.execute(insert(cancellations).values(row))
    return request.record_id


def ask(ledger: Engine, *ids: str, **wish: Any) -> set[str]:
    with ledger.begin() as db:
        return change(db, ids, Change(**wish))


def row(ledger: Engine, record_id: str) -> Row[Any]:
    with ledger.connect() as db:
        return db.execute(select(cancellations).where(c.id == record_id)).one()


def turns(ledger: Engine) -> list[str]:
    with ledger.begin() as db:
        return [claim.order_id for claim in transitions.claim_next(db, {"shop-1": 10}, "w-1", 60)["shop-1"]]


def test_what_becomes_urgent_takes_its_place_in_the_turn(ledger: Engine) -> None:
    put(ledger, "o-1")
    last = put(ledger, "o-2", requested_at=NOW + timedelta(seconds=1))

    assert {last} == ask(ledger, last, priority="urgent")
    assert ["o-2", "o-1"] == turns(ledger)


@pytest.mark.parametrize("send_by", [LATER, None])
def test_a_new_send_by_is_judged_anew(ledger: Engine, send_by: datetime | None) -> None:
    record_id = put(ledger, "o-1")
    ask(ledger, record_id, send_by=send_by)

    assert (send_by, None) == (row(ledger, record_id).send_by, row(ledger, record_id).warned_at)


def test_what_is_left_out_stays(ledger: Engine) -> None:
    record_id = put(ledger, "o-1", priority="bulk")
    ask(ledger, record_id, send_by=UNSET, now=True)

    found = row(ledger, record_id)
    assert ("bulk", SOON, NOW, None) == (found.priority, found.send_by, found.warned_at, found.run_at)


def test_what_waits_for_a_retry_is_tried_now(ledger: Engine) -> None:
    record_id = put(ledger, "o-1", status=Status.WAITING, run_at=LATER)
    ask(ledger, record_id, now=True)
    with ledger.begin() as db:
        assert ["shop-1"] == transitions.promote_due(db, 10)


@pytest.mark.parametrize(
    "stands",
    [
        {"status": Status.IN_FLIGHT, "lease_owner": "w-1", "lease_expires_at": SOON},
        {"status": Status.SUCCEEDED, "ended_at": NOW, "verdict": Verdict.CANCELLED},
    ],
    ids=["under way", "ended"],
)
def test_what_is_under_way_or_has_ended_is_not_changed_and_nothing_is_told(
    ledger: Engine, stands: dict[str, Any]
) -> None:
    record_id = put(ledger, "o-1", **stands)
    before = row(ledger, record_id)

    assert set() == ask(ledger, record_id, "nonsense", priority="urgent", send_by=None, now=True)
    assert before == row(ledger, record_id)
    with ledger.connect() as db:
        assert [] == db.execute(select(events)).all()


def test_each_change_is_told_with_what_stands_then(ledger: Engine) -> None:
    record_id = put(ledger, "o-1")
    ask(ledger, record_id, priority="urgent", send_by=None)
    with ledger.connect() as db:
        (event,) = db.execute(select(events.c.type, events.c.payload)).all()

    assert "cancellation.changed" == event.type
    told = {
        "id": record_id,
        "connection_id": "shop-1",
        "order_id": "o-1",
        "generation": 1,
        "status": "pending",
        **dict.fromkeys(("verdict", "evidence", "as_of", "known_by", "needs_person", "reason")),
        "safe_to_refund": "not yet",
        "priority": "urgent",
        "send_by": None,
        "now": False,
    }
    assert told == json.decode(event.payload)
