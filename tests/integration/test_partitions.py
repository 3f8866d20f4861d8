"""What partitions of PostgreSQL do to the ledger: which tables may have them by time, and which must not.

Each test partitions a copy of the migrated schema by hand; nothing of ours makes partitions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from harness.answered import cancelled
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import NotSupportedError

from worker.cancellation.request import CancelRequest
from worker.ledger import connections, outbox, queries, results, retention, transitions
from worker.ledger.database import open_ledger
from worker.ledger.feed_reader import FeedReader
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.ledger.vault import TokenVault

SHOP = "shop-1"
MONTHS, A_MONTH = 12, 1_000  # rows of each month
MANY = 50_000  # events: to delete them takes long enough to be measured
BY_TIME, BY_HASH, BY_NUMBER = "RANGE (received_at)", "HASH (id)", "RANGE (id)"
A_YEAR = """
    INSERT INTO cancellations (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at,
                               status, ended_at, verdict)
    SELECT gen_random_uuid(), 'shop-1', 'old-' || n, 'old-' || n, 'normal', at, at, 'succeeded', at, 'cancelled'
    FROM (SELECT n, now() - interval '1 h' - n * interval '365 days' / :crowd AS at
          FROM generate_series(1, :crowd) AS n) AS old
"""
EVENTS = """
    INSERT INTO events (type, payload, created_at)
    SELECT 'trackstar.held', '{"connections": 1}', now() - interval '400 days' FROM generate_series(1, :crowd)
"""
READ = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname LIKE 'cancellations%'"


@pytest.fixture
def ledger(postgres: Any, vault: TokenVault) -> Iterator[Engine]:
    url = postgres.migrated()
    engine = open_ledger(url, plan_once=True)
    with engine.begin() as db:
        connections.add(db, SHOP, vault.encrypt("token"))
    yield engine
    engine.dispose()
    postgres.drop(url)


def partition(db: Connection, table: str, by: str, key: str) -> None:
    """Give a table without rows partitions, with all that it has but the keys of others to it, and the views on it."""
    kept = db.execute(text("SELECT indexdef FROM pg_indexes WHERE tablename = :t"), {"t": table}).scalars().all()
    for sequence in db.execute(text("SELECT pg_get_serial_sequence(:t, 'id')"), {"t": table}).scalars():
        if sequence:
            db.exec_driver_sql(f"ALTER SEQUENCE {sequence} OWNED BY NONE")
    db.exec_driver_sql(f"CREATE TABLE copy (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY {by}")
    db.exec_driver_sql(f"DROP TABLE {table} CASCADE")
    db.exec_driver_sql(f"ALTER TABLE copy RENAME TO {table}")
    db.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({key})")
    for index in kept:
        if "UNIQUE" not in index:
            db.exec_driver_sql(index)


def by_time(db: Connection) -> None:
    """Partition `cancellations` by the month of their receipt."""
    partition(db, "cancellations", BY_TIME, "id, received_at")
    for month in range(-MONTHS - 1, 2):
        db.execute(
            text(f"""
            DO $$ DECLARE first timestamptz := date_trunc('month', now()) + interval '{month} months'; BEGIN
            EXECUTE format('CREATE TABLE cancellations_{month + MONTHS + 1} PARTITION OF cancellations
                            FOR VALUES FROM (%L) TO (%L)', first, first + interval '1 month'); END $$""")
        )


def by_hash(db: Connection) -> None:
    """Partition `cancellations` by their ids, to which `attempts` and `documents` refer as before."""
    partition(db, "cancellations", BY_HASH, "id")
    for part in range(4):
        values = f"FOR VALUES WITH (MODULUS 4, REMAINDER {part})"
        db.exec_driver_sql(f"CREATE TABLE cancellations_{part} PARTITION OF cancellations {values}")
    for table in ("attempts", "documents"):
        db.exec_driver_sql(f"ALTER TABLE {table} ADD FOREIGN KEY (cancellation_id) REFERENCES cancellations (id)")


def events_by_number(db: Connection, size: int) -> None:
    """Partition `events` by their numbers, which grow with time."""
    partition(db, "events", BY_NUMBER, "id")
    for part in range(2):
        values = f"FOR VALUES FROM ({part * size}) TO ({(part + 1) * size})"
        db.exec_driver_sql(f"CREATE TABLE events_{part} PARTITION OF events {values}")


def jobs(*names: str) -> list[CancelRequest]:
    return [CancelRequest(connection_id=SHOP, order_id=name) for name in names]


def accept(ledger: Engine, *names: str) -> None:
    with ledger.begin() as db:
        transitions.accept(db, jobs(*names))


def end_all(ledger: Engine, many: int) -> None:
    claimed, _ = transitions.claim_shares(ledger, {SHOP: many}, "w-1", 60, {})
    assert many == len(claimed[SHOP])
    with ledger.begin() as db:
        told = results.commit_results(db, [cancelled(claim) for claim in claimed[SHOP]]).events
    with ledger.begin() as db:
        outbox.mark_published(db, list(told))


def feed_of(ledger: Engine) -> list[str]:
    reader = FeedReader(ledger)
    return [each.cursor for each in reader.follow(reader.start(None, None), timeout=0.0)]


def statuses(ledger: Engine) -> list[str]:
    with ledger.connect() as db:
        return list(db.execute(select(cancellations.c.status)).scalars())


# -- `cancellations` by time: not possible without giving up that an intent is one record


def test_by_time_the_id_alone_can_be_no_key(ledger: Engine) -> None:
    with pytest.raises(NotSupportedError, match="must include all partitioning columns"), ledger.begin() as db:
        partition(db, "cancellations", BY_TIME, "id")


def test_by_time_an_intent_that_is_stated_again_a_month_later_is_a_second_record_and_a_second_cancel(
    ledger: Engine,
) -> None:
    with ledger.begin() as db:
        by_time(db)
    accept(ledger, "o-1")
    end_all(ledger, 1)
    with ledger.begin() as db:
        db.exec_driver_sql("UPDATE cancellations SET received_at = received_at - interval '1 month'")
    accept(ledger, "o-1")

    assert ["pending", "succeeded"] == sorted(statuses(ledger))


# -- `cancellations` by hash of the id: all keys stay


@pytest.mark.parametrize("prepare", [None, by_hash], ids=["as it is", "by hash"])
def test_by_hash_of_the_id_a_job_lives_as_without_partitions(
    ledger: Engine, prepare: Callable[[Connection], None] | None
) -> None:
    if prepare:
        with ledger.begin() as db:
            prepare(db)
    names = [f"o-{number}" for number in range(20)]
    accept(ledger, *names)
    accept(ledger, *names)  # the same intents
    end_all(ledger, len(names))
    accept(ledger, *names)

    assert ["succeeded"] * len(names) == statuses(ledger)
    with ledger.begin() as db:
        assert len(names) == len(queries.find_standing(db, jobs(*names)))
        assert len(names) == retention.prune_facts(db, seconds=-60.0).count
    assert [] == statuses(ledger)


# -- `events` by their numbers: works as it is


def test_events_by_number_are_told_and_read_and_an_old_part_is_detached(ledger: Engine) -> None:
    with ledger.begin() as db:
        events_by_number(db, A_MONTH)
        db.execute(text(EVENTS), {"crowd": A_MONTH - 5})
    accept(ledger, "o-1", "o-2")
    end_all(ledger, 2)
    accept(ledger, "o-3", "o-4")
    end_all(ledger, 2)
    found = feed_of(ledger)
    with ledger.begin() as db:
        numbers = db.execute(select(events.c.id).order_by(events.c.id)).scalars().all()
        db.exec_driver_sql("ALTER TABLE events DETACH PARTITION events_0")
    left = feed_of(ledger)

    young = sum(number >= A_MONTH for number in numbers)
    assert 0 < young < len(numbers)
    assert len(numbers) == len(found)
    assert found[-young:] == left


def test_to_detach_a_part_of_events_takes_less_than_to_delete_its_rows(ledger: Engine) -> None:
    with ledger.begin() as db:
        events_by_number(db, MANY)
        db.execute(text(EVENTS), {"crowd": 2 * MANY - 1})

    def seconds(statement: str) -> float:
        began = time.perf_counter()
        with ledger.begin() as db:
            db.exec_driver_sql(statement)
        return time.perf_counter() - began

    deleted = seconds(f"DELETE FROM events WHERE id >= {MANY}")  # noqa: S608
    assert deleted > seconds("ALTER TABLE events DETACH PARTITION events_0")
    with ledger.connect() as db:
        assert [] == list(db.execute(select(events.c.id)))


# -- what is due among a year of months


@pytest.mark.parametrize("prepare", [None, by_time], ids=["as it is", "by time"])
def test_a_claim_among_a_year_of_rows_reads_its_own_with_partitions_and_without(
    ledger: Engine, prepare: Callable[[Connection], None] | None
) -> None:
    with ledger.begin() as db:
        if prepare:
            prepare(db)
        db.execute(text(A_YEAR), {"crowd": MONTHS * A_MONTH})
    accept(ledger, *(f"o-{number}" for number in range(50)))
    before = read(ledger)
    end_all(ledger, 20)

    assert A_MONTH / 2 > read(ledger) - before


def read(ledger: Engine) -> int:
    """How many entries of indexes of `cancellations` were read so far."""
    with ledger.begin() as db:
        db.execute(text("SELECT pg_stat_force_next_flush()"))
    with ledger.begin() as db:
        return int(db.execute(text(READ)).scalar_one())
