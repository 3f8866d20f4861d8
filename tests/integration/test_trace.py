"""A job's trace is kept with its cancellation, and is in every event of it."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Engine, select, update

from worker.cancellation.policy import Policy
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Verdict
from worker.client import CancelClient
from worker.ledger import confirmations, deadlines, notices, queries, transitions
from worker.ledger.changes import Change, change
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def enqueue(ledger: Engine, url: str, traceparent: str) -> str:
    with closing(CancelClient(database_url=url)) as client, ledger.begin() as db:
        return client.enqueue("shop-1", "o-1", traceparent=traceparent, session=db)


def told(ledger: Engine) -> Iterator[tuple[str, str | None]]:
    with ledger.connect() as db:
        for row in db.execute(select(events.c.type, events.c.payload)):
            yield row.type, msgspec.json.decode(row.payload).get("traceparent")


def test_whatever_is_told_of_a_cancellation_names_its_trace(ledger: Engine, shop: str, database_url: str) -> None:
    job = enqueue(ledger, database_url, TRACE)
    soon = datetime.now(UTC) + timedelta(hours=1)
    with ledger.begin() as db:
        change(db, [job], Change(send_by=soon))
        late = deadlines.DeadlineAtRisk(job, shop, "o-1", TRACE, soon, 1, None, soon)
        assert 1 == deadlines.warn(db, [(late, soon)])
        transitions.withdraw(db, job, Policy())
        assert {job} == transitions.replay(db, [job])
        transitions.withdraw(db, job, Policy())
        known = queries.find_standing(db, [CancelRequest(connection_id=shop, order_id="o-1")])
        notices.add_already_ended(db, known.values())
        db.execute(update(cancellations).values(verdict=Verdict.UNKNOWN))
        confirmations.resolve(db, job, Verdict.CANCELLED, by="ada", note="seen")

    found = dict(told(ledger))
    assert {
        "cancellation.changed",
        "cancellation.wont_make_it",
        "cancellation.ended",
        "cancellation.replayed",
        "cancellation.already_ended",
        "cancellation.verdict_raised",
        "refund.refused",
        "refund.recalled",
        "refund.released",
    } == set(found)
    assert {TRACE} == set(found.values())


def test_a_claim_and_what_lapses_know_the_trace(ledger: Engine, shop: str, database_url: str) -> None:
    job = enqueue(ledger, database_url, TRACE)
    named = {"id": job, "connection_id": shop, "order_id": "o-1", "traceparent": TRACE}
    with ledger.begin() as db:
        ((claim,),) = transitions.claim_next(db, {shop: 1}, "w-1", 60).values()
        assert [shop] == transitions.release_unsent(db, [claim.lease])
        db.execute(update(cancellations).values(send_by=datetime.now(UTC) - timedelta(seconds=1)))
        (lapsed,) = deadlines.past_send_by(db, 10)

    assert named == lapsed.named == claim.named


def test_a_text_that_is_no_trace_is_not_kept_and_its_job_is(ledger: Engine, shop: str, database_url: str) -> None:
    job = enqueue(ledger, database_url, "ada@example.com")
    with ledger.begin() as db:
        ((claim,),) = transitions.claim_next(db, {shop: 1}, "w-1", 60).values()
        found = queries.get(db, job)

    assert found is not None
    assert found.traceparent is None
    assert {"id": job, "connection_id": shop, "order_id": "o-1"} == claim.named
