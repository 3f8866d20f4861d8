"""What is learnt after the end is written once, told once, and where it is still as it was; the status stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import json, structs
from sqlalchemy import Engine, insert, select, update

from worker.cancellation.answer import Order
from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.lifecycle import Moment, decide
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.policy import Policy
from worker.cancellation.proof import Confirmation, NeedsPerson, Prospect, Unproven, confirm
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, Evidence, Status, Verdict
from worker.ledger import transitions
from worker.ledger.claims import CLAIM_COLUMNS, ConfirmClaim, claim_read_backs, confirm_claim
from worker.ledger.confirmations import apply_confirmations
from worker.ledger.dialects import db_now
from worker.ledger.rereads import adopt, read_soon, revise, send_soon, watched_orders
from worker.ledger.results import ConfirmResult, commit_results
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from sqlalchemy import Row

pytestmark = pytest.mark.usefixtures("shop")

c = cancellations.c
NO_REFUND = ~events.c.type.startswith("refund.")  # which `test_refunds.py` is about
NOW = datetime.now(UTC)
ENDED = NOW - timedelta(hours=2)
SOON, LATER, MUCH_LATER = (NOW + timedelta(hours=hours) for hours in (1, 2, 3))
RAISED, CONTRADICTED = "cancellation.verdict_raised", "cancellation.contradicted"
NEEDS, MOVED = "cancellation.needs_person", "cancellation.known_by_moved"


def put(ledger: Engine, order_id: str = "o-1", key: str = "k", **changes: Any) -> str:
    """Put one cancellation that has ended without proof and waits for a crawl; return its id."""
    request = CancelRequest(connection_id="shop-1", order_id=order_id, idempotency_key=f"{order_id}-{key}")
    row = {
        "id": request.record_id,
        "connection_id": "shop-1",
        "order_id": order_id,
        "idempotency_key": request.intent_key,
        "priority": "normal",
        "requested_at": ENDED,
        "received_at": ENDED,
        "status": Status.REJECTED,
        "claims": 1,
        "attempts": 1,
        "ended_at": ENDED,
        "verdict": Verdict.UNKNOWN,
        "confirm_at": SOON,
        "known_by": SOON,
        **changes,
    }
    if row["status"] not in FINAL:
        row |= {"ended_at": None, "verdict": None, "confirm_at": None} | changes
    with ledger.begin() as db:
        db.execute(insert(cancellations).values(row))
    return request.record_id


def row(ledger: Engine, record_id: str) -> Row[Any]:
    with ledger.connect() as db:
        return db.execute(select(cancellations).where(c.id == record_id)).one()


def claim_of(ledger: Engine, record_id: str) -> ConfirmClaim:
    with ledger.connect() as db:
        return confirm_claim(db.execute(select(*CLAIM_COLUMNS).where(c.id == record_id)).one())


def found(verdict: Verdict = Verdict.UNKNOWN, **fields: Any) -> Confirmation:
    evidence = Evidence.READ_BACK if verdict in {Verdict.CANCELLED, Verdict.NOT_CANCELLED} else None
    return Confirmation(**{"verdict": verdict, "evidence": evidence} | fields)


def write(ledger: Engine, claim: ConfirmClaim, confirmation: Confirmation, **told: str) -> set[str]:
    with ledger.begin() as db:
        return {record_id for record_id, _ in apply_confirmations(db, [(claim, confirmation)], **told)}


def step(ledger: Engine, record_id: str, confirmation: Confirmation) -> None:
    """Write what was found of a row as it stands now."""
    assert {record_id} == write(ledger, claim_of(ledger, record_id), confirmation)


def told(ledger: Engine) -> list[tuple[str, dict[str, Any]]]:
    with ledger.connect() as db:
        rows = db.execute(select(events.c.type, events.c.payload).where(NO_REFUND).order_by(events.c.id)).all()
    return [(each.type, json.decode(each.payload)) for each in rows]


def kinds(ledger: Engine) -> list[str]:
    return [kind for kind, _ in told(ledger)]


PROVEN = found(
    Verdict.CANCELLED, as_of=NOW, order=Order(id="o-1", status="cancelled", shipped=False, document='{"a":1}')
)

# ---- what a read has found


def test_what_fits_the_row_is_written_though_an_older_read_comes_in_the_same_batch(ledger: Engine) -> None:
    record_id = put(ledger)
    older = ConfirmResult(claim=claim_of(ledger, record_id), attempts=(), confirmation=PROVEN)
    step(ledger, record_id, PROVEN)
    left = found(Verdict.NOT_CANCELLED, contradicted=True)
    newer = ConfirmResult(claim=claim_of(ledger, record_id), attempts=(), confirmation=left)

    with ledger.begin() as db:
        summary = commit_results(db, [older, newer, older])

    assert {record_id} == summary.applied
    assert "not_cancelled" == row(ledger, record_id).verdict
    assert [RAISED, "cancellation.contradicted"] == kinds(ledger)


def test_a_proof_is_written_with_its_instant_and_told_with_it(ledger: Engine) -> None:
    record_id = put(ledger)

    assert {record_id} == write(ledger, claim_of(ledger, record_id), PROVEN)
    after = row(ledger, record_id)
    assert ("rejected", "cancelled", "read_back", NOW, None, None, None) == (
        after.status, after.verdict, after.evidence, after.as_of, after.confirm_at, after.known_by, after.needs_person,
    )  # fmt: skip
    assert ("cancelled", None) == (after.order_status, after.order_snapshot)
    ((kind, payload),) = told(ledger)
    assert RAISED == kind
    assert {
        "id": record_id,
        "connection_id": "shop-1",
        "order_id": "o-1",
        "generation": 1,
        "status": "rejected",
        "verdict": "cancelled",
        "evidence": "read_back",
        "safe_to_refund": "yes",
        "as_of": NOW.isoformat(),
        "known_by": None,
        "needs_person": None,
        "reason": row(ledger, record_id).outcome_reason,
    } == payload


def test_what_a_read_did_not_show_is_kept_as_it_was(ledger: Engine) -> None:
    record_id = put(ledger, as_of=ENDED, order_status="open", order_snapshot="{}")
    step(ledger, record_id, found(confirm_at=SOON, known_by=SOON))

    after = row(ledger, record_id)
    assert (ENDED, "open", "{}") == (after.as_of, after.order_status, after.order_snapshot)
    assert [] == kinds(ledger)


def test_goods_that_left_contradict_a_proof_and_are_told_as_that(ledger: Engine) -> None:
    record_id = put(ledger, status=Status.SUCCEEDED, verdict=Verdict.CANCELLED, confirm_at=None, known_by=None)
    step(ledger, record_id, found(Verdict.NOT_CANCELLED, as_of=NOW, contradicted=True))

    assert [CONTRADICTED] == kinds(ledger)
    assert ("succeeded", "not_cancelled") == (row(ledger, record_id).status, row(ledger, record_id).verdict)


def test_who_settled_it_and_why_is_told_where_it_was_a_person(ledger: Engine) -> None:
    record_id = put(ledger)
    claim = claim_of(ledger, record_id)
    person = Confirmation(verdict=Verdict.CANCELLED, evidence=Evidence.PERSON, as_of=NOW)

    write(ledger, claim, person, by="ops", note="seen in the warehouse")

    ((kind, payload),) = told(ledger)
    assert (RAISED, "person", "ops", "seen in the warehouse") == (
        kind, payload["evidence"], payload["by"], payload["note"],
    )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"claims": 2}, id="another has claimed it since"),
        pytest.param({"verdict": "not_cancelled"}, id="another has proven it since"),
        pytest.param({"ended_at": None, "confirm_at": None, "status": "pending"}, id="it runs again"),
    ],
)
def test_what_was_found_of_another_state_changes_nothing_and_tells_nothing(
    ledger: Engine, changed: dict[str, Any]
) -> None:
    record_id = put(ledger)
    claim = claim_of(ledger, record_id)
    with ledger.begin() as db:
        db.execute(update(cancellations).values(changed))
    before = row(ledger, record_id)

    assert set() == write(ledger, claim, PROVEN)
    assert (before, []) == (row(ledger, record_id), kinds(ledger))


def test_what_is_written_twice_is_told_once(ledger: Engine) -> None:
    proven, asked = put(ledger), put(ledger, "o-2")
    news = [
        (claim_of(ledger, proven), PROVEN),
        (claim_of(ledger, asked), found(needs_person=NeedsPerson.ORDER_NOT_IN_COPY)),
    ]
    for _ in range(2):
        with ledger.begin() as db:
            apply_confirmations(db, news)

    assert [NEEDS, RAISED] == sorted(kinds(ledger))


# ---- a person


def test_a_person_is_asked_once_although_crawls_fail_and_come_back(ledger: Engine) -> None:
    record_id = put(ledger)
    failing = found(needs_person=NeedsPerson.CRAWLS_FAILING)
    for _ in range(3):
        step(ledger, record_id, failing)
        step(ledger, record_id, found(confirm_at=SOON, known_by=SOON))
    step(ledger, record_id, found(needs_person=NeedsPerson.ORDER_NOT_IN_COPY))

    ((kind, payload),) = told(ledger)
    assert (NEEDS, "crawls_failing", "not yet", None) == (
        kind, payload["needs_person"], payload["safe_to_refund"], payload["known_by"],
    )  # fmt: skip
    assert "order_not_in_copy" == row(ledger, record_id).needs_person


def test_a_person_is_asked_again_of_what_was_run_again(ledger: Engine) -> None:
    record_id = put(ledger)
    step(ledger, record_id, found(needs_person=NeedsPerson.CRAWLS_FAILING))
    with ledger.begin() as db:
        db.execute(update(cancellations).values(generation=2, needs_person=None, known_by=SOON))
    step(ledger, record_id, found(needs_person=NeedsPerson.CRAWLS_FAILING))

    assert [1, 2] == [payload["generation"] for _, payload in told(ledger)]


# ---- a date


@pytest.mark.parametrize(
    ("expected", "before", "after"),
    [
        pytest.param([MOVED], SOON, LATER, id="later"),
        pytest.param([], LATER, SOON, id="sooner"),
        pytest.param([], SOON, SOON, id="the same"),
        pytest.param([], None, SOON, id="it had none"),
    ],
)
def test_it_is_told_when_something_is_known_later_than_it_was_told(
    ledger: Engine, expected: list[str], before: datetime | None, after: datetime
) -> None:
    record_id = put(ledger, known_by=before)
    step(ledger, record_id, found(confirm_at=SOON, known_by=after))

    assert (after, expected) == (row(ledger, record_id).known_by, kinds(ledger))
    assert [after.isoformat()] * len(expected) == [payload["known_by"] for _, payload in told(ledger)]


# ---- it is said anew when, or by whom, it is known


def known_later(_known: Unproven) -> Prospect:
    return Prospect(SOON, LATER)


def revise_all(ledger: Engine, foresee: Any, limit: int) -> int:
    """Go through all, and return in how many statements."""
    after: str | None = ""
    pages = 0
    while after is not None:
        with ledger.begin() as db:
            after = revise(db, "shop-1", foresee, limit, after)
        pages += 1
    return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_everything_that_waits_for_a_crawl_is_said_anew_page_by_page(ledger: Engine, limit: int) -> None:
    # Two of one order: a page may end between them.
    ids = [put(ledger, f"o-{number}", key) for number in range(3) for key in ("a", "b")]
    seen: list[Unproven] = []

    def look(known: Unproven) -> Prospect:
        seen.append(known)
        return known_later(known)

    assert 6 // limit + 1 == revise_all(ledger, look, limit)
    assert 6 == len(seen)
    assert [LATER] * 6 == [row(ledger, each).known_by for each in ids]
    assert [MOVED] * 6 == kinds(ledger)


PASSES = {"known_by": None, "needs_person": NeedsPerson.CRAWLS_OVERDUE, "confirm_at": None}
LEFT_ALONE = {
    "proven": {"verdict": Verdict.NOT_CANCELLED, "known_by": None, "confirm_at": None},
    "for a person, whatever crawls do": PASSES | {"needs_person": NeedsPerson.ACCEPTED_BUT_OPEN},
    "not ended": {"status": Status.WAITING, "run_at": SOON},
}


@pytest.mark.parametrize("changes", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_no_crawl_changes_is_left_alone(ledger: Engine, changes: dict[str, Any]) -> None:
    record_id = put(ledger, **changes)
    before = row(ledger, record_id)

    revise_all(ledger, known_later, 100)

    assert (before, []) == (row(ledger, record_id), kinds(ledger))


def test_another_connections_orders_are_left_alone(ledger: Engine) -> None:
    record_id = put(ledger)
    with ledger.begin() as db:
        revise(db, "shop-2", known_later, 100)

    assert SOON == row(ledger, record_id).known_by


def test_what_a_person_was_asked_has_a_date_again_when_crawls_come_back(ledger: Engine) -> None:
    record_id = put(ledger, **PASSES)
    revise_all(ledger, known_later, 100)

    after = row(ledger, record_id)
    assert (SOON, LATER, None) == (after.confirm_at, after.known_by, after.needs_person)


def test_the_next_read_stays_where_it_was_and_it_is_not_written_where_nothing_is_new(ledger: Engine) -> None:
    moved, same = put(ledger, confirm_at=ENDED), put(ledger, "o-2", known_by=LATER, as_of=ENDED)
    revise_all(ledger, lambda _: Prospect(MUCH_LATER, LATER), 100)

    assert (ENDED, LATER) == (row(ledger, moved).confirm_at, row(ledger, moved).known_by)
    assert SOON == row(ledger, same).confirm_at
    assert 1 == len(told(ledger))


# ---- the second look, and what is brought forward


def test_what_changed_is_compared_with_what_may_be_proven_or_overturned(ledger: Engine) -> None:
    for verdict in Verdict:
        put(ledger, f"o-{verdict}", verdict=verdict)
    put(ledger, "o-waiting", status=Status.WAITING, run_at=SOON, verdict=Verdict.UNKNOWN)
    asked = [f"o-{each}" for each in (*Verdict, "waiting", "that is not ours")]
    with ledger.connect() as db:
        claims = watched_orders(db, "shop-1", asked)
        assert [] == watched_orders(db, "shop-2", asked)
        assert [] == watched_orders(db, "shop-1", [])

    assert ["o-accepted", "o-cancelled", "o-unknown"] == sorted(claim.order_id for claim in claims)
    assert {ENDED} == {claim.known.ended_at for claim in claims}


def test_what_waits_for_a_crawl_is_read_now_and_nothing_else_is(ledger: Engine) -> None:
    waits = {put(ledger), put(ledger, "o-2", **PASSES)}
    due = put(ledger, "o-3", confirm_at=ENDED)
    others = [put(ledger, f"o-{name}", **changes) for name, changes in LEFT_ALONE.items()]
    before = [row(ledger, each) for each in (due, *others)]
    with ledger.begin() as db:
        assert [2, 0] == [read_soon(db, "shop-1", 100) for _ in range(2)]
        assert 0 == read_soon(db, "shop-2", 100)
        now = db.execute(select(db_now())).scalar_one()

    assert before == [row(ledger, each) for each in (due, *others)]
    assert all(row(ledger, each).confirm_at <= now for each in waits)
    with ledger.begin() as db:
        assert waits | {due} == {claim.id for claim in claim_read_backs(db, 60, 100)}


OLD = {"confirm_at": None, "known_by": None}


def test_what_an_older_worker_left_without_date_or_person_is_read_now_and_nothing_else_is(ledger: Engine) -> None:
    left = {put(ledger, **OLD), put(ledger, "o-2", verdict=Verdict.ACCEPTED, **OLD)}
    changes = [
        {},
        OLD | {"needs_person": NeedsPerson.UNREADABLE},
        OLD | {"verdict": Verdict.CANCELLED, "evidence": Evidence.RESPONSE},
        OLD | {"status": Status.PENDING, "verdict": Verdict.UNKNOWN},
    ]
    others = [put(ledger, f"other-{number}", **each) for number, each in enumerate(changes)]
    before = [row(ledger, each) for each in others]
    with ledger.begin() as db:
        assert [2, 0] == [adopt(db) for _ in range(2)]

    assert before == [row(ledger, each) for each in others]
    with ledger.begin() as db:
        assert left == {claim.id for claim in claim_read_backs(db, 60, 100)}


NOT_FOUND_YET = {"status": Status.WAITING, "run_at": SOON, "outcome_reason": "order_not_found_yet"}


def test_what_waits_for_its_order_to_appear_is_sent_now_and_nothing_else_is(ledger: Engine) -> None:
    waits = put(ledger, **NOT_FOUND_YET)
    others = [put(ledger, "o-2", **NOT_FOUND_YET | {"known_by": None}), put(ledger, "o-3")]
    before = [row(ledger, each) for each in others]
    with ledger.begin() as db:
        assert [1, 0] == [send_soon(db, "shop-1", 100) for _ in range(2)]

    assert before == [row(ledger, each) for each in others]
    with ledger.begin() as db:
        assert ["shop-1"] == transitions.promote_due(db, 100)
    assert "pending" == row(ledger, waits).status


def test_no_more_are_brought_forward_at_a_time_than_asked_for(ledger: Engine) -> None:
    for number in range(5):
        put(ledger, f"o-{number}")
        put(ledger, f"w-{number}", **NOT_FOUND_YET)
    with ledger.begin() as db:
        assert [2, 2, 1, 0] == [read_soon(db, "shop-1", 2) for _ in range(4)]
        assert [2, 2, 1, 0] == [send_soon(db, "shop-1", 2) for _ in range(4)]


def test_nothing_that_is_learnt_after_the_end_changes_a_status(ledger: Engine) -> None:
    ids = [put(ledger, f"o-{status}", status=status, verdict=Verdict.UNKNOWN) for status in sorted(FINAL)]
    ids.append(put(ledger, "o-waits", **NOT_FOUND_YET))
    before = {each: row(ledger, each).status for each in ids}
    with ledger.begin() as db:
        read_soon(db, "shop-1", 100)
        send_soon(db, "shop-1", 100)
    revise_all(ledger, known_later, 100)
    for each in ids[:-1]:
        step(ledger, each, found(Verdict.NOT_CANCELLED, as_of=NOW))

    assert before == {each: row(ledger, each).status for each in ids}


# ---- from a refusal to its proof


def test_a_crawl_that_began_while_we_asked_is_not_counted_and_two_that_began_after_are_proof(ledger: Engine) -> None:
    request = CancelRequest(connection_id="shop-1", order_id="o-9")
    with ledger.begin() as db:
        transitions.accept(db, [request])
    with ledger.begin() as db:
        (sent,) = transitions.claim_next(db, {"shop-1": 1}, "w-1", 60)["shop-1"]
    refused = Outcome(kind=Kind.REFUSED, reason="refused_by_warehouse", read_first=True)
    opened = ReadBack(shows=OrderState.OPEN, reason="read_open")
    transition = decide(sent.state, refused, opened, Moment(now=sent.claimed_at, policy=Policy()))
    with ledger.begin() as db:
        transitions.apply_claimed(db, [(sent.lease, transition)])
    known = claim_of(ledger, request.record_id).known
    assert known.ended_at > sent.claimed_at >= sent.state.first_sent_at

    during = sent.claimed_at + (known.ended_at - sent.claimed_at) / 2
    after = [known.ended_at + timedelta(seconds=seconds) for seconds in (1, 2)]
    verdicts = [
        confirm(known, opened, now=after[1], crawls=crawls_that_began(*began), policy=Policy()).verdict
        for began in ([sent.claimed_at, during], [during, after[0]], after)
    ]
    assert [Verdict.UNKNOWN, Verdict.UNKNOWN, Verdict.NOT_CANCELLED] == verdicts


def crawls_that_began(before: datetime, latest: datetime) -> Crawls:
    crawls = Crawls(began_at=latest, frequency=3600.0, status=CrawlStatus.ENABLED, seen_at=latest)
    return structs.replace(crawls, before_began_at=before)
