"""Each statement that writes a status changes what it declares; together they are the table of transitions."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select

import worker.ledger
from worker.cancellation.lifecycle import Moment, State, Transition, decide, expire, give_up, must_read
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack
from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, TRANSITIONS, Evidence, Status, Verdict
from worker.errors import TooLateError
from worker.ledger import deadlines, transitions
from worker.ledger.claims import Lease
from worker.ledger.schema import cancellations
from worker.ledger.transitions import WRITES

c = cancellations.c
POLICY = Policy()
OWNER, TOKEN = "w-1", 2
NOW = datetime.now(UTC)
PAST, LONG_AGO = NOW - timedelta(minutes=1), NOW - timedelta(days=2)
LEASED = {Status.QUEUED, Status.IN_FLIGHT}

# A row in every status that is otherwise right for every statement: due, overdue, with its lease over, with the owner
# and the number of its claim. In which of these it is right differs from statement to statement, so there is each.
VARIANTS = list(product((None, PAST), (None, LONG_AGO), (None, Evidence.REFUSAL), (None, Verdict.UNKNOWN)))
REQUESTS = {
    (status, number): CancelRequest(connection_id="shop-1", order_id=f"{status}-{number}")
    for status in Status
    for number in range(len(VARIANTS))
}
IDS = [request.record_id for request in REQUESTS.values()]
LEASES = [Lease(record_id, OWNER, TOKEN) for record_id in IDS]


def row_of(status: Status, number: int) -> dict[str, Any]:
    request = REQUESTS[status, number]
    send_by, first_sent_at, evidence, verdict = VARIANTS[number]
    ended = status in FINAL
    return {
        "id": request.record_id,
        "connection_id": request.connection_id,
        "order_id": request.order_id,
        "idempotency_key": request.intent_key,
        "priority": request.priority,
        "requested_at": LONG_AGO,
        "received_at": LONG_AGO,
        "status": status,
        "claims": TOKEN,
        "attempts": 1,
        "lease_owner": OWNER,
        "lease_expires_at": PAST if status in LEASED else None,
        "run_at": PAST if status is Status.WAITING else None,
        "ended_at": PAST if ended else None,
        "send_by": send_by,
        "first_sent_at": first_sent_at,
        "evidence": evidence,
        "verdict": verdict or (Verdict.NOT_CANCELLED if ended else None),
    }


def decisions() -> list[Transition]:
    """One transition to each status that an answer can lead to."""
    found: dict[Status, Transition] = {}
    for since, send_by, verdict, evidence in product(
        (PAST, LONG_AGO), (None, NOW), (None, Verdict.UNKNOWN), (None, Evidence.REFUSAL)
    ):
        state = State(attempts=1, first_sent_at=since, send_by=send_by, verdict=verdict, evidence=evidence)
        for kind, shows in product(Kind, OrderState):
            outcome = Outcome(kind=kind, reason="for_a_test", read_first=True)
            read = ReadBack(shows=shows, reason="for_a_test") if must_read(state, outcome) else None
            decided = decide(state, outcome, read, Moment(now=NOW, jitter=0.5, policy=POLICY))
            found.setdefault(decided.status, decided)
    return list(found.values())


Work = Callable[[Connection], object]


def end_past_send_by(db: Connection) -> None:
    found = deadlines.past_send_by(db, 1000)
    transitions.end_unsent(db, [(row.id, expire(row.state, Moment(now=row.now, policy=POLICY))) for row in found])


def end_past_horizon(db: Connection) -> None:
    found = deadlines.past_retry_horizon(db, POLICY.retry_horizon, 1000)
    transitions.end_unsent(db, [(row.id, give_up(row.state, Moment(now=row.now, policy=POLICY))) for row in found])


def withdraw_each(db: Connection) -> None:
    for record_id in IDS:
        with suppress(TooLateError):
            transitions.withdraw(db, record_id, POLICY)


def expire_all_that_are_named(db: Connection) -> None:
    state = State(attempts=1, first_sent_at=PAST)
    expired = expire(state, Moment(now=NOW, policy=POLICY))
    transitions.end_unsent(db, [(record_id, expired) for record_id in IDS])


# Of each function that writes a status, all the ways in which it is called.
CALLS: dict[str, list[Work]] = {
    "accept": [lambda db: transitions.accept(db, list(REQUESTS.values()))],
    "claim_next": [
        lambda db: transitions.claim_next(db, {"shop-1": 1000}, "w-2", 60),
        lambda db: transitions.claim_next(db, {"shop-1": 1000}, "w-2", 60, probes=True),
        lambda db: transitions.claim_next(db, {"shop-1": 1000}, "w-2", 60, aged={"shop-1": 1000}),
    ],
    "release_unsent": [lambda db: transitions.release_unsent(db, LEASES)],
    "apply_claimed": [
        lambda db, decided=decided: transitions.apply_claimed(db, [(lease, decided) for lease in LEASES])
        for decided in decisions()
    ],
    "end_unsent": [end_past_send_by, end_past_horizon, withdraw_each, expire_all_that_are_named],
    "promote_due": [lambda db: transitions.promote_due(db, 1000)],
    "requeue_unclaimed": [lambda db: transitions.requeue_unclaimed(db, 1000)],
    "replay": [lambda db: transitions.replay(db, IDS)],
}


def statuses(db: Connection) -> dict[str, Status]:
    return {str(row.id): Status(row.status) for row in db.execute(select(c.id, c.status))}


def changes(ledger: Engine, work: Work) -> set[tuple[Status, Status]]:
    """From which status to which rows are led where there is one of every kind; nothing of it stays."""
    with ledger.connect() as db:
        db.execute(cancellations.insert(), [row_of(*each) for each in REQUESTS])
        before = statuses(db)
        work(db)
        after = statuses(db)
        db.rollback()
    assert before.keys() == after.keys()
    return {(before[each], after[each]) for each in before if before[each] != after[each]}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", CALLS)
def test_a_statement_changes_rows_from_and_to_the_statuses_that_it_declares(ledger: Engine, name: str) -> None:
    seen = {pair for work in CALLS[name] for pair in changes(ledger, work)}

    assert WRITES[name] == seen


def test_every_statement_that_declares_a_change_was_looked_at() -> None:
    assert WRITES.keys() == CALLS.keys()


def test_all_statements_together_are_the_table_of_transitions() -> None:
    legal = {(source, target) for source, targets in TRANSITIONS.items() for target in targets}

    assert legal == set().union(*WRITES.values())


@pytest.mark.usefixtures("shop")
def test_what_is_accepted_is_pending(ledger: Engine) -> None:
    with ledger.begin() as db:
        transitions.accept(db, list(REQUESTS.values()))

        assert dict.fromkeys(IDS, Status.PENDING) == statuses(db)


def test_a_statement_that_is_not_legal_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="succeeded does not lead to"):
        transitions._writes(frm={Status.IN_FLIGHT, Status.SUCCEEDED}, to={Status.WAITING, Status.PENDING})


def test_no_other_file_of_the_ledger_writes_a_status() -> None:
    folder = Path(worker.ledger.__file__).parent

    assert {"transitions.py"} == {path.name for path in folder.glob("*.py") if writes_a_status(path)}


def writes_a_status(path: Path) -> bool:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    changed = [each for each in calls if isinstance(each.func, ast.Attribute) and each.func.attr == "values"]
    return any(keyword.arg == "status" for each in changed for keyword in each.keywords)
