"""A server asks for a long pause: a hold in the transaction of the answer, with an end that any worker keeps."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, update

from worker.cancellation.lifecycle import Transition
from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Status
from worker.inputs.headers import RetryAfter
from worker.ledger import connections, deadlines, holds, selection, transitions
from worker.ledger.attempts import AttemptRow
from worker.ledger.results import AttemptResult, CommitSummary, commit_results
from worker.ledger.schema import connections as rows
from worker.ledger.schema import events
from worker.runtime.maintenance import Handlers, Maintenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Logged

    from worker.ledger.claims import AttemptClaim

SECONDS = 600.0


@pytest.fixture
def claim(ledger: Engine, shop: str) -> Callable[[str], AttemptClaim]:
    """Accept a job of the shop, and claim it."""

    def accept_and_claim(order_id: str) -> AttemptClaim:
        with ledger.begin() as db:
            transitions.accept(db, [CancelRequest(connection_id=shop, order_id=order_id)])
            return transitions.claim_next(db, {shop: 1}, "w-1", 60)[shop][0]

    return accept_and_claim


def too_fast(claim: AttemptClaim, seconds: float = SECONDS) -> AttemptResult:
    row = AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="rate_limited", status=429)
    transition = Transition(
        status=Status.PENDING, attempts=0, reason="rate_limited", pause_connection=RetryAfter(seconds)
    )
    return AttemptResult(claim=claim, attempts=(row,), transition=transition)


def fine(claim: AttemptClaim) -> AttemptResult:
    row = AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="http_500", status=200)
    return AttemptResult(
        claim=claim,
        attempts=(row,),
        transition=Transition(status=Status.WAITING, attempts=1, reason="x", run_at=claim.claimed_at),
    )


def commit(ledger: Engine, *results: AttemptResult) -> CommitSummary:
    with ledger.begin() as db:
        return commit_results(db, results)


def stands(ledger: Engine) -> tuple[str | None, datetime | None]:
    with ledger.connect() as db:
        found = connections.find(db, "shop-1")
    assert found is not None
    return found.hold_reason, found.held_until


def told(ledger: Engine) -> list[tuple[str, str | None]]:
    with ledger.connect() as db:
        found = db.execute(select(events.c.type, events.c.payload).order_by(events.c.id)).all()
    return [(each.type, json.loads(each.payload).get("reason")) for each in found if each.type.startswith("conn")]


def let_it_pass(ledger: Engine) -> None:
    with ledger.begin() as db:
        db.execute(update(rows).values(probe_at=datetime.now(UTC) - timedelta(seconds=1)))


def housekeeper(ledger: Engine, **heard: list[Any]) -> Maintenance:
    handlers = Handlers(
        at_start=lambda _: None,
        on_ready=heard.get("ready", []).extend,
        rescue=lambda _: None,
        confirm=lambda _: None,
        publish_events=lambda: heard.get("published", []).append(None),
        expired=lambda _: None,
    )
    return Maintenance(ledger, "w-1", 60, 50.0, Policy(), handlers)


def test_it_is_held_with_its_end_for_the_longest_that_was_asked_for(
    ledger: Engine, claim: Callable[[str], AttemptClaim]
) -> None:
    summary = commit(ledger, too_fast(claim("a"), 120), too_fast(claim("b"), SECONDS), too_fast(claim("c"), 90))
    reason, until = stands(ledger)

    assert ({"shop-1"}, True, holds.RATE_LIMITED) == (summary.paused, summary.changed_holds, reason)
    assert until is not None
    assert timedelta(seconds=SECONDS - 30) < until - datetime.now(UTC) <= timedelta(seconds=SECONDS + 1)
    assert [("connection.held", holds.RATE_LIMITED)] == told(ledger)
    with ledger.begin() as db:
        assert {} == transitions.claim_next(db, {"shop-1": 5}, "w-2", 60)
        assert [] == [each for each in selection.ready_connections(db) if not each.probing]
        assert deadlines.next_deadlines(db).hold_end == until


def test_what_others_are_told_meanwhile_changes_nothing(ledger: Engine, claim: Callable[[str], AttemptClaim]) -> None:
    first, second, third = (claim(name) for name in "abc")
    commit(ledger, too_fast(first))
    before = stands(ledger)
    commit(ledger, fine(second))  # of another worker, and late
    commit(ledger, too_fast(third, 61))

    assert before == stands(ledger)
    assert [("connection.held", holds.RATE_LIMITED)] == told(ledger)


@pytest.mark.parametrize("reason", [holds.CREDENTIALS, holds.OUTAGE, holds.OPERATOR, holds.TRACKSTAR_OUTAGE])
def test_whoever_is_held_already_stays_held_for_that(
    ledger: Engine, claim: Callable[[str], AttemptClaim], reason: str
) -> None:
    late = claim("a")
    with ledger.begin() as db:
        holds.hold(db, ["shop-1"], reason)
    summary = commit(ledger, too_fast(late))

    assert (frozenset(), (reason, None)) == (summary.paused, stands(ledger))


def test_an_operator_holds_it_whatever_holds_it(ledger: Engine, claim: Callable[[str], AttemptClaim]) -> None:
    commit(ledger, too_fast(claim("a")))
    with ledger.begin() as db:
        assert holds.hold_by_operator(db, "shop-1")
        assert frozenset() == holds.end_pauses(db)

    assert (holds.OPERATOR, None) == stands(ledger)


def test_every_worker_ends_it_in_its_time_once_and_no_job_is_needed(
    ledger: Engine, claim: Callable[[str], AttemptClaim], logged: Logged
) -> None:
    commit(ledger, too_fast(claim("a")))
    ready: list[str] = []
    published: list[None] = []
    one, other = housekeeper(ledger, ready=ready, published=published), housekeeper(ledger)
    one.tick()
    with ledger.begin() as db:
        assert frozenset() == holds.end_pauses(db)
    assert holds.RATE_LIMITED == stands(ledger)[0]  # not before

    let_it_pass(ledger)
    with ledger.begin() as db:
        assert [] == holds.claim_probes(db)  # nothing is sent to see whether it is over
    assert 0.0 == one.tick()
    other.tick()

    assert (None, None) == stands(ledger)
    assert [("connection.held", holds.RATE_LIMITED), ("connection.resumed", None)] == told(ledger)
    assert "shop-1" in ready
    assert published
    assert 1 == logged.events().count("connection.resumed")


def test_an_idle_housekeeper_looks_again_at_its_very_end(ledger: Engine, claim: Callable[[str], AttemptClaim]) -> None:
    commit(ledger, too_fast(claim("a")))
    with ledger.begin() as db:
        db.execute(update(rows).values(probe_at=datetime.now(UTC) + timedelta(seconds=0.4)))

    assert housekeeper(ledger).tick() < 0.5


def test_a_person_ends_it_at_once(ledger: Engine, claim: Callable[[str], AttemptClaim]) -> None:
    first = claim("a")
    commit(ledger, too_fast(first))
    with ledger.begin() as db:
        assert {"shop-1"} == holds.resume(db, ["shop-1"], holds.ALL)
    with ledger.begin() as db:  # also the order that was told to wait
        (again,) = transitions.claim_next(db, {"shop-1": 5}, "w-2", 60)["shop-1"]

    assert first.id == again.id
