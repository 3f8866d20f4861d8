"""The order as Trackstar returned it: kept apart, read only where it is asked for, moved from where it was before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from harness.shell import Operator
from rich.pretty import pretty_repr
from sqlalchemy import Engine, event, insert, make_url, select, update
from sqlalchemy.exc import ProgrammingError

from worker import CancelClient
from worker.cancellation.answer import Order
from worker.cancellation.lifecycle import Transition
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Status, Verdict
from worker.ledger import deadlines, filters, queries, results, transitions
from worker.ledger import documents as kept
from worker.ledger.attempts import AttemptRow
from worker.ledger.database import open_ledger, read_only
from worker.ledger.results import AttemptResult
from worker.ledger.schema import cancellations, documents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Postgres

NOW = datetime(2026, 1, 2, tzinfo=UTC)
c = cancellations.c


def accept(ledger: Engine, order_id: str = "o-1") -> str:
    request = CancelRequest(connection_id="shop-1", order_id=order_id)
    transitions.accept_batch(ledger, [request])
    return request.record_id


def answered(claim: Any, text: str | None, unused: str | None = None) -> AttemptResult:
    return AttemptResult(
        claim=claim,
        attempts=(AttemptRow(kind="cancel", started_at=NOW, reason="accepted"),),
        transition=Transition(
            status=Status.SUCCEEDED,
            attempts=1,
            reason="accepted",
            verdict=Verdict.CANCELLED,
            order=Order(id=claim.order_id, status="cancelled", shipped=False, document=text) if text else None,
            unused_fields=unused,
        ),
    )


def answer(ledger: Engine, *texts: str | None, unused: str | None = "[]", lost: bool = False) -> list[str]:
    """Claim as many as there are texts, and record an answer with each as its order; return the statements."""
    with ledger.begin() as db:
        claimed = transitions.claim_next(db, {"shop-1": len(texts)}, "w-1", 60.0)["shop-1"]
    if lost:
        with ledger.begin() as db:
            db.execute(update(cancellations).values(claims=c.claims + 1))
    made = [answered(claim, text, unused) for claim, text in zip(claimed, texts, strict=True)]
    seen: list[str] = []
    with ledger.begin() as db:
        event.listen(db, "before_cursor_execute", lambda _db, _cursor, said, *_: seen.append(said))
        results.commit_results(db, made)
    return seen


def snapshot(ledger: Engine, record_id: str) -> tuple[str | None, str | None]:
    with read_only(ledger) as db:
        found = queries.get(db, record_id, snapshot=True)
    assert found
    return found.order_snapshot, found.unused_fields


def kept_apart(ledger: Engine) -> list[tuple[str | None, str | None]]:
    with read_only(ledger) as db:
        return [tuple(row) for row in db.execute(select(documents.c.order_snapshot, documents.c.unused_fields))]


def test_a_document_is_read_only_where_it_is_asked_for(
    ledger: Engine, database_url: str, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shop
    record_id = accept(ledger)
    answer(ledger, '{"secret":1}')
    monkeypatch.setenv("DATABASE_URL", database_url)
    client = CancelClient()
    without, found = client.get(record_id), client.get(record_id, snapshot=True)

    assert without
    assert found
    assert (None, None) == (without.order_snapshot, without.unused_fields)
    assert ('{"secret":1}', "[]") == (found.order_snapshot, found.unused_fields)
    assert "yes" == client.safe_to_refund(record_id)
    client.close()
    for said in (repr(found), str(found), pretty_repr(found)):
        assert record_id in said
        assert not [word for word in ("secret", "order_snapshot", "unused_fields") if word in said]


def test_a_group_of_records_is_one_statement_more_for_their_documents(ledger: Engine, shop: str) -> None:
    assert shop
    for number in range(6):
        accept(ledger, f"o-{number}")
    statements = answer(ledger, *("{}" for _ in range(3)))
    without = answer(ledger, *(None for _ in range(3)), unused=None)

    assert 1 == len([said for said in statements if "documents" in said])
    assert 1 == len(statements) - len(without)
    assert [("{}", "[]")] * 3 == kept_apart(ledger)
    with read_only(ledger) as db:
        assert {None} == set(db.execute(select(c.order_snapshot)).scalars())


def test_an_answer_that_comes_too_late_leaves_no_document(ledger: Engine, shop: str) -> None:
    assert shop
    record_id = accept(ledger)
    answer(ledger, '{"late":1}', lost=True)

    assert [] == kept_apart(ledger)
    assert (None, None) == snapshot(ledger, record_id)


# ---- beside workers of the release before


def by_an_old_worker(ledger: Engine, record_id: str, text: str | None, unused: str | None = None) -> None:
    """Write a document as the release before does."""
    with ledger.begin() as db:
        values: dict[str, Any] = {"order_snapshot": text, "unused_fields": unused}
        db.execute(update(cancellations).where(c.id == record_id).values(values))


def move(ledger: Engine, limit: int = 100) -> int:
    with ledger.begin() as db:
        return kept.move_old(db, limit)


def old_ones_are_due(ledger: Engine) -> bool:
    with read_only(ledger) as db:
        return deadlines.next_deadlines(db).old_documents


@pytest.mark.parametrize("late_is_first", [True, False])
def test_beside_the_answer_of_the_claim_after_it_a_late_answer_leaves_no_document(
    ledger: Engine, shop: str, late_is_first: bool
) -> None:
    record_id = accept(ledger)
    with ledger.begin() as db:
        (late,) = transitions.claim_next(db, {shop: 1}, "w-1", 60.0)[shop]
    with ledger.begin() as db:  # another worker rescued it, and it was this one's turn again
        db.execute(update(cancellations).values(status="pending", attempts=1, lease_owner=None, lease_expires_at=None))
        (current,) = transitions.claim_next(db, {shop: 1}, "w-1", 60.0)[shop]
    made = [answered(late, '{"late":1}'), answered(current, '{"current":1}')]
    with ledger.begin() as db:
        results.commit_results(db, made if late_is_first else made[::-1])

    assert ('{"current":1}', None) == snapshot(ledger, record_id)


def test_what_an_old_worker_wrote_is_read_and_moved(ledger: Engine, shop: str) -> None:
    assert shop
    ids = [accept(ledger, f"o-{number}") for number in range(5)]
    assert not old_ones_are_due(ledger)
    for record_id in ids[:4]:
        by_an_old_worker(ledger, record_id, f'"{record_id}"', '["u"]')
    by_an_old_worker(ledger, ids[4], None, '["only"]')
    wanted = [*((f'"{record_id}"', '["u"]') for record_id in ids[:4]), (None, '["only"]')]

    assert wanted == [snapshot(ledger, record_id) for record_id in ids]
    assert old_ones_are_due(ledger)
    assert [3, 2, 0] == [move(ledger, 3) for _ in range(3)]
    assert not old_ones_are_due(ledger)
    assert wanted == [snapshot(ledger, record_id) for record_id in ids]
    assert 5 == len(kept_apart(ledger))


def test_of_two_documents_the_later_one_counts_whoever_wrote_it(ledger: Engine, shop: str) -> None:
    assert shop
    record_id = accept(ledger)
    by_an_old_worker(ledger, record_id, '"first"', '["old"]')
    answer(ledger, '"second"', unused=None)

    assert ('"second"', '["old"]') == snapshot(ledger, record_id)
    by_an_old_worker(ledger, record_id, '"third"')
    assert '"third"' == snapshot(ledger, record_id)[0]
    assert 1 == move(ledger)
    assert '"third"' == snapshot(ledger, record_id)[0]
    assert ['"third"'] == [text for text, _ in kept_apart(ledger)]


# ---- a role that may not see it


@pytest.fixture
def support(postgres: Postgres, make_database: Any) -> Iterator[tuple[str, Engine, Engine]]:
    """The address of a ledger, it, and the same one opened by a role that may read all tables but `documents`."""
    url = make_database("postgresql")
    ledger = open_ledger(url)
    with ledger.begin() as db:
        db.exec_driver_sql("DROP ROLE IF EXISTS support_desk")
        db.exec_driver_sql("CREATE ROLE support_desk LOGIN PASSWORD 'support'")
        db.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO support_desk")
        db.exec_driver_sql("REVOKE ALL ON documents FROM support_desk")
        db.exec_driver_sql(
            "INSERT INTO connections (id, access_token, created_at, updated_at) VALUES ('shop-1', 't', now(), now())"
        )
    restricted = open_ledger(url)
    event.listen(restricted, "connect", lambda db, _record: db.execute("SET ROLE support_desk"))
    yield url, ledger, restricted
    restricted.dispose()
    with ledger.begin() as db:
        db.exec_driver_sql("DROP OWNED BY support_desk")
        db.exec_driver_sql("DROP ROLE support_desk")
    ledger.dispose()
    postgres.drop(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False))


def test_a_role_without_rights_on_documents_asks_everything_else(support: tuple[str, Engine, Engine]) -> None:
    _, ledger, restricted = support
    record_id = accept(ledger)
    with ledger.begin() as db:
        db.execute(insert(documents).values(cancellation_id=record_id, order_snapshot='{"secret":1}', kept_at=NOW))
    with read_only(restricted) as db:
        assert queries.get(db, record_id)
        assert queries.timeline(db, record_id)
        assert [record_id] == [each.id for each in filters.find(db, filters.Filter(name="o-1"))]
        assert [record_id] == [each.id for each in filters.find(db)]
    with pytest.raises(ProgrammingError, match="permission denied for table documents"), read_only(restricted) as db:
        queries.get(db, record_id, snapshot=True)


def test_the_doctor_names_the_tables_that_a_role_may_not_write(
    support: tuple[str, Engine, Engine], tmp_path: Path, redis_url: str
) -> None:
    url, ledger, _ = support
    with ledger.begin() as db:
        db.exec_driver_sql("GRANT INSERT ON ALL TABLES IN SCHEMA public TO support_desk")
        db.exec_driver_sql("REVOKE INSERT ON documents, audit FROM support_desk")
    theirs = make_url(url).set(username="support_desk", password="support").render_as_string(hide_password=False)
    code, said = Operator(tmp_path, DATABASE_URL=theirs, REDIS_URL=redis_url).run("doctor", "--json")

    assert (1, True) == (code, "the role support_desk lacks" in said), said
    assert "SELECT on documents" in said, said
    assert "ops/postgres/roles.sql, run as a superuser or as the owner of the tables" in said
