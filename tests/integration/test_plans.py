"""What PostgreSQL reads for a job does not grow with the ledger, whatever was there when a statement was planned."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import psycopg
import pytest
from harness.answered import cancelled
from sqlalchemy import Engine, event, func, select, text, update

from worker.cancellation.proof import Prospect
from worker.cancellation.request import CancelRequest
from worker.cancellation.status import Status
from worker.ledger import (
    audit,
    backlog,
    claims,
    connections,
    deadlines,
    deliveries,
    delivery_notes,
    documents,
    feed,
    filters,
    freshness,
    gauges,
    outbox,
    outcomes,
    queries,
    refunds,
    rereads,
    results,
    retention,
    selection,
    told,
    transitions,
)
from worker.ledger.database import open_ledger
from worker.ledger.filters import Filter
from worker.ledger.schema import cancellations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from worker.ledger.vault import TokenVault

BATCH = 20
CROWD = 20_000


@pytest.fixture
def ledger(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as db:
        connections.add(db, "shop", vault.encrypt("token"))
        connections.add(db, "other", vault.encrypt("token"))
        for table in ("cancellations", "events", "attempts"):
            # Else a plan might be made anew, from numbers, just before it is looked at.
            db.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
    yield engine
    engine.dispose()


def live(ledger: Engine, size: int) -> None:
    """Take that many jobs from their acceptance to their published end."""
    jobs = [CancelRequest(connection_id="shop", order_id=uuid.uuid4().hex, priority="urgent") for _ in range(size)]
    with ledger.begin() as db:
        transitions.accept(db, jobs)
    with ledger.begin() as db:
        assert size == len(queries.find_standing(db, jobs))
        assert queries.get(db, jobs[0].record_id)
        assert queries.next_turn(db, "shop", "urgent", 50.0)
    unused, _ = transitions.claim_shares(ledger, {"shop": size, "other": 0}, "w-1", 60, {"shop": 1})
    with ledger.begin() as db:
        assert size == len(transitions.release_unsent(db, [claim.lease for claim in unused["shop"]]))
    claimed, _ = transitions.claim_shares(ledger, {"shop": size, "other": 1}, "w-1", 60, {})
    with ledger.begin() as db:
        events = results.commit_results(db, [cancelled(claim) for claim in claimed["shop"]]).events
    with ledger.begin() as db:
        outbox.mark_published(db, list(events))
    with ledger.begin() as db:
        deadlines.next_deadlines(db)
        transitions.requeue_unclaimed(db, 10)
        transitions.promote_due(db, 10)
        claims.take_over(db, "w-1", 60, 10)
        claims.claim_read_backs(db, 60, 10)
        selection.ready_connections(db)
        backlog.unsent(db, [job.record_id for job in jobs] + [head.record_id for head in backlog.heads(db)[0]])
    assert 2 * size == len(events)  # its end, and its refund


def crowd_of_waiting(db: Connection) -> None:
    db.execute(text(f"{CROWD_OF} 'pending', NULL, NULL FROM generate_series(1, {CROWD}) AS n"))


def crowd_of_ended(db: Connection) -> None:
    db.execute(text(f"{CROWD_OF} 'succeeded', now(), 'cancelled' FROM generate_series(1, {CROWD}) AS n"))


def crowd_of_claimed(db: Connection) -> None:
    """Many that were claimed, and are not any more: nothing has been vacuumed yet."""
    crowd_of_waiting(db)
    leased = {"lease_owner": "w-0", "lease_expires_at": datetime.now(UTC) + timedelta(hours=1)}
    over = {"ended_at": func.now(), "verdict": "cancelled", "lease_owner": None, "lease_expires_at": None}
    changes: list[dict[str, Any]] = [
        {"status": "in_flight", "claims": 1, **leased},
        {"status": "succeeded", **over},
    ]
    for change in changes:
        db.execute(update(cancellations).where(cancellations.c.ended_at.is_(None)).values(**change))


CROWD_OF = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at,
                               status, ended_at, verdict)
    SELECT gen_random_uuid(), 'shop', 'order-' || n, 'key-' || n, 'bulk', now(), now(),
"""


def entries_read(ledger: Engine) -> int:
    """How many rows and index entries were read in this database so far."""
    with ledger.begin() as db:
        db.execute(text("SELECT pg_stat_force_next_flush()"))
    with ledger.begin() as db:
        rows, entries = db.execute(
            text(
                "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname <> 'connections'),"
                " (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
            )
        ).one()
        return int(rows + entries)


@pytest.mark.parametrize("crowd", [crowd_of_waiting, crowd_of_ended, crowd_of_claimed])
def test_a_batch_reads_its_own_rows_in_a_crowd_that_came_after_the_plans(
    ledger: Engine, crowd: Callable[[Connection], None]
) -> None:
    for _ in range(10):
        live(ledger, 1)
    with ledger.begin() as db:
        crowd(db)
    live(ledger, BATCH)  # what has died in an index is seen once, and marked

    before = entries_read(ledger)
    live(ledger, BATCH)

    assert CROWD / 10 > entries_read(ledger) - before


# -- the order of turn is the index, and nothing is sorted that grows with what waits

TURN = "ix_cancellations_turn"
Plan = dict[str, Any]


CROWD_OF_ALL_RANKS = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, requested_at, received_at, status,
                               priority, send_by)
    SELECT gen_random_uuid(), CASE WHEN n % 10 = 0 THEN 'other' ELSE 'shop' END, 'order-' || n, 'key-' || n,
           now() - n * interval '1 s', now(), 'pending', (ARRAY['urgent', 'normal', 'bulk'])[1 + n % 3],
           CASE WHEN n % 2 = 0 THEN now() + n * interval '1 min' END
    FROM generate_series(1, :crowd) AS n
"""


def claim_in_turn(db: Connection) -> None:
    assert 25 == sum(map(len, transitions.claim_next(db, {"shop": 20, "other": 5}, "w-1", 60).values()))


def claim_a_probe(db: Connection) -> None:
    assert 1 == len(transitions.claim_next(db, {"shop": 1}, "w-1", 60, probes=True)["shop"])


def claim_the_oldest(db: Connection) -> None:
    assert 16 == len(transitions.claim_next(db, {"shop": 16}, "w-1", 60, aged={"shop": 16})["shop"])


def ask_when_a_job_is_sent(db: Connection) -> None:
    one = select(cancellations.c.id).where(cancellations.c.order_id == "order-1")
    assert queries.expected_at(db, str(db.execute(one).scalar_one()), 50.0)


def ask_whose_turn_is_next(db: Connection) -> None:
    assert queries.next_turn(db, "shop", "normal", 50.0)[0]


def look_at_the_heads(db: Connection) -> None:
    assert {"shop", "other"} == {head.connection_id for head in backlog.heads(db)[0]}


def statements_of(
    db: Connection, work: Callable[[Connection], object], on: tuple[str, ...] = ("cancellations", "documents", "audit")
) -> list[tuple[str, dict[str, Any]]]:
    """Run it, and return its statements on one of these tables, with their parameters."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def collect(_db: Connection, _cursor: Any, statement: str, parameters: dict[str, Any], *_: Any) -> None:
        if any(table in statement for table in on):
            seen.append((statement, parameters))

    event.listen(db, "before_cursor_execute", collect)
    work(db)
    event.remove(db, "before_cursor_execute", collect)
    return seen


def plan_of(db: Connection, statement: str, parameters: dict[str, Any], mode: str) -> Plan:
    """Run a statement, and return how: planned once for any parameters, or each time for those at hand."""
    placeholder = re.compile(r"%\(([^)]+)\)s")
    names = list(dict.fromkeys(placeholder.findall(statement)))
    numbered = placeholder.sub(lambda match: f"${names.index(match[1]) + 1}", statement).replace("%%", "%")
    given = f"({', '.join(['%s'] * len(names))})" if names else ""
    with psycopg.ClientCursor(db.connection.driver_connection) as cursor:
        cursor.execute(f"SET plan_cache_mode = {mode}")
        cursor.execute(f"PREPARE looked_at AS {numbered}")
        cursor.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE looked_at {given}", [parameters[name] for name in names]
        )
        ((found,),) = cursor.fetchall()
        cursor.execute("DEALLOCATE looked_at")
    return found[0]["Plan"]


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def rows_of(node: Plan) -> int:
    return int(node["Actual Rows"] * node["Actual Loops"])


def largest_sort(plan: Plan) -> int:
    """How many rows the largest sort of a plan was given."""
    sorts = (each for each in nodes(plan) if each["Node Type"] in {"Sort", "Incremental Sort"})
    return max((rows_of(child) for each in sorts for child in each["Plans"]), default=0)


def read_in_turn(plan: Plan) -> int:
    """How many entries of the index of turn were read."""
    return sum(rows_of(each) for each in nodes(plan) if each.get("Index Name") == TURN)


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("work", "most_read", "most_sorted"),
    [
        (claim_in_turn, 25, 0),
        (claim_a_probe, 1, 0),
        (claim_the_oldest, 6 * 16, 6 * 16),  # the heads of six ranges
        (ask_when_a_job_is_sent, CROWD * 6 // 10, 0),  # what is urgent or normal
        # What is urgent or normal; of bulk nothing. Where much is known to wait, it is fetched as it lies, and sorted.
        (ask_whose_turn_is_next, CROWD * 6 // 10, CROWD * 6 // 10),
        (look_at_the_heads, 2, 2),
    ],
)
def test_the_turn_is_read_from_its_index_and_not_sorted(
    ledger: Engine, work: Callable[[Connection], None], most_read: int, most_sorted: int, mode: str, analyzed: bool
) -> None:
    with ledger.begin() as db:
        db.execute(text(CROWD_OF_ALL_RANKS), {"crowd": CROWD})
    if analyzed:
        with ledger.begin() as db:
            db.execute(text("ANALYZE cancellations"))
    with ledger.connect() as db:
        ran = statements_of(db, work)
        db.rollback()
        plan = plan_of(db, *ran[-1], mode)
        db.rollback()

    assert 0 < read_in_turn(plan) <= most_read
    assert most_sorted >= largest_sort(plan)
    scanned = {each["Index Name"] for each in nodes(plan) if each.get("Index Name", TURN) != TURN}
    assert {"pk_cancellations", "pk_connections"} >= scanned


# -- what waits for a crawl is found among what has ended by its partial index

ENDED = 200_000
MANY_ENDED = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, requested_at, received_at, status,
                               priority, ended_at, verdict, reference_id, order_number, batch, requested_by)
    SELECT gen_random_uuid(), 'shop', 'order-' || n, 'key-' || n, now(), now() - n * interval '1 s',
           CASE n % 1000 WHEN 0 THEN 'exhausted' ELSE 'succeeded' END, 'normal',
           now() - interval '30 days', (ARRAY['cancelled', 'not_cancelled', 'accepted'])[1 + n % 3],
           'REF-' || n, '#' || n, 'batch-' || n % 100, 'oms'
    FROM generate_series(1, :crowd) AS n
"""
SOME_THAT_WAIT = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, requested_at, received_at, status,
                               priority, run_at, ended_at, verdict, known_by, confirm_at, needs_person)
    SELECT gen_random_uuid(), 'shop', 'waits-' || n, 'waits-' || n, now(), now(),
           CASE n % 2 WHEN 0 THEN 'waiting' ELSE 'rejected' END, 'normal',
           CASE n % 2 WHEN 0 THEN now() + interval '1 h' END, CASE n % 2 WHEN 1 THEN now() END,
           CASE n % 2 WHEN 1 THEN 'unknown' END, CASE WHEN n % 4 <> 1 THEN now() + interval '1 h' END,
           CASE n % 2 WHEN 1 THEN now() + interval '1 h' END, CASE n % 4 WHEN 1 THEN 'crawls_failing' END
    FROM generate_series(1, 40) AS n
"""


def read_what_waits_soon(db: Connection) -> None:
    assert 20 == rereads.read_soon(db, "shop", 1000)


def send_what_waits_soon(db: Connection) -> None:
    assert 20 == rereads.send_soon(db, "shop", 1000)


def say_anew_when_it_is_known(db: Connection) -> None:
    after = rereads.revise(db, "shop", lambda known: Prospect(None, known.known_by, known.needs_person), 5)
    assert rereads.revise(
        db, "shop", lambda known: Prospect(None, known.known_by, known.needs_person), 1000, after or ""
    ) is None  # fmt: skip


def compare_with_what_changed(db: Connection) -> None:
    # 10 of each verdict, and 10 that have ended and wait
    changed = [f"order-{n}" for n in range(1, 31)] + [f"waits-{n}" for n in range(1, 21)]
    assert 30 == len(rereads.watched_orders(db, "shop", changed))


def list_what_is_watched(db: Connection) -> None:
    assert ["shop"] == [each.connection_id for each in freshness.watched(db, 14 * 86_400)]


def count_who_is_affected(db: Connection) -> None:
    assert [20] == [each.count for each in connections.affected(db, "shop")]


def find_the_last_success(db: Connection) -> None:
    assert connections.last_success(db, "shop")


def rows_looked_at(plan: Plan) -> int:
    """How many rows of tables and entries of indexes a plan has read, with those that it left out again."""
    scans = (each for each in nodes(plan) if each["Node Type"].endswith("Scan") and "Relation Name" in each)
    return sum(rows_of(each) + each.get("Rows Removed by Filter", 0) * int(each["Actual Loops"]) for each in scans)


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("indexes", "most_read", "work"),
    [
        ({"ix_cancellations_unsettled"}, 40 + 20 + 20, read_what_waits_soon),
        ({"ix_cancellations_unsettled"}, 40 + 20 + 20, send_what_waits_soon),
        ({"ix_cancellations_unsettled"}, 40 + 2 * 20, say_anew_when_it_is_known),
        ({"ix_cancellations_order"}, 50 + 30 + 2 * 30, compare_with_what_changed),
        ({"ix_cancellations_unsettled", "ix_cancellations_watched"}, 4 * 40 + 10, list_what_is_watched),
        ({"ix_cancellations_turn", "ix_cancellations_due", "ix_cancellations_leased"}, 20, count_who_is_affected),
        # Beside what was rejected since.
        ({"ix_cancellations_watched"}, 20 + 1, find_the_last_success),
    ],
)
def test_what_waits_for_a_crawl_is_read_by_its_index_among_all_that_has_ended(
    many_ended: Engine, indexes: set[str], most_read: int, work: Callable[[Connection], None], analyzed: bool
) -> None:
    # What only a command of people asks may read all of a connection where there are no statistics.
    if analyzed or work is count_who_is_affected:
        with many_ended.begin() as db:
            db.execute(text("ANALYZE cancellations"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_ended.connect() as db:
            ran = statements_of(db, work)
            db.rollback()
            with db.begin() as looked:  # else nobody takes back what it has changed
                plan = plan_of(db, *ran[-1], mode)
                looked.rollback()

        scanned = {each["Index Name"] for each in nodes(plan) if "Index Name" in each}
        assert indexes <= scanned <= indexes | {"pk_cancellations", "pk_connections", "pk_freshness"}, mode
        assert 0 < rows_looked_at(plan) <= most_read, mode


# -- what people look for is found by its index, or in stretches


def looks_for(wanted: int, limit: int = 50, **which: Any) -> Callable[[Connection], None]:
    def look(db: Connection) -> None:
        assert wanted == len(filters.find(db, Filter(**which), limit=limit))

    return look


def give_up_on_what_is_rare(db: Connection) -> None:
    page = filters.find_page(db, Filter(requested_by="nobody"), look_at=61_000)
    assert [] == page.found
    assert page.after


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("most_read", "work"),
    [
        # The look itself, and the end of the stretch that it may look at.
        pytest.param(1001, looks_for(50), id="all"),
        pytest.param(2 * 6, looks_for(1, name="#4711"), id="name"),
        pytest.param(2 * 6, looks_for(1, name="order-4711"), id="order id as a name"),
        pytest.param(2 * 6, looks_for(1, reference="ref-4711"), id="reference"),
        pytest.param(2 * 6, looks_for(1, order_number="4711"), id="number"),
        pytest.param(1001, looks_for(50, batch="batch-7"), id="batch"),
        pytest.param(1001, looks_for(40, limit=40, connection_id="shop"), id="connection"),
        pytest.param(1, looks_for(0, connection_id="other"), id="a connection that has none"),
        pytest.param(1001, looks_for(100, limit=100, status=(Status.EXHAUSTED,)), id="what failed"),
        pytest.param(200, looks_for(20, status=(Status.WAITING,)), id="what waits"),
        pytest.param(200, looks_for(10, needs_person=True), id="what needs a person"),
        pytest.param(50_002, give_up_on_what_is_rare, id="rare"),
    ],
)
def test_what_people_look_for_is_read_by_its_index_among_all_that_has_ended(
    many_ended: Engine, most_read: int, work: Callable[[Connection], None], analyzed: bool
) -> None:
    if analyzed:
        with many_ended.begin() as db:
            db.execute(text("ANALYZE cancellations"))
    with many_ended.connect() as db:
        ran = statements_of(db, work)
        db.rollback()
        plans = [plan_of(db, *each, "force_custom_plan") for each in ran]  # as commands plan
        db.rollback()

    # Without statistics it may find the rows in an index first, and then look at each, or sort them.
    most = most_read if analyzed else 2 * most_read
    assert most >= max(map(rows_looked_at, plans))
    assert most >= max(map(largest_sort, plans))


@pytest.mark.parametrize(
    "which",
    [{}, {"batch": "batch-7"}, {"status": (Status.EXHAUSTED, Status.REJECTED)}],
    ids=str,
)
def test_where_a_stretch_ends_is_read_from_the_index_alone(many_ended: Engine, which: dict[str, Any]) -> None:
    with many_ended.begin() as db:
        db.execute(text("ANALYZE cancellations"))
    with many_ended.connect() as db:
        ran = statements_of(db, lambda db: filters.find_page(db, Filter(requested_by="nobody", **which)))
        db.rollback()
        plan = plan_of(db, *ran[0], "force_custom_plan")
        db.rollback()

    assert "Index Only Scan" in {each["Node Type"] for each in nodes(plan)}


def test_an_old_document_is_looked_for_in_its_index(many_ended: Engine) -> None:
    with many_ended.connect() as db:
        for work in (lambda db: documents.move_old(db, 200), deadlines.next_deadlines):
            ran = statements_of(db, work)
            plan = plan_of(db, *ran[-1], "force_generic_plan")
            assert "ix_cancellations_old_document" in {each.get("Index Name") for each in nodes(plan)}
        db.rollback()


# -- what is old enough is deleted, and nothing that is too young is looked at

YOUNG_DOCUMENTS = """
    INSERT INTO documents (cancellation_id, order_snapshot, kept_at)
    SELECT id, '{}', ended_at FROM cancellations WHERE ended_at IS NOT NULL ORDER BY received_at LIMIT 5000
"""


def prune_some_facts(db: Connection) -> None:
    assert retention.prune_facts(db, 86_400).after


def prune_no_facts(db: Connection) -> None:
    assert 0 == retention.prune_facts(db, 10 * 86_400).count


def prune_no_documents(db: Connection) -> None:
    assert 0 == retention.prune_documents(db, 31 * 86_400)


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("most_read", "work"),
    [
        # A batch, and its rows again to lock them.
        pytest.param(2 * retention.BATCH + 2, prune_some_facts, id="a batch"),
        pytest.param(1, prune_no_facts, id="no facts"),
        pytest.param(1, prune_no_documents, id="no documents"),
    ],
)
def test_what_is_pruned_is_read_by_its_age_and_nothing_that_is_too_young(
    many_ended: Engine, most_read: int, work: Callable[[Connection], None], analyzed: bool
) -> None:
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_ended.connect() as db:
            db.execute(text(YOUNG_DOCUMENTS))
            if analyzed:
                db.execute(text("ANALYZE cancellations, documents"))
            ran = statements_of(db, work)
            plan = plan_of(db, *ran[0], mode)
            db.rollback()

        assert most_read >= rows_looked_at(plan), mode


@pytest.fixture(scope="module")
def many_ended(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    """A ledger with much that has ended, and a little that waits for a crawl; no test changes it."""
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as db:
        for name in ("shop", "other"):
            connections.add(db, name, vault.encrypt("token"))
        db.execute(text("ALTER TABLE cancellations SET (autovacuum_enabled = off)"))
        db.execute(text("SET LOCAL statement_timeout = 0"))
        db.execute(text(MANY_ENDED), {"crowd": ENDED})
        db.execute(text(SOME_THAT_WAIT))
    yield engine
    engine.dispose()


# -- acts of people are found by an index, and no more are read than are shown

ACTS = 200_000
MANY_ACTS = """
    INSERT INTO audit (at, actor, action, target_kind, target_id)
    SELECT now() - n * interval '1 s', 'person-' || n % 1000, CASE WHEN n % 100 = 0 THEN 'prune' ELSE 'replay' END,
           'cancellation', CASE WHEN n % 1000 = 0 THEN 'one' ELSE 'target-' || n END
    FROM generate_series(1, :crowd) AS n
"""
SHOWN = 20


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({}, "ix_audit_at"),
        ({"since": datetime.now(UTC) - timedelta(days=1)}, "ix_audit_at"),
        ({"actor": "person-1"}, "ix_audit_actor"),
        ({"action": "prune"}, "ix_audit_action"),
        ({"target_id": "one", "kind": "cancellation"}, "ix_audit_target_id"),
        ({"actor": "person-1", "since": datetime.now(UTC) - timedelta(days=1)}, "ix_audit_actor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "all",
)
def test_acts_are_read_from_an_index_the_newest_first_and_no_others(
    many_acts: Engine, asked: dict[str, Any], index: str, analyzed: bool
) -> None:
    if analyzed:
        with many_acts.begin() as db:
            db.execute(text("ANALYZE audit"))
    with many_acts.connect() as db:
        ran = statements_of(db, lambda db: audit.find(db, **asked, limit=SHOWN))
        db.rollback()
        plan = plan_of(db, *ran[-1], "force_custom_plan")
        db.rollback()

    assert {index} == {each["Index Name"] for each in nodes(plan) if "Index Name" in each}
    assert (SHOWN, 0) == (rows_looked_at(plan), largest_sort(plan))


@pytest.fixture(scope="module")
def many_acts(make_database: Callable[[str], str]) -> Iterator[Engine]:
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as db:
        db.execute(text("ALTER TABLE audit SET (autovacuum_enabled = off)"))
        db.execute(text(MANY_ACTS), {"crowd": ACTS})
    yield engine
    engine.dispose()


# -- outcomes are counted from the newest rows, however many there are

RECENT = 5_000
MANY_AGES = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, requested_at, received_at, status,
                               priority, first_sent_at, ended_at, verdict, evidence, order_created_at)
    SELECT gen_random_uuid(), CASE n % 2 WHEN 0 THEN 'shop' ELSE 'other' END, 'o-' || n, 'k-' || n, t, t,
           'succeeded', 'normal', t, t, 'cancelled', 'response', t - n * interval '1 s'
    FROM (SELECT n, now() - n * interval '10 s' AS t FROM generate_series(1, :crowd) AS n) AS made
"""


def count_all_outcomes(db: Connection) -> None:
    assert RECENT == sum(cell.tally.trials for cell in outcomes.of_all(db, most=RECENT).cells)


def count_one_connection(db: Connection) -> None:
    assert RECENT / 2 == sum(cell.tally.trials for cell in outcomes.of_connection(db, "other", most=RECENT).cells)


def count_one_system(db: Connection) -> None:
    assert RECENT == outcomes.of_integration(db, "nobody", most=RECENT).rows


def count_one_hour(db: Connection) -> None:
    assert 360 >= outcomes.of_all(db, days=1 / 24, most=RECENT).rows > 100


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("work", "most_read"),
    [(count_all_outcomes, RECENT), (count_one_connection, RECENT), (count_one_system, RECENT), (count_one_hour, 361)],
)
def test_outcomes_are_counted_from_the_newest_by_the_index_of_their_receipt(
    many_outcomes: Engine, work: Callable[[Connection], None], most_read: int, analyzed: bool
) -> None:
    if analyzed:
        with many_outcomes.begin() as db:
            db.execute(text("ANALYZE cancellations"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_outcomes.connect() as db:
            ran = statements_of(db, work)
            plan = plan_of(db, *ran[-1], mode)
            db.rollback()

        scanned = {each["Index Name"] for each in nodes(plan) if "Index Name" in each}
        by_receipt = {"ix_cancellations_received_at", "ix_cancellations_connection"}  # of all, of one connection
        assert scanned & by_receipt, mode
        assert scanned <= {*by_receipt, "pk_connections"}, mode
        # Without statistics the days alone are the bound: each row of theirs once, and its connection.
        assert 0 < rows_looked_at(plan) <= (most_read + 2 if analyzed else 2 * ENDED), mode


@pytest.fixture(scope="module")
def many_outcomes(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as db:
        for name in ("shop", "other"):
            connections.add(db, name, vault.encrypt("token"), integration_name=name)
        db.execute(text("ALTER TABLE cancellations SET (autovacuum_enabled = off)"))
        db.execute(text("SET LOCAL statement_timeout = 0"))
        db.execute(text(MANY_AGES), {"crowd": ENDED})
    yield engine
    engine.dispose()


# -- the gauges of /metrics read what is live, whatever has ended


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
def test_the_gauges_read_what_is_live_among_all_that_has_ended(many_ended: Engine, analyzed: bool) -> None:
    if analyzed:
        with many_ended.begin() as db:
            db.execute(text("ANALYZE"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_ended.connect() as db:
            ((statement, parameters),) = statements_of(db, lambda each: gauges.read(each, 50.0))
            plan = plan_of(db, statement, parameters, mode)
            db.rollback()

        names = {each["Index Name"] for each in nodes(plan) if "Index Name" in each}
        assert {"ix_cancellations_turn", "ix_cancellations_due", "ix_cancellations_unsettled"} <= names, mode
        assert set() == names & {"pk_cancellations", "ix_cancellations_received_at", "ix_cancellations_watched"}, mode
        assert [] == [
            each
            for each in nodes(plan)
            if each.get("Relation Name") == "cancellations" and each["Node Type"] == "Seq Scan"
        ], mode
        assert 4 * 40 > rows_looked_at(plan), mode


def test_the_gauges_count_what_waits_once_and_read_only_the_heads_of_each_priority(ledger: Engine) -> None:
    with ledger.begin() as db:
        crowd_of_waiting(db)  # none of them has a send_by
    for mode in ("force_generic_plan", "force_custom_plan"):
        with ledger.connect() as db:
            ((statement, parameters),) = statements_of(db, lambda each: gauges.read(each, 50.0))
            plan = plan_of(db, statement, parameters, mode)
            db.rollback()

        assert CROWD + 100 > rows_looked_at(plan), mode


# -- the views of the dashboards find what came in a stretch of time by the index of its receipt

MINUTES = "received_at BETWEEN now() - interval '65 min' AND now() - interval '60 min'"
IN_THEM = 300
AN_ATTEMPT_OF_EACH = """
    INSERT INTO attempts (cancellation_id, number, kind, generation, started_at, duration_ms, status, reason, replayed)
    SELECT id, 1, 'cancel', 1, received_at, 100, 200, 'accepted', false FROM cancellations
"""
OPEN_ONES = "needs_person IS NOT NULL AND ended_at IS NOT NULL"


@pytest.mark.parametrize(
    ("view", "condition", "indexes", "most_read"),
    [
        # Each with its connection, and its attempt.
        ("cancellation_outcomes_v1", MINUTES, {"ix_cancellations_received_at"}, 2 * IN_THEM + 5),
        ("cancellation_outcomes_v1", f"{MINUTES} AND connection_id IN ('other')", {"ix_cancellations_connection"}, 1),
        ("attempts_v1", MINUTES, {"ix_cancellations_received_at", "pk_attempts"}, 3 * IN_THEM + 5),
        ("cancellation_outcomes_v1", OPEN_ONES, {"ix_cancellations_unsettled"}, 4 * 40),
    ],
    ids=["outcomes", "of a connection", "attempts", "open"],
)
def test_a_view_is_read_by_an_index_where_a_dashboard_asks_for_a_stretch_of_time_or_for_what_is_open(
    many_ended: Engine, view: str, condition: str, indexes: set[str], most_read: int
) -> None:
    with many_ended.connect() as db:
        db.execute(text("SET LOCAL enable_seqscan = on"))  # whoever reads a view is no worker
        db.execute(text("SET LOCAL statement_timeout = 0"))
        db.execute(text(AN_ATTEMPT_OF_EACH))
        db.execute(text("ANALYZE cancellations, attempts, connections"))
        # Every column, as if all of them were shown.
        query = f"SELECT max(shown::text) FROM (SELECT * FROM {view} WHERE {condition}) AS shown"  # noqa: S608 - ours
        plan = plan_of(db, query, {}, "force_custom_plan")
        db.rollback()

    assert indexes <= {each["Index Name"] for each in nodes(plan) if "Index Name" in each}
    assert most_read >= rows_looked_at(plan)


# -- the feed reads what it tells, and whoever proves an order reads that order

EVENTS = 100_000
MANY_EVENTS = """
    INSERT INTO events (cancellation_id, type, payload, created_at, place)
    SELECT id, 'cancellation.ended', '{}', received_at, row_number() OVER (ORDER BY received_at)
    FROM cancellations WHERE ended_at IS NOT NULL ORDER BY received_at
"""
MANY_REFUNDS = """
    INSERT INTO refunds (connection_id, order_id, told, proofs, changed_at)
    SELECT connection_id, order_id, 'released', 1, received_at FROM cancellations WHERE ended_at IS NOT NULL
"""
NEW_EVENTS = """
    INSERT INTO events (cancellation_id, type, payload, created_at)
    SELECT id, 'cancellation.ended', '{}', now() FROM cancellations WHERE ended_at IS NOT NULL LIMIT 2000
"""
FORGET_PLACES = "UPDATE events SET place = NULL"


def ask_whether_one_waits(db: Connection) -> None:
    assert not feed.without_place(db)


def ask_whether_one_of_these_waits(db: Connection) -> None:
    assert not feed.without_place(db, feed.newest_number(db))


def read_a_page(db: Connection) -> None:
    assert feed.MAX_READ == len(feed.read_feed(db, EVENTS // 2))


def find_a_place_of_today(db: Connection) -> None:
    assert 0 < EVENTS - feed.place_since(db, datetime.now(UTC)) < 400  # one a second, and five minutes earlier


def read_some(db: Connection) -> None:
    some = db.execute(text("SELECT id FROM events ORDER BY id LIMIT 500 OFFSET 50000")).scalars()
    assert 500 == len(told.read_told(db, list(some)))


def prune_no_refunds(db: Connection) -> None:
    assert 0 == retention.prune_refunds(db, 10 * 86_400)


def prove_some(db: Connection) -> None:
    proven = [
        refunds.proven_by("x", "not_cancelled", {"connection_id": "shop", "order_id": f"order-{n}"})
        for n in range(1, 21)
    ]
    assert [] == refunds.refund_events(db, proven)


ON = ("events", "refunds", "cancellations")


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("most_read", "work"),
    [
        (1, ask_whether_one_waits),
        (1, ask_whether_one_of_these_waits),
        (3 * feed.MAX_READ, read_a_page),
        (400, find_a_place_of_today),
        (3 * 500, read_some),
        (1, prune_no_refunds),
        (4 * 20, prove_some),
    ],
)
def test_the_feed_reads_what_it_tells_and_no_more(
    many_told: Engine, most_read: int, work: Callable[[Connection], None], analyzed: bool
) -> None:
    if analyzed:
        with many_told.begin() as db:
            db.execute(text("ANALYZE"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_told.connect() as db:
            ran = [each for each in statements_of(db, work, ON) if "OFFSET" not in each[0]]
            db.rollback()
            plans = [plan_of(db, *each, mode) for each in ran]
            db.rollback()

        assert ran
        for (statement, _), plan in zip(ran, plans, strict=True):
            assert most_read >= rows_looked_at(plan), (mode, statement)
            assert {"Seq Scan"} & {each["Node Type"] for each in nodes(plan)} <= set(), (mode, statement)


@pytest.mark.parametrize("before", [NEW_EVENTS, FORGET_PLACES], ids=["few of many", "all of many"])
def test_places_are_given_to_a_batch_whatever_waits_behind_it(many_told: Engine, before: str) -> None:
    with many_told.begin() as db:  # without statistics of `place` it may sort up to 200,000 that wait
        db.execute(text("ANALYZE"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_told.connect() as db:
            db.execute(text(before))
            ran = statements_of(db, feed.give_places, ("UPDATE events",))
            plan = plan_of(db, *ran[0], mode)
            db.rollback()

        rows = [each for each in nodes(plan) if each.get("Relation Name") == "events"]
        # Chosen, chosen again to be locked, and written; of what was in the index before, each entry once.
        assert 3 * feed.MAX_PLACED >= sum(rows_of(each) for each in rows if each["Node Type"] != "ModifyTable"), mode
        assert "Seq Scan" not in {each["Node Type"] for each in rows}, mode


# -- webhooks read what they send, whatever waits for endpoints, and whatever was tried

READY, FAILING, TO_EACH = 50, 50, 1000
MANY_ENDPOINTS = """
    INSERT INTO endpoints (id, url, secret, state, place, failures, retry_at, created_at)
    SELECT 'ep-' || n, 'https://oms.example/', 'encrypted', 'active', :events - 1000,
           CASE WHEN n > :ready THEN 3 ELSE 0 END, now() - interval '1 s', now()
    FROM generate_series(1, :ready + :failing) AS n
"""
# In pairs of one order, of which the second waits for the first; of those that fail, all waits for a later try.
MANY_DELIVERIES = """
    INSERT INTO deliveries (endpoint_id, event_number, subject, due_at, tries)
    SELECT e.id, n, 'order-' || n / 2, now() + CASE WHEN e.failures = 0 THEN '-1 s' ELSE '1 h' END::interval, 0
    FROM endpoints AS e, generate_series(1, :each) AS n ORDER BY n, e.id
"""
MANY_TRIES = """
    INSERT INTO delivery_tries (endpoint_id, event_number, try, at, duration_ms, status, reason)
    SELECT 'ep-' || n % 100, n, 1, now() - interval '30 days' + n * interval '1 s', 20, 200, 'delivered'
    FROM generate_series(1, :tries) AS n
"""
TRIES = 200_000
OF_WEBHOOKS = ("deliveries", "delivery_tries", "endpoints", "events")


def lanes_of(db: Connection) -> list[deliveries.Lane]:
    return deliveries.take(db, "w-1", 60, ["ep-1"])


def ask_whether_an_endpoint_waits(db: Connection) -> None:
    assert deliveries.has_work(db)


def take_endpoints(db: Connection) -> None:
    assert READY == len(lanes_of(db))


def look_at_mine(db: Connection) -> None:
    assert [] == deliveries.mine(db, "w-1", [f"ep-{n}" for n in range(1, 21)])


def fan_out_to_all_that_are_full(db: Connection) -> None:
    assert ([], False) == deliveries.fan_out(db, lanes_of(db))


def fan_out_to_one(db: Connection) -> None:
    (lane,) = (each for each in lanes_of(db) if each.id == "ep-1")
    lane.id = "ep-0"  # for which nothing waits
    lane.types = ["nothing"]
    read, more = deliveries.fan_out(db, [lane])
    assert (deliveries.MAX_READ, True) == (len(read), more)


def choose_from_each(db: Connection) -> None:
    assert 4 * READY == len(deliveries.choose(db, lanes_of(db), 4))


def choose_of_one_that_fails(db: Connection) -> None:
    lane = lanes_of(db)[0]
    lane.standing = msgspec.structs.replace(lane.standing, failures=1)
    assert 4 == len(deliveries.choose(db, [lane], 4))


def note_what_was_delivered(db: Connection) -> None:
    note_tries(db, delivered=True)


def note_what_was_refused(db: Connection) -> None:
    note_tries(db, delivered=False)


def note_tries(db: Connection, *, delivered: bool) -> None:
    at, wait = datetime.now(UTC), None if delivered else 5.0
    told_ = {"status": 200 if delivered else 500, "reason": "told", "delivered": delivered, "wait": wait}
    some = [deliveries.Due(f"ep-{n}", n, 0) for n in range(1, 21)]
    delivery_notes.note(db, [delivery_notes.Note(due=each, at=at, duration_ms=9, **told_) for each in some])


def drop_what_is_gone(db: Connection) -> None:
    delivery_notes.drop(db, [deliveries.Due("ep-1", n, 0) for n in range(1, 21)])


def bring_forward_one_endpoint(db: Connection) -> None:
    assert TO_EACH == delivery_notes.bring_forward(db, f"ep-{READY + 1}")


def prune_some_tries(db: Connection) -> None:
    assert retention.BATCH == retention.prune_tries(db, 28 * 86_400)


def prune_no_tries(db: Connection) -> None:
    assert 0 == retention.prune_tries(db, 40 * 86_400)


LANES = READY + FAILING


@pytest.mark.parametrize("analyzed", [False, True], ids=["no statistics", "analyzed"])
@pytest.mark.parametrize(
    ("most_read", "at", "work"),  # which of its statements
    [
        (LANES + 10, -1, ask_whether_an_endpoint_waits),
        # Each, its first delivery and what is before it of its order, and itself written; of those that fail, whether
        # one is full.
        (4 * LANES + FAILING * TO_EACH, -1, take_endpoints),
        (LANES, -1, look_at_mine),
        (READY * (1 + TO_EACH), -1, fan_out_to_all_that_are_full),
        (3 * deliveries.MAX_READ, -2, fan_out_to_one),
        (READY * (1 + 8 * 2), -1, choose_from_each),  # every second one waits for the one before it
        (2 * TO_EACH, -1, choose_of_one_that_fails),
        (2 * 20, 0, note_what_was_delivered),
        (2 * 20, 0, note_what_was_refused),
        (2 * 20, -1, drop_what_is_gone),
        (TO_EACH, -1, bring_forward_one_endpoint),
        (2 * retention.BATCH, -1, prune_some_tries),
        (retention.BATCH, -1, prune_no_tries),
    ],
)
def test_webhooks_read_what_they_send_and_no_more(
    many_told: Engine, most_read: int, at: int, work: Callable[[Connection], None], analyzed: bool
) -> None:
    if analyzed:
        with many_told.begin() as db:
            db.execute(text("ANALYZE"))
    for mode in ("force_generic_plan", "force_custom_plan"):
        with many_told.connect() as db:
            ran = statements_of(db, work, OF_WEBHOOKS)
            db.rollback()
            statement, parameters = ran[at]
            db.execute(text("SELECT 1"))  # begins a transaction: what is planned may write
            plan = plan_of(db, statement, parameters[0] if isinstance(parameters, list) else parameters, mode)
            db.rollback()

        assert most_read >= rows_looked_at(plan), (mode, statement)
        # Endpoints are few.
        scans = {each["Relation Name"] for each in nodes(plan) if each["Node Type"] == "Seq Scan"}
        assert scans <= {"endpoints"}, (mode, statement)


@pytest.fixture(scope="module")
def many_told(make_database: Callable[[str], str], vault: TokenVault) -> Iterator[Engine]:
    """A ledger with much that was told, all of it with its place, and much to be sent; no test changes it."""
    engine = open_ledger(make_database("postgresql"), pool_size=1, plan_once=True)
    with engine.begin() as db:
        connections.add(db, "shop", vault.encrypt("token"))
        for table in ("cancellations", "events", "refunds", "endpoints", "deliveries", "delivery_tries"):
            db.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
        db.execute(text("SET LOCAL statement_timeout = 0"))
        db.execute(text(MANY_ENDED), {"crowd": EVENTS})
        db.execute(text(MANY_EVENTS))
        db.execute(text(MANY_REFUNDS))
        db.execute(text("INSERT INTO cursors VALUES ('', :end, now())"), {"end": EVENTS})
        db.execute(text(MANY_ENDPOINTS), {"events": EVENTS, "ready": READY, "failing": FAILING})
        db.execute(text(MANY_DELIVERIES), {"each": TO_EACH})
        db.execute(text(MANY_TRIES), {"tries": TRIES})
    yield engine
    engine.dispose()
