"""What KEDA asks PostgreSQL: one number whatever is in the ledger, the age of the oldest row that may be sent now.

The query is read from ops/kubernetes and runs as a role that may read the two views and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.kubernetes import Manifests
from sqlalchemy import literal, text, update

from worker.cancellation.request import CancelRequest
from worker.ledger import connections, gauges, holds, schema, transitions
from worker.ledger.database import read_only
from worker.ledger.dialects import now_plus
from worker.ledger.schema import cancellations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from worker.cancellation.request import Priority
    from worker.ledger.vault import TokenVault

(TRIGGER,) = Manifests().one("ScaledObject", "cancel-worker")["spec"]["triggers"]
QUERY = TRIGGER["metadata"]["query"]
HOUR = 3600.0
LATE = 60.0  # of a slow machine

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def reader(ledger: Engine) -> Iterator[str]:
    """Make a role that may read the views, as `cancel_reader` may."""
    role = f"reader_of_{ledger.url.database}"
    with ledger.begin() as db:
        db.execute(text(f"CREATE ROLE {role}"))
        db.execute(text(f"GRANT SELECT ON cancellation_outcomes_v1, connections_v1 TO {role}"))
    yield role
    with ledger.begin() as db:
        db.execute(text(f"DROP OWNED BY {role}"))
        db.execute(text(f"DROP ROLE {role}"))


@pytest.fixture
def scaler(ledger: Engine, reader: str) -> Iterator[Connection]:
    """A session as KEDA has it: that role, and the planner as the server sets it, not as the workers do."""
    with ledger.connect() as db:
        db.execute(text(f"SET ROLE {reader}"))
        db.execute(text("SET enable_seqscan = on"))
        db.commit()
        yield db
        db.rollback()
        db.execute(text("RESET ALL"))
        db.execute(text("RESET ROLE"))
        db.commit()


@pytest.fixture(autouse=True)
def shops(ledger: Engine, vault: TokenVault) -> None:
    with ledger.begin() as db:
        for name in ("shop", "other"):
            connections.add(db, name, vault.encrypt("token"))
        db.execute(update(schema.connections).values(updated_at=now_plus(literal(-9 * HOUR))))


def asked(scaler: Connection) -> list[Any]:
    """Ask as KEDA does; return all values of all rows."""
    with scaler.begin():
        return [value for row in scaler.exec_driver_sql(QUERY) for value in row]


def accept(ledger: Engine, order: str, seconds: float, shop: str = "shop", **more: Any) -> None:
    """Let the ledger know a job that came so many seconds ago."""
    priority: Priority = more.pop("priority", "normal")
    job = CancelRequest(connection_id=shop, order_id=order, priority=priority)
    with ledger.begin() as db:
        transitions.accept(db, [job])
        values = {"received_at": now_plus(literal(-seconds)), **more}
        db.execute(update(cancellations).where(cancellations.c.id == job.record_id).values(**values))


def test_an_empty_ledger_is_zero_and_not_null(ledger: Engine, scaler: Connection) -> None:
    assert [0.0] == asked(scaler)
    with ledger.begin() as db:
        db.execute(schema.connections.delete())

    assert [0.0] == asked(scaler)


@pytest.mark.parametrize("priority", ["urgent", "normal", "bulk"])
def test_a_row_that_has_been_due_for_90_seconds_is_90_seconds(
    ledger: Engine, scaler: Connection, priority: Priority
) -> None:
    accept(ledger, "o-1", 90, priority=priority)
    accept(ledger, "o-2", 0, shop="other")

    (seconds,) = asked(scaler)

    assert 90 <= seconds < 90 + LATE


def test_a_row_with_an_end_that_goes_before_it_hides_no_older_one(ledger: Engine, scaler: Connection) -> None:
    accept(ledger, "o-1", 90)
    accept(ledger, "o-2", 10, send_by=now_plus(text("60")))

    assert 90 <= asked(scaler)[0] < 90 + LATE


def test_the_number_is_what_the_workers_show(ledger: Engine, scaler: Connection) -> None:
    accept(ledger, "o-1", 90)
    accept(ledger, "o-2", 300, shop="other", priority="bulk")
    with read_only(ledger) as db:
        shown = max(gauges.read(db, 50.0).oldest_due.values())

    assert pytest.approx(shown, abs=LATE) == asked(scaler)[0]


def test_what_may_not_be_sent_now_does_not_count(ledger: Engine, scaler: Connection) -> None:
    accept(ledger, "held", HOUR, shop="other")
    accept(ledger, "future", HOUR, status="waiting", run_at=now_plus(text("600")))
    accept(ledger, "sent before", HOUR, first_sent_at=now_plus(text("-3000")))
    accept(ledger, "too late", HOUR, send_by=now_plus(text("-60")))
    with ledger.begin() as db:
        holds.hold(db, ["other"], holds.OUTAGE)

    assert [0.0] == asked(scaler)


def test_rows_of_a_connection_that_was_resumed_are_due_since_then(ledger: Engine, scaler: Connection) -> None:
    accept(ledger, "o-1", HOUR)
    with ledger.begin() as db:
        holds.hold(db, ["shop"], holds.OUTAGE)
    with ledger.begin() as db:
        holds.resume(db, ["shop"], [holds.OUTAGE])

    assert 0 <= asked(scaler)[0] < LATE


def test_of_a_long_queue_the_head_alone_is_read(ledger: Engine, scaler: Connection) -> None:
    jobs = [CancelRequest(connection_id="shop", order_id=f"o-{n}") for n in range(2_000)]
    with ledger.begin() as db:
        transitions.accept(db, jobs)
    with ledger.begin() as db:
        db.execute(text("ANALYZE cancellations"))
        db.execute(text("ANALYZE connections"))
    with scaler.begin():
        (plan,) = scaler.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {QUERY}").scalar_one()

    assert rows_read(plan["Plan"]) < 50, plan


def rows_read(plan: dict[str, Any]) -> float:
    """Count the rows of the nodes that read cancellations, those left out by a condition too."""
    here = plan.get("Relation Name") == "cancellations"
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"] if here else 0
    return float(own + sum(rows_read(each) for each in plan.get("Plans", [])))
