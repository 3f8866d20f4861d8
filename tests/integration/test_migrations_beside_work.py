"""Migrations of a ledger that is in use: who writes does not wait for them, and one that was cut off goes on."""

from __future__ import annotations

from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from worker.ledger import index_builds, migrations
from worker.ledger.database import open_ledger, read_only

if TYPE_CHECKING:
    from collections.abc import Iterator

BEFORE_TABLES_CHANGE = "a83d51c7e2f6"
BEFORE_INDEXES = "a4e7b9d02c15"
BEFORE_TWO_TABLES = "e7a4b19d5c63"  # the next one locks `connections`, then `cancellations`
WITH_INDEXES, ADDED = "a5d8c03e71f2", 6  # indexes of `cancellations`
A_ROW = (
    "INSERT INTO connections (id, hold_reason, held_at, created_at, updated_at)"
    " VALUES ('shop-1', 'operator', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
    "INSERT INTO cancellations"
    " (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status) VALUES"
    " ('00000000-0000-5000-8000-000000000001', 'shop-1', 'o-1', 'k', 'normal', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP,"
    " 'pending')",
)
BUILDING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND query LIKE 'CREATE INDEX CONC%'"
)
CHANGING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND query LIKE 'ALTER TABLE cancellations%'"
)
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"


@pytest.fixture
def url(postgres: Any) -> Iterator[str]:
    made = postgres.empty()
    yield made
    postgres.drop(made)


@pytest.fixture
def ledger(url: str) -> Iterator[Engine]:
    engine = open_ledger(url)
    yield engine
    engine.dispose()


class Migration(Thread):
    """A migration in a thread of its own, and what it says."""

    def __init__(self, ledger: Engine) -> None:
        super().__init__(daemon=True)
        self.said: SimpleQueue[str] = SimpleQueue()
        self.error: Exception | None = None
        self._ledger = ledger

    def run(self) -> None:
        try:
            migrations.migrate(self._ledger, waiting=self.said.put)
        except DBAPIError as error:
            self.error = error


@contextmanager
def migrating(ledger: Engine) -> Iterator[Migration]:
    made = Migration(ledger)
    made.start()
    yield made
    made.join(60)
    assert not made.is_alive()


@contextmanager
def reader(ledger: Engine) -> Iterator[Any]:
    """A transaction that has read both tables, and keeps its snapshot until it is rolled back."""
    with ledger.connect() as db:
        db.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        db.exec_driver_sql("SELECT 1 FROM connections")
        db.exec_driver_sql("SELECT 1 FROM cancellations")
        yield db


def write(ledger: Engine) -> None:
    with ledger.begin() as db:
        if ledger.dialect.name != "sqlite":
            db.exec_driver_sql("SET LOCAL lock_timeout = '4s'")
        for statement in A_ROW:
            db.exec_driver_sql(statement)


def ask(ledger: Engine, query: str) -> Any:
    with read_only(ledger) as db:
        return db.execute(text(query)).scalar()


def wait_for_the_build(ledger: Engine, migration: Migration) -> int:
    """Return the session that builds an index and waits for an older transaction."""
    while not (pid := ask(ledger, BUILDING)):
        migration.join(0.05)
        assert migration.is_alive()
    return int(pid)


def revision(ledger: Engine) -> str | None:
    with read_only(ledger) as db:
        return migrations.current(db)


def test_a_long_transaction_holds_a_migration_up_and_nobody_behind_it(ledger: Engine) -> None:
    migrations.migrate(ledger, BEFORE_TABLES_CHANGE)
    with reader(ledger) as long, migrating(ledger) as migration:
        assert "trying again" in migration.said.get(timeout=30)
        write(ledger)
        assert migration.is_alive()
        long.rollback()

    assert migrations.head() == revision(ledger)
    migrations.check(ledger)


def test_a_migration_that_waits_for_who_waits_for_it_tries_again(ledger: Engine) -> None:
    """PostgreSQL ends one of the two."""
    migrations.migrate(ledger, BEFORE_TWO_TABLES)
    with ledger.connect() as other, other.begin():
        other.exec_driver_sql("SET LOCAL deadlock_timeout = '1min'")  # so that it is the migration
        other.exec_driver_sql("LOCK TABLE cancellations IN ROW EXCLUSIVE MODE")
        with migrating(ledger) as migration:
            while not ask(ledger, CHANGING):
                migration.join(0.05)
                assert migration.is_alive()
            other.exec_driver_sql("LOCK TABLE connections IN ROW EXCLUSIVE MODE")
            assert "trying again" in migration.said.get(timeout=30)
            other.rollback()

    assert migration.error is None
    assert migrations.head() == revision(ledger)


def test_rows_are_written_while_an_index_is_built(ledger: Engine) -> None:
    migrations.migrate(ledger, BEFORE_INDEXES)
    with reader(ledger) as long, migrating(ledger) as migration:
        wait_for_the_build(ledger, migration)
        write(ledger)
        assert migration.is_alive()
        long.rollback()

    assert migrations.head() == revision(ledger)


def test_a_build_that_was_cut_off_is_made_anew(ledger: Engine) -> None:
    migrations.migrate(ledger, BEFORE_INDEXES)
    with reader(ledger) as long:
        with migrating(ledger) as migration:
            pid = wait_for_the_build(ledger, migration)
            ask(ledger, f"SELECT pg_terminate_backend({pid})")
        assert migration.error
        assert (BEFORE_INDEXES, 1) == (revision(ledger), ask(ledger, INVALID))
        long.rollback()
    migrations.migrate(ledger)

    assert (migrations.head(), 0) == (revision(ledger), ask(ledger, INVALID))
    migrations.check(ledger)


def test_a_build_does_not_wait_for_the_migration_itself(ledger: Engine, url: str) -> None:
    """Also where a role's transactions keep their snapshots to the end."""
    strict = make_url(url).update_query_dict({"options": "-cdefault_transaction_isolation=serializable"})
    engine = open_ledger(strict.render_as_string(hide_password=False))
    with migrating(engine) as migration:
        pass
    engine.dispose()

    assert migration.error is None
    assert migrations.head() == revision(ledger)


def test_between_two_indexes_it_is_the_turn_of_those_who_write(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_builds, "TURN_SECONDS", 0.0)
    engine, other = open_ledger(empty_database_url), open_ledger(empty_database_url)
    migrations.migrate(engine, BEFORE_INDEXES)
    said: list[str] = []

    def hear(sentence: str) -> None:
        if not said:
            write(other)
        said.append(sentence)

    migrations.migrate(engine, WITH_INDEXES, waiting=hear)

    assert [f"{left} are left." for left in range(ADDED - 1, 0, -1)] == [each.partition(": ")[2] for each in said]
    assert 1 == ask(other, "SELECT count(*) FROM cancellations")
    migrations.migrate(engine)
    migrations.check(engine)
    engine.dispose()
    other.dispose()
