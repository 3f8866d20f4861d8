"""What people look for is found by its numbers and by each filter, the newest first, in bounded stretches."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, insert, update

from worker.cancellation.answer import read_reply
from worker.cancellation.lifecycle import Moment, decide
from worker.cancellation.outcome import classify
from worker.cancellation.policy import Policy
from worker.cancellation.proof import Confirmation
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, SafeToRefund, Status, Verdict
from worker.errors import UnknownCancellationError
from worker.ledger import filters, holds, queries, results, transitions
from worker.ledger.claims import claim_read_backs
from worker.ledger.database import read_only
from worker.ledger.filters import Filter, Page
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.ledger.schema import cancellations

if TYPE_CHECKING:
    from worker.ledger.claims import AttemptClaim
    from worker.ledger.record import Cancellation

NOW = datetime.now(UTC).replace(microsecond=0)


def accept(ledger: Engine, order_id: str, connection_id: str = "shop-1", **fields: Any) -> str:
    request = CancelRequest(connection_id=connection_id, order_id=order_id, **fields)
    transitions.accept_batch(ledger, [request])
    return request.record_id


def put(ledger: Engine, order_id: str, *, hours: float = 0.0, **changes: Any) -> str:
    """Put a cancellation that was received so many hours ago, with whatever else is said of it; return its id."""
    record_id = accept(ledger, order_id, changes.pop("connection_id", "shop-1"))
    if changes.get("status") in FINAL:
        changes = {"ended_at": NOW, "verdict": Verdict.CANCELLED} | changes
    with ledger.begin() as db:
        row = {"received_at": NOW - timedelta(hours=hours), **changes}
        db.execute(update(cancellations).where(cancellations.c.id == record_id).values(row))
    return record_id


def found(ledger: Engine, limit: int = 50, **wanted: Any) -> list[str]:
    """Return the order ids of what a filter finds, in its order."""
    with read_only(ledger) as db:
        return [each.order_id for each in filters.find(db, Filter(**wanted), limit=limit)]


def get(ledger: Engine, record_id: str) -> Cancellation:
    with read_only(ledger) as db:
        known = queries.get(db, record_id)
    assert known
    return known


# ---- the OMS's own numbers


def claim(ledger: Engine) -> AttemptClaim:
    with ledger.begin() as db:
        return transitions.claim_next(db, {"shop-1": 1}, "w-1", 60.0)["shop-1"][0]


def answer(ledger: Engine, claimed: AttemptClaim, **order: Any) -> None:
    """Record Trackstar's yes, with this order in it."""
    body = {"data": {"id": claimed.order_id, "status": "open", **order}, "id": claimed.order_id}
    reply = read_reply(200, json.dumps(body).encode())
    moment = Moment(now=claimed.claimed_at, policy=Policy())
    decided = decide(claimed.state, classify(reply, claimed.order_id), None, moment)
    with ledger.begin() as db:
        results.commit_results(db, [AttemptResult(claim=claimed, attempts=(), transition=decided)])


def numbers(ledger: Engine, record_id: str) -> tuple[str | None, str | None]:
    known = get(ledger, record_id)
    return known.reference_id, known.order_number


def test_an_answer_fills_and_corrects_the_numbers_that_a_producer_stated(ledger: Engine, shop: str) -> None:
    record_id = accept(ledger, "o-1", shop, reference_id="mine", batch="monday")
    claimed = claim(ledger)

    assert ("mine", None) == numbers(ledger, record_id)
    answer(ledger, claimed, reference_id="REF-1", order_number="#1001")
    assert ("REF-1", "#1001") == numbers(ledger, record_id)
    assert "monday" == get(ledger, record_id).batch


@pytest.mark.parametrize("said", [{}, {"reference_id": None, "order_number": " "}, {"reference_id": ["x"]}])
def test_an_answer_without_numbers_leaves_what_the_producer_stated(
    ledger: Engine, shop: str, said: dict[str, Any]
) -> None:
    record_id = accept(ledger, "o-1", shop, reference_id="mine", order_number="1001")
    answer(ledger, claim(ledger), **said)

    assert ("mine", "1001") == numbers(ledger, record_id)


def test_a_read_back_fills_and_corrects_the_numbers(ledger: Engine, shop: str) -> None:
    record_id = accept(ledger, "o-1", shop, order_number="mine")
    answer(ledger, claim(ledger))
    with ledger.begin() as db:
        db.execute(update(cancellations).values(confirm_at=NOW - timedelta(hours=1)))
        (claimed,) = claim_read_backs(db, 60.0, 10)
        body = b'{"data": {"id": "o-1", "status": "cancelled", "reference_id": 7, "order_number": "N"}}'
        (order,) = read_reply(200, body).orders
        seen = Confirmation(verdict=Verdict.CANCELLED, evidence=None, order=order)
        results.commit_results(db, [ConfirmResult(claim=claimed, attempts=(), confirmation=seen)])

    assert ("7", "N") == numbers(ledger, record_id)


@pytest.mark.parametrize("typed", ["#1001a", "1001A", "#1001A", "1001a"])
@pytest.mark.parametrize("stored", ["#1001A", "1001a"])
@pytest.mark.parametrize("column", ["reference_id", "order_number"])
def test_a_number_is_found_without_case_and_with_or_without_its_hash(
    ledger: Engine, shop: str, column: str, stored: str, typed: str
) -> None:
    accept(ledger, "o-1", shop, **{column: stored})
    accept(ledger, "o-2", shop, **{column: f"{stored}1"})
    option = {"reference_id": "reference", "order_number": "order_number"}[column]

    assert ["o-1"] == found(ledger, name=typed)
    assert ["o-1"] == found(ledger, **{option: typed})
    assert [] == found(ledger, name=typed, connection_id="another")


def test_a_number_with_letters_that_a_database_may_not_know_is_found_in_one_case(ledger: Engine, shop: str) -> None:
    accept(ledger, "o-1", shop, reference_id="ÄRGER-1")

    assert ["o-1"] == found(ledger, reference="ärger-1")


def test_a_name_that_means_several_finds_all_of_them_the_newest_first(ledger: Engine, shop: str) -> None:
    put(ledger, "1001", hours=3)
    put(ledger, "b", hours=1, order_number="#1001")
    put(ledger, "c", hours=2, reference_id="1001")
    put(ledger, "d", hours=4, connection_id="shop-2", order_number="1001", reference_id="1001")
    put(ledger, "e", order_number="10012")

    assert ["b", "c", "1001", "d"] == found(ledger, name="1001")
    assert ["b", "d"] == found(ledger, order_number="1001")
    assert ["d"] == found(ledger, order_number="1001", reference="1001")
    assert ["b"] == found(ledger, name="1001", limit=1)
    assert ["1001"] == found(ledger, order_id="1001")
    assert ["b", "c", "1001"] == found(ledger, name="1001", connection_id=shop)


# ---- each filter


@pytest.fixture
def some(ledger: Engine, shop: str) -> None:
    """Cancellations of every kind, each named for what it is, ten hours apart: a run of all tests is shorter."""
    kinds: dict[str, dict[str, Any]] = {
        "pending": {"requested_by": "oms", "metadata": {"team": "A", "vip": True, "n": 5, "a.b\"'$[": "x"}},
        "waiting": {"status": "waiting", "run_at": NOW, "verdict": "unknown", "batch": "monday"},
        "in_flight": {"status": "in_flight", "lease_owner": "w", "lease_expires_at": NOW, "claims": 1},
        "cancelled": {"status": "succeeded", "evidence": "response", "batch": "monday"},
        "accepted": {"status": "succeeded", "verdict": "accepted", "confirm_at": NOW},
        "refused": {"status": "rejected", "verdict": "not_cancelled", "outcome_reason": "not_supported"},
        "in_doubt": {"status": "exhausted", "verdict": "unknown", "needs_person": "crawls_disabled"},
        "left_open": {"status": "exhausted", "verdict": "unknown"},
        "withdrawn": {"status": "withdrawn", "verdict": "not_cancelled", "evidence": "never_sent"},
        "other": {"connection_id": "held", "metadata": {"team": "a", "vip": "yes", "n": 5.5}},
    }
    assert shop
    for place, (name, row) in enumerate(kinds.items()):
        put(ledger, name, hours=10 * place, **row)


OPEN = ["pending", "waiting", "in_flight"]
CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"status": (Status.PENDING,)}, ["pending", "other"]),
    ({"status": (Status.PENDING, Status.WAITING), "connection_id": "shop-1"}, ["pending", "waiting"]),
    ({"status": (Status.QUEUED, Status.IN_FLIGHT)}, ["in_flight"]),
    ({"status": (Status.SUCCEEDED, Status.WAITING)}, ["waiting", "cancelled", "accepted"]),
    ({"status": (Status.REJECTED, Status.WITHDRAWN)}, ["refused", "withdrawn"]),
    ({"verdict": ("unknown",)}, ["waiting", "in_doubt", "left_open"]),
    ({"verdict": ("cancelled", "accepted")}, ["cancelled", "accepted"]),
    ({"refund": SafeToRefund.YES}, ["cancelled"]),
    ({"refund": SafeToRefund.NO}, ["refused", "withdrawn"]),
    ({"refund": SafeToRefund.NOT_YET}, [*OPEN, "accepted", "in_doubt", "left_open", "other"]),
    ({"evidence": ("never_sent", "response")}, ["cancelled", "withdrawn"]),
    ({"reason": "not_supported"}, ["refused"]),
    ({"connection_id": "held"}, ["other"]),
    ({"requested_by": "oms"}, ["pending"]),
    ({"metadata": {"team": "A"}}, ["pending"]),
    ({"metadata": {"team": "A", "n": "5"}}, ["pending"]),
    ({"metadata": {"team": "A", "n": "6"}}, []),
    ({"metadata": {"vip": "true"}}, ["pending"]),
    ({"metadata": {"n": "5.5"}}, ["other"]),
    ({"metadata": {"a.b\"'$[": "x"}}, ["pending"]),
    ({"batch": "monday"}, ["waiting", "cancelled"]),
    ({"batch": "monday", "refund": SafeToRefund.YES}, ["cancelled"]),
    ({"needs_person": True}, ["in_doubt", "other"]),
    ({"needs_person": True, "connection_id": "held"}, ["other"]),
    ({"since": NOW - timedelta(hours=10)}, ["pending", "waiting"]),
    ({"until": NOW - timedelta(hours=70)}, ["withdrawn", "other"]),
    ({"older_than": 75 * 3600.0}, ["withdrawn", "other"]),
    ({"newer_than": 25 * 3600.0, "older_than": 5 * 3600.0}, ["waiting", "in_flight"]),
    ({"newer_than": 25 * 3600.0, "since": NOW - timedelta(hours=10)}, ["pending", "waiting"]),
]


@pytest.mark.usefixtures("some")
def test_each_filter_finds_what_it_says_and_nothing_else(ledger: Engine) -> None:
    with ledger.begin() as db:
        holds.hold_by_operator(db, "held")

    assert [wanted for _, wanted in CASES] == [found(ledger, **given) for given, _ in CASES]


@pytest.mark.usefixtures("some")
def test_every_filter_goes_on_where_it_has_ended_and_ends(ledger: Engine) -> None:
    for given, wanted in CASES:
        assert wanted == [each.order_id for page in pages(ledger, Filter(**given), limit=1) for each in page.found]


# ---- stretches


def pages(ledger: Engine, which: Filter, limit: int, **options: Any) -> list[Page]:
    made: list[Page] = []
    with read_only(ledger) as db:
        while not made or made[-1].after:
            made.append(filters.find_page(db, which, limit=limit, after=made[-1].after if made else None, **options))
            assert 100 > len(made)
    return made


@pytest.fixture
def many(ledger: Engine, shop: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Sixty that are alike but for every twentieth, three received at each instant; stretches of five, then ten."""
    monkeypatch.setattr(filters, "STRETCHES", (5, 10))
    row = {
        "connection_id": shop,
        "priority": "normal",
        "status": "succeeded",
        "verdict": "cancelled",
        "requested_at": NOW,
        "ended_at": NOW,
    }
    rows = [
        {
            "id": str(uuid.uuid4()),
            "order_id": str(n),
            "idempotency_key": str(n),
            "received_at": NOW - timedelta(seconds=n // 3),
            "requested_by": "rare" if n % 20 == 19 else "often",
            **row,
        }
        for n in range(60)
    ]
    with ledger.begin() as db:
        db.execute(insert(cancellations), rows)
    return ledger


def test_what_is_rare_is_found_however_far_it_is(many: Engine) -> None:
    assert ["19", "39", "59"] == found(many, requested_by="rare")
    assert 60 == len(set(found(many, limit=100)))
    assert 57 == len(set(found(many, limit=100, requested_by="often")))


@pytest.mark.parametrize("limit", [1, 2, 7, 60])
@pytest.mark.parametrize("look_at", [1, 20, None])
def test_page_by_page_each_is_found_once(many: Engine, limit: int, look_at: int | None) -> None:
    for who, count in (("rare", 3), ("often", 57)):
        made = pages(many, Filter(requested_by=who), limit, look_at=look_at)
        listed = [each.id for page in made for each in page.found]

        assert count == len(listed) == len(set(listed))


def test_a_page_that_was_given_up_says_how_far_it_has_looked(many: Engine) -> None:
    with read_only(many) as db:
        page = filters.find_page(db, Filter(requested_by="nobody"), look_at=15)
        last = queries.get(db, page.after or "")

    assert last
    assert ([], last.received_at) == (page.found, page.looked_back_to)
    # Five, and then ten, each with all that came at the instant of its last.
    assert NOW - timedelta(seconds=15 // 3) == page.looked_back_to


def test_no_statement_looks_beyond_a_stretch(many: Engine) -> None:
    """Among sixty it takes an end and a look for each stretch: of 6, 12, 12, 12, 12 with equal times, and the rest."""
    seen: list[str] = []
    with read_only(many) as db:
        event.listen(db, "before_cursor_execute", lambda _db, _cursor, said, *_: seen.append(said))
        filters.find(db, Filter(requested_by="nobody"))
    looks = [said for said in seen if "requested_by" in said.split("WHERE")[-1]]

    assert (12, 6) == (len(seen), len(looks))


def test_a_place_that_is_none_is_said(many: Engine) -> None:
    for name in (str(uuid.uuid4()), "no id"):
        with pytest.raises(UnknownCancellationError, match=name), read_only(many) as db:
            filters.find_page(db, after=name)


def test_an_empty_filter_is_known_as_such() -> None:
    assert filters.EVERYTHING == Filter()
    assert filters.EVERYTHING != Filter(batch="")
