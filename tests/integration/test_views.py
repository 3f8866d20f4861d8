"""The three views for dashboards: a contract of columns, without personal data, and all that Grafana asks of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness.grafana import dashboard, panels, queries, with_macros, with_variables
from psycopg import sql
from sqlalchemy import Engine, insert, inspect, make_url, text
from unit.test_documents import table_rows

from worker.ledger.database import open_ledger
from worker.ledger.redaction import PERSONAL
from worker.ledger.schema import attempts, cancellations, connections, freshness

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime.now(UTC).replace(microsecond=0)
DATA = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
# Columns of version 1, which stay in this order; new ones come after them.
COLUMNS = {
    "cancellation_outcomes_v1": (
        *("cancellation_id", "connection_id", "connection_name", "integration", "priority", "status", "verdict"),
        *("evidence", "reason", "needs_person", "requested_at", "received_at", "send_by", "first_sent_at", "ended_at"),
        *("as_of", "known_by", "attempts", "generation", "seconds_until_ended", "seconds_until_proven"),
    ),
    "attempts_v1": (
        *("cancellation_id", "connection_id", "connection_name", "received_at", "number", "kind", "generation"),
        *("started_at", "duration_seconds", "http_status", "origin", "reason", "replayed", "retry_after_seconds"),
    ),
    "connections_v1": (
        *("connection_id", "name", "integration", "has_token", "writes_per_second", "hold_reason", "held_at"),
        *("probe_at", "crawl_status", "crawl_began_at", "crawl_ended_at", "crawl_running_since"),
        *("crawl_period_seconds", "crawl_seen_at", "created_at", "updated_at"),
    ),
}
HIDDEN = "told-to-nobody"
HIDDEN_OF_CANCELLATIONS = {
    **dict.fromkeys(("order_id", "idempotency_key", "reference_id", "order_number", "batch", "traceparent"), HIDDEN),
    **dict.fromkeys(("requested_by", "reason", "outcome_message", "order_status"), HIDDEN),
    **dict.fromkeys(("order_snapshot", "unused_fields"), HIDDEN),
    "metadata": {"note": HIDDEN},
}


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def row(**facts: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("run_at", "lease_owner", "lease_expires_at", "ended_at", "verdict", "evidence"))
    also = dict.fromkeys(("outcome_reason", "as_of", "known_by", "needs_person", "first_sent_at", "confirm_at"))
    return {
        **HIDDEN_OF_CANCELLATIONS,
        **nothing,
        **also,
        "id": str(uuid.uuid4()),
        "connection_id": "shop",
        "priority": "normal",
        "status": "pending",
        "requested_at": ago(600),
        "received_at": ago(590),
        "claims": 1,
        "attempts": 1,
        **facts,
    }


def ended(status: str, verdict: str, **facts: Any) -> dict[str, Any]:
    sent = {"first_sent_at": ago(585), "ended_at": ago(570), "as_of": ago(570), "outcome_reason": "accepted"}
    return row(**{**sent, "status": status, "verdict": verdict, **facts})


ROWS = {
    "proven at once": ended("succeeded", "cancelled", evidence="response"),
    "proven later": ended("succeeded", "cancelled", evidence="read_back", as_of=ago(500)),
    "contradicted": ended("succeeded", "not_cancelled", evidence="read_back", as_of=ago(400)),
    "waits for proof": ended("succeeded", "accepted", known_by=ago(-3600), confirm_at=ago(-60)),
    "for a person": ended("exhausted", "unknown", needs_person="crawls_failing", outcome_reason="http_503"),
    "by an old worker": ended("rejected", "not_cancelled", as_of=None),
    "by two clocks": ended("expired", "not_cancelled", requested_at=ago(0)),
    # What a live row remembers is no verdict yet.
    "live": row(status="in_flight", lease_owner=HIDDEN, lease_expires_at=ago(-60), verdict="unknown"),
    "new": row(attempts=0, claims=0),
}
SECONDS = {
    "proven at once": (30.0, 30.0),
    "proven later": (30.0, 100.0),
    "contradicted": (30.0, 200.0),
    "waits for proof": (30.0, None),
    "for a person": (30.0, None),
    "by an old worker": (30.0, 30.0),
    "by two clocks": (0.0, 0.0),
    "live": (None, None),
    "new": (None, None),
}


def fill(ledger: Engine) -> None:
    with ledger.begin() as db:
        made = {"created_at": NOW, "updated_at": NOW, "owner": HIDDEN, "access_token": HIDDEN}
        db.execute(insert(connections).values(id="shop", name="The shop", integration_name="wms", **made))
        held = {"hold_reason": "credentials", "held_at": ago(60), "probe_at": ago(-60)}
        db.execute(insert(connections).values(id="held", **held, **made))
        db.execute(
            insert(freshness).values(connection_id="shop", status="enabled", began_at=ago(900), frequency=3600.0)
        )
        db.execute(insert(cancellations), list(ROWS.values()))
        of = {"cancellation_id": ROWS["proven later"]["id"], "generation": 1, "error": HIDDEN, "request_id": HIDDEN}
        answered = {"number": 1, "kind": "cancel", "started_at": ago(585), "duration_ms": 1250, "status": 200}
        silent = {"number": 2, "kind": "read", "started_at": ago(500), "duration_ms": None, "status": None}
        for each, reason in ((answered, "accepted"), (silent, "read_timeout")):
            db.execute(insert(attempts).values(**of, **each, reason=reason, origin="trackstar", replayed=False))


@pytest.fixture
def filled(ledger: Engine) -> Engine:
    fill(ledger)
    return ledger


def read(ledger: Engine, view: str) -> list[Any]:
    with ledger.connect() as db:
        return list(db.execute(text(f"SELECT * FROM {view}")).mappings())  # noqa: S608 - a name of ours


def documented(view: str) -> list[str]:
    return [name for cell, _ in table_rows(DATA, f"| column of `{view}` |") for name in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_the_columns_that_are_documented_and_none_of_the_first_version_is_gone(
    ledger: Engine, view: str
) -> None:
    there = [column["name"] for column in inspect(ledger).get_columns(view)]

    assert documented(view) == there
    assert COLUMNS[view] == tuple(there[: len(COLUMNS[view])])


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_nothing_personal_of_an_order_no_number_of_it_no_token_and_no_name_of_a_person(
    filled: Engine, view: str
) -> None:
    assert set(PERSONAL) <= set(HIDDEN_OF_CANCELLATIONS)
    assert read(filled, view)
    assert HIDDEN not in str(read(filled, view))


def test_an_outcome_says_how_long_it_took_to_its_end_and_to_its_proof(filled: Engine) -> None:
    found = {each["cancellation_id"]: each for each in read(filled, "cancellation_outcomes_v1")}

    for name, expected in SECONDS.items():
        one = found[uuid.UUID(ROWS[name]["id"]) if filled.dialect.name == "postgresql" else ROWS[name]["id"]]
        told = (one["seconds_until_ended"], one["seconds_until_proven"])
        assert expected == tuple(each if each is None else pytest.approx(each, abs=0.001) for each in told), name
        assert ("The shop", "wms", "normal") == (one["connection_name"], one["integration"], one["priority"])


def test_what_is_known_is_told_only_after_the_end(filled: Engine) -> None:
    found = read(filled, "cancellation_outcomes_v1")

    assert {None} == {each["verdict"] for each in found if each["ended_at"] is None}
    assert None not in {each["verdict"] for each in found if each["ended_at"] is not None}
    assert None not in {each["as_of"] for each in found if each["ended_at"] is not None}


def test_an_attempt_says_what_came_of_it_and_which_cancellation_it_belongs_to(filled: Engine) -> None:
    answered, silent = sorted(read(filled, "attempts_v1"), key=lambda each: each["number"])

    assert ("cancel", 200, 1.25, "accepted") == tuple(
        answered[name] for name in ("kind", "http_status", "duration_seconds", "reason")
    )
    assert ("read", None, None, "read_timeout") == tuple(
        silent[name] for name in ("kind", "http_status", "duration_seconds", "reason")
    )
    assert ("shop", "The shop") == (silent["connection_id"], silent["connection_name"])


def test_a_connection_says_its_hold_and_how_fresh_its_copy_is(filled: Engine) -> None:
    held, shop = sorted(read(filled, "connections_v1"), key=lambda each: each["connection_id"])

    assert ("credentials", None) == (held["hold_reason"], held["crawl_status"])
    assert (None, "enabled", 3600.0) == tuple(
        shop[name] for name in ("hold_reason", "crawl_status", "crawl_period_seconds")
    )
    assert {True} == {bool(each["has_token"]) for each in (held, shop)}


# ---- what Grafana asks, as a role that may read the views and nothing else

LEDGER = dashboard("cancel-worker-sql")
(CONNECTION,) = [each for each in LEDGER["templating"]["list"] if each["name"] == "connection"]


@pytest.fixture(scope="module")
def dashboards(make_database: Callable[[str], str], postgres: Any) -> Iterator[psycopg.Connection[Any]]:
    """A session of the role that docs/data.md makes, on a ledger with rows."""
    url = make_database("postgresql")
    engine = open_ledger(url)
    fill(engine)
    engine.dispose()
    (role,) = re.findall(r"^CREATE ROLE (\w+) ", DATA, re.MULTILINE)
    statements = re.findall(r"^(?:CREATE ROLE|GRANT) [^;]+;", DATA, re.MULTILINE)
    name = f"reader_{uuid.uuid4().hex}"
    with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)) as db:
        for statement in statements:
            db.execute(re.sub(rf"\b{role}\b", name, statement).encode())
        db.commit()
        db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        db.commit()
        yield db
        db.rollback()
        db.execute("RESET ROLE")
        db.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))
    postgres.drop(url)


def ask(db: psycopg.Connection[Any], query: str, connection: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    statement = with_variables(with_macros(query), {"connection": connection})
    with db.cursor() as cursor:
        cursor.execute(statement.encode())
        return [column.name for column in cursor.description or ()], cursor.fetchall()


@pytest.mark.parametrize("table", ["cancellations", "connections", "documents", "attempts", "audit"])
def test_the_role_of_the_dashboards_reads_no_table(dashboards: psycopg.Connection[Any], table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege), dashboards.transaction():
        dashboards.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table)))


def test_connections_are_chosen_by_their_names(dashboards: psycopg.Connection[Any]) -> None:
    columns, found = ask(dashboards, CONNECTION["query"], "")

    assert ["__value", "__text"] == columns
    assert [("held", "held"), ("shop", "The shop")] == sorted(found)


@pytest.mark.parametrize("panel", list(panels(LEDGER)), ids=lambda panel: f"{panel['id']} {panel['title']}")
@pytest.mark.parametrize("chosen", [CONNECTION["allValue"], "'shop','other'"], ids=["all", "two"])
def test_each_panel_is_answered_in_the_shape_that_it_shows(
    dashboards: psycopg.Connection[Any], panel: dict[str, Any], chosen: str
) -> None:
    (target,) = panel["targets"]
    columns, found = ask(dashboards, target["rawSql"], chosen)

    if panel["type"] == "stat":
        assert (1, 1) == (len(columns), len(found))
        assert isinstance(found[0][0], (int, float, Decimal))
    elif panel["type"] == "timeseries":
        assert ("time", "time_series") == (columns[0], target["format"])
        assert {"metric", "value"} == set(columns[1:]) or {"p50", "p95", "p99"} == set(columns[1:])
        assert found == sorted(found, key=lambda each: each[0])
    else:
        assert {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]} <= set(columns)
        assert "table" == target["format"]
    assert found


def figures(db: psycopg.Connection[Any], chosen: str) -> dict[str, float]:
    return {
        panel["title"]: float(ask(db, query, chosen)[1][0][0] or 0)
        for panel, query in queries(LEDGER)
        if panel["type"] == "stat"
    }


def test_the_figures_are_those_of_the_rows(dashboards: psycopg.Connection[Any]) -> None:
    found = figures(dashboards, CONNECTION["allValue"])

    waits = (datetime.now(UTC) - ROWS["new"]["received_at"]).total_seconds()
    assert pytest.approx(waits, abs=30) == found.pop("Oldest that waits")
    assert {
        "Contradicted": 1,
        "Waiting for proof": 1,
        "For a person": 1,
        "Held connections": 1,
        "Error rate": pytest.approx(3 / 7),
        "In flight": 1,
        "Came in": len(ROWS),
    } == found


def test_nothing_is_counted_of_a_connection_that_is_not_chosen(dashboards: psycopg.Connection[Any]) -> None:
    assert {0.0} == set(figures(dashboards, "'other'").values())
