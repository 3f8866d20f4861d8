"""Money: of each order one release or one refusal, when it is proven, and a recall where the proof turns.

Over all its cancellations, keys, generations and replays, in any order of transactions, on both databases.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select, update

from worker.cancellation.lifecycle import Transition
from worker.cancellation.proof import Confirmation
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import FINAL, Evidence, Status, Verdict
from worker.ledger import retention, transitions
from worker.ledger.claims import CLAIM_COLUMNS, confirm_claim
from worker.ledger.results import AttemptResult, ConfirmResult, commit_results
from worker.ledger.schema import attempts, cancellations, documents, events, refunds

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.ledger.results import Result

c = cancellations.c
CANCELLED, NOT, UNKNOWN = Verdict.CANCELLED, Verdict.NOT_CANCELLED, Verdict.UNKNOWN
ENDS = {CANCELLED: Status.SUCCEEDED, NOT: Status.REJECTED, UNKNOWN: Status.EXHAUSTED}
EVIDENCE = {CANCELLED: Evidence.RESPONSE, NOT: Evidence.REFUSAL, UNKNOWN: None}
KEYS = ["a", "b", "c"]

pytestmark = pytest.mark.usefixtures("shop")


def request_of(key: str, order_id: str = "o-1") -> CancelRequest:
    return CancelRequest(connection_id="shop-1", order_id=order_id, idempotency_key=f"{key} of {order_id}")


def accept(ledger: Engine, *keys: str) -> list[str]:
    with ledger.begin() as db:
        transitions.accept(db, [request_of(key) for key in keys])
    return [request_of(key).record_id for key in keys]


def ends(db: Connection, key: str, verdict: Verdict) -> Result:
    """Claim one and return the record of its end."""
    claimed = transitions.claim_next(db, {"shop-1": 10}, "w-1", 60)
    (claim,) = [each for each in claimed.get("shop-1", []) if each.id == request_of(key).record_id]
    transitions.release_unsent(db, [each.lease for each in claimed["shop-1"] if each is not claim])
    reason = "for_a_test"
    ended = Transition(
        status=ENDS[verdict], attempts=1, reason=reason, verdict=verdict, evidence=EVIDENCE[verdict], as_of=now()
    )
    return AttemptResult(claim=claim, attempts=(), transition=ended)


def turns(db: Connection, key: str, verdict: Verdict) -> Result:
    """Return the record of a read that finds something else."""
    row = db.execute(select(*CLAIM_COLUMNS).where(c.id == request_of(key).record_id)).one()
    contradicted = row.verdict == "cancelled"
    found = Confirmation(verdict=verdict, evidence=Evidence.READ_BACK, as_of=now(), contradicted=contradicted)
    return ConfirmResult(claim=confirm_claim(row), attempts=(), confirmation=found)


def now() -> datetime:
    return datetime.now(UTC)


def end(ledger: Engine, key: str, verdict: Verdict) -> None:
    with ledger.begin() as db:
        commit_results(db, [ends(db, key, verdict)])


def turn(ledger: Engine, key: str, verdict: Verdict) -> None:
    with ledger.begin() as db:
        commit_results(db, [turns(db, key, verdict)])


def told(ledger: Engine) -> list[str]:
    with ledger.connect() as db:
        kinds = db.execute(select(events.c.type).where(events.c.type.like("refund.%")).order_by(events.c.id))
        return [each.type.removeprefix("refund.") for each in kinds]


def test_what_is_proven_cancelled_is_released_with_all_that_an_oms_needs(ledger: Engine) -> None:
    (record_id,) = accept(ledger, "a")
    end(ledger, "a", CANCELLED)
    with ledger.connect() as db:
        row = db.execute(select(events).where(events.c.type == "refund.released")).one()
    payload = msgspec.json.decode(row.payload)

    assert record_id == str(row.cancellation_id) == payload["id"]
    assert ("o-1", "succeeded", "cancelled", "response", "yes") == (
        payload["order_id"],
        *(payload[name] for name in ("status", "verdict", "evidence", "safe_to_refund")),
    )


def test_a_second_key_of_the_order_releases_nothing_more(ledger: Engine) -> None:
    accept(ledger, "a", "b")
    end(ledger, "a", CANCELLED)
    end(ledger, "b", CANCELLED)

    assert ["released"] == told(ledger)


def test_it_is_refused_when_the_last_of_its_cancellations_has_failed(ledger: Engine) -> None:
    accept(ledger, "a", "b")
    end(ledger, "a", NOT)
    assert [] == told(ledger)
    end(ledger, "b", NOT)

    assert ["refused"] == told(ledger)


def test_what_was_taken_back_unsent_is_refused(ledger: Engine) -> None:
    accept(ledger, "a")
    with ledger.begin() as db:
        never = Transition(
            status=Status.WITHDRAWN, attempts=0, reason="w", verdict=NOT, evidence=Evidence.NEVER_SENT, as_of=now()
        )
        transitions.end_unsent(db, [(request_of("a").record_id, never)])

    assert ["refused"] == told(ledger)


def test_in_doubt_nothing_is_told_until_it_is_known(ledger: Engine) -> None:
    accept(ledger, "a")
    end(ledger, "a", UNKNOWN)
    assert [] == told(ledger)
    turn(ledger, "a", CANCELLED)

    assert ["released"] == told(ledger)


def test_a_release_is_recalled_when_the_goods_left_after_all_and_says_what_it_recalls(ledger: Engine) -> None:
    accept(ledger, "a")
    end(ledger, "a", CANCELLED)
    turn(ledger, "a", NOT)
    with ledger.connect() as db:
        payload = db.execute(select(events.c.payload).where(events.c.type == "refund.recalled")).scalar_one()

    assert ["released", "recalled"] == told(ledger)
    assert "released" == msgspec.json.decode(payload)["recalls"]


def test_goods_that_left_recall_a_release_whatever_another_cancellation_of_the_order_was_told(ledger: Engine) -> None:
    accept(ledger, "a", "b")
    end(ledger, "a", CANCELLED)
    end(ledger, "b", CANCELLED)
    turn(ledger, "b", NOT)

    assert ["released", "recalled"] == told(ledger)


def test_a_refusal_is_recalled_when_a_replay_cancels_it(ledger: Engine) -> None:
    (record_id,) = accept(ledger, "a")
    end(ledger, "a", NOT)
    with ledger.begin() as db:
        transitions.replay(db, [record_id])
    end(ledger, "a", CANCELLED)

    assert ["refused", "recalled", "released"] == told(ledger)


def test_two_that_fail_at_the_same_time_refuse_once(ledger: Engine) -> None:
    """Each of two open transactions sees the other's cancellation as not ended."""
    accept(ledger, "a", "b")
    with ledger.begin() as db:
        records = {key: ends(db, key, NOT) for key in ("a",)}
    with ledger.begin() as db:
        records["b"] = ends(db, "b", NOT)
    began = threading.Barrier(2)

    def record(key: str) -> None:
        if ledger.dialect.name != "sqlite":
            with ledger.begin() as db:
                began.wait(10)
                commit_results(db, [records[key]])
        else:  # which lets one transaction write at a time
            with ledger.begin() as db:
                commit_results(db, [records[key]])

    threads = [threading.Thread(target=record, args=(key,)) for key in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert ["refused"] == told(ledger)


class CrashError(Exception):
    """The worker is killed before it commits."""


steps = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from([CANCELLED, NOT, UNKNOWN, "replay"]), st.booleans()), max_size=14
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_no_order_of_proofs_replays_and_crashes_pays_twice_or_too_early(
    ledger: Engine, steps: list[tuple[str, str, bool]]
) -> None:
    with ledger.begin() as db:
        for table in (events, attempts, documents, cancellations, refunds):
            db.execute(delete(table))
    accept(ledger, *KEYS[:2])
    for key, what, crashes in steps:
        accept(ledger, key)
        with suppress(CrashError), ledger.begin() as db:
            _do(db, key, what)
            if crashes:
                raise CrashError
        _check(ledger)


def _do(db: Connection, key: str, what: str) -> None:
    row = db.execute(select(c.id, c.status, c.verdict).where(c.id == request_of(key).record_id)).one()
    ended = row.status in FINAL
    if what == "replay":
        transitions.replay(db, [str(row.id)])
    elif not ended:
        commit_results(db, [ends(db, key, Verdict(what))])
    elif what not in {row.verdict, UNKNOWN} and (row.verdict, what) != (NOT, CANCELLED):
        commit_results(db, [turns(db, key, Verdict(what))])


def _check(ledger: Engine) -> None:
    with ledger.connect() as db:
        rows = db.execute(select(c.status, c.verdict)).all()
    ended = [Verdict(row.verdict) for row in rows if row.status in FINAL]
    news = told(ledger)
    assert all(news.count(word) <= 1 for word in ("released", "refused"))
    if CANCELLED in ended:
        assert "released" in news
        assert "refused" not in news[-1:]
    elif news[-1:] == ["released"]:
        raise AssertionError("no cancellation of the order is proven any more, and nothing was recalled")
    if len(ended) == len(rows) and set(ended) == {NOT}:
        assert news[-1] in {"refused", "recalled"}
    if not set(ended) & {CANCELLED, NOT}:
        assert set(news) <= {"refused", "released", "recalled"}


def test_what_was_told_is_forgotten_when_nothing_is_left_of_the_order(ledger: Engine) -> None:
    accept(ledger, "a")
    end(ledger, "a", CANCELLED)
    with ledger.begin() as db:
        db.execute(update(refunds).values(changed_at=now() - timedelta(days=2)))
        assert 0 == retention.prune_refunds(db, 86_400)
        for table in (events, documents, attempts, cancellations):
            db.execute(delete(table))
        assert 1 == retention.count_refunds(db, 86_400) == retention.prune_refunds(db, 86_400)
