"""Faults that sessions of a database keep, what an address asks of them, a pooler between: kinds B1 to B6, and B20."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness.parts import PgBouncer, PostgresServer, open_folder
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.cancellation.request import CancelRequest
from worker.ledger import connections, filters, migrations, transitions
from worker.ledger.database import autocommit, open_ledger, read_only, refuses_the_row
from worker.ledger.schema import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.vault import TokenVault

TABLES = {*metadata.tables, "alembic_version"}


@contextmanager
def opened(url: str, **options: Any) -> Iterator[Engine]:
    engine = open_ledger(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def with_query(url: str, query: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{query}"


@pytest.fixture
def url(postgres: Any) -> Iterator[str]:
    made = postgres.migrated()
    yield made
    postgres.drop(made)


@pytest.fixture
def worker_ledger(url: str) -> Iterator[Engine]:
    """One session, as each part of a worker has it."""
    with opened(url, pool_size=1, plan_once=True) as engine:
        yield engine


def accept(ledger: Engine, order: str) -> list[str]:
    with ledger.begin() as db:
        return [*transitions.accept(db, [CancelRequest(connection_id="shop", order_id=order)])]


def failures(ledger: Engine, count: int, prefix: str) -> int:
    """Accept that many jobs, one after another; return how many of those statements failed."""
    failed = 0
    for number in range(count):
        try:
            accept(ledger, f"{prefix}-{number}")
        except SQLAlchemyError:
            failed += 1
    return failed


# -- a session that its server has made useless (B1, B2)


def test_a_session_that_is_read_only_is_made_anew_after_one_failed_statement(
    worker_ledger: Engine, url: str, postgres: Any
) -> None:
    name = make_url(url).database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert 3 == failures(worker_ledger, 3, "meanwhile")
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    assert 1 >= failures(worker_ledger, 5, "afterwards")


def test_a_session_that_a_statement_made_read_only_is_thrown_away(worker_ledger: Engine) -> None:
    with autocommit(worker_ledger) as db:
        db.execute(text("SET default_transaction_read_only = on"))

    assert 1 == failures(worker_ledger, 5, "o")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE cancellations ALTER COLUMN order_id TYPE text",
        "ALTER TABLE connections ALTER COLUMN owner TYPE text",
        "ALTER TABLE cancellations ADD COLUMN more text",
    ],
)
def test_a_plan_that_no_longer_fits_costs_one_statement(
    worker_ledger: Engine, url: str, vault: TokenVault, change: str
) -> None:
    def asked() -> int:
        with read_only(worker_ledger) as db:
            db.execute(text("SELECT * FROM cancellations")).all()
            return len(connections.list_all(db))

    with worker_ledger.begin() as db:
        connections.add(db, "shop", vault.encrypt("token"))
    for _ in range(4):
        asked()
    failures(worker_ledger, 4, "before")
    with opened(url) as other, other.begin() as db:
        db.execute(text(change))
    failed = failures(worker_ledger, 5, "after")
    for _ in range(3):
        try:
            asked()
        except SQLAlchemyError:
            failed += 1

    assert 1 >= failed


def test_a_prepared_statement_that_is_gone_costs_one_statement(worker_ledger: Engine) -> None:
    failures(worker_ledger, 4, "before")
    with worker_ledger.connect() as db:
        db.connection.cursor().connection.pgconn.exec_(b"DEALLOCATE ALL")

    assert 1 >= failures(worker_ledger, 5, "after")


@pytest.mark.parametrize("ended_by", ["idle_session_timeout", "an administrator"])
def test_a_session_that_the_server_has_ended_costs_one_statement(
    worker_ledger: Engine, postgres: Any, url: str, ended_by: str
) -> None:
    with read_only(worker_ledger) as db:
        pid = db.execute(text("SELECT pg_backend_pid()")).scalar_one()
        if ended_by == "idle_session_timeout":
            db.execute(text("SET idle_session_timeout = 1"))
    if ended_by == "an administrator":
        postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
    with opened(url) as other, read_only(other) as db:
        while db.execute(text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}).scalar_one():
            pass

    assert 1 == failures(worker_ledger, 5, "o")


@pytest.mark.parametrize("fault", ["a row", "a lock", "a deadline"])
def test_an_error_that_is_no_fault_of_the_session_leaves_it(worker_ledger: Engine, fault: str) -> None:
    statements = {
        "a row": "INSERT INTO connections (id) VALUES ('x')",
        "a lock": "DO $$ BEGIN RAISE SQLSTATE '55P03'; END $$",
        "a deadline": "SET LOCAL statement_timeout = 10; SELECT pg_sleep(1)",
    }

    def pid() -> int:
        with read_only(worker_ledger) as db:
            return int(db.execute(text("SELECT pg_backend_pid()")).scalar_one())

    before = pid()
    with pytest.raises(DBAPIError), worker_ledger.begin() as db:
        db.exec_driver_sql(statements[fault])

    assert before == pid()


# -- what an address asks (B4)


def test_what_an_address_says_is_kept_and_added_to(postgres: Any) -> None:
    made = postgres.empty()
    with opened(made) as plain, plain.begin() as db:
        db.execute(text("CREATE SCHEMA cancel"))
    query = "options=-csearch_path%3Dcancel%20-c%20statement_timeout%3D7s&connect_timeout=30&application_name=oms"
    query += "&target_session_attrs=read-write&keepalives_idle=60"
    with opened(with_query(made, query), plan_once=True) as engine:
        migrations.migrate(engine)
        with read_only(engine) as db:
            told = {
                name: db.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("search_path", "statement_timeout", "lock_timeout", "application_name", "enable_seqscan")
            }
            schemas = dict(
                db.execute(
                    text(
                        "SELECT tablename, schemaname FROM pg_tables"
                        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
                    )
                ).all()
            )
            assert migrations.head() == migrations.current(db)
            params = db.connection.driver_connection.info.get_parameters()
    postgres.drop(made)

    assert dict.fromkeys(TABLES, "cancel") == schemas
    assert {
        "search_path": "cancel",
        "statement_timeout": "7s",
        "lock_timeout": "10s",
        "application_name": "oms",
        "enable_seqscan": "off",
    } == told
    kept = {"connect_timeout": "30", "keepalives_idle": "60", "target_session_attrs": "read-write"}
    assert kept | {"tcp_user_timeout": "20000"} == {name: params[name] for name in (*kept, "tcp_user_timeout")}


@pytest.mark.parametrize(
    ("query", "threshold"), [("", 1), ("prepare_threshold=9", 9), ("prepare_threshold=none", None)]
)
def test_the_threshold_of_an_address_is_the_drivers(url: str, query: str, threshold: int | None) -> None:
    with opened(with_query(url, query)) as engine, engine.connect() as db:
        assert threshold == db.connection.driver_connection.prepare_threshold


@pytest.mark.parametrize("query", ["pool_size=5", "prepare_threshold=soon", "connect_timeout=abc", "autocommit=false"])
def test_an_option_that_nobody_takes_is_refused_in_a_sentence(query: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL"):
        open_ledger(f"postgresql://u:secret@127.0.0.1/x?{query}")


def test_a_direct_session_costs_no_trip_more_for_a_single_statement(worker_ledger: Engine) -> None:
    sent: list[str] = []
    with worker_ledger.connect():
        event.listen(worker_ledger, "before_cursor_execute", lambda _c, _k, statement, *_: sent.append(statement))
    with autocommit(worker_ledger) as db:
        db.execute(text("SELECT 1"))
    with read_only(worker_ledger) as db:
        db.execute(text("SELECT 2"))
    with worker_ledger.begin() as db:
        db.execute(text("SELECT 3"))

    assert ["SELECT 1", "SELECT 2", "BEGIN", "SELECT 3"] == sent


# -- an encoding that cannot hold every id (B6)


@pytest.fixture
def latin1(postgres: Any) -> Iterator[str]:
    made = postgres.empty()
    name = f"{make_url(made).database}_latin1"
    postgres.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    yield make_url(made).set(database=name).render_as_string(hide_password=False)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
    postgres.drop(made)


def test_a_ledger_of_another_encoding_is_refused(latin1: str) -> None:
    with opened(latin1) as engine, pytest.raises(DBAPIError, match="encoding is LATIN1"):
        migrations.migrate(engine)


def test_a_value_that_an_encoding_cannot_hold_is_the_fault_of_its_row(
    latin1: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.ledger.sessions._unsuitable", lambda *_: None)
    with opened(latin1, plan_once=True) as engine:
        migrations.migrate(engine)
        with pytest.raises(DBAPIError) as refused:
            accept(engine, "注文-1")
        kept = accept(engine, "o-é")

    assert refuses_the_row(refused.value)
    assert 1 == len(kept)


# -- a pooler of transactions (B3)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with open_folder("cancel-worker-surroundings-") as folder:
        made = PostgresServer.create(folder / "data")
        made.start()
        yield made
        made.stop()


POOLERS: list[tuple[str, ...]] = [(), ("ignore_startup_parameters = extra_float_digits,options",)]


@pytest.fixture(params=POOLERS, ids=["by default", "options ignored"])
def pooler(request: pytest.FixtureRequest, server: PostgresServer) -> Iterator[PgBouncer]:
    with open_folder("cancel-worker-pooler-") as folder, PgBouncer(folder, server.port, *request.param) as made:
        yield made


def fresh(server: PostgresServer, name: str) -> str:
    server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    server.execute(f"CREATE DATABASE {name}")
    return name


def test_a_pooler_keeps_nothing_of_a_session_and_every_limit_holds(server: PostgresServer, pooler: PgBouncer) -> None:
    name = fresh(server, "limits")
    with opened(pooler.url(name), pool_size=1, plan_once=True) as engine:
        migrations.migrate(engine)
        assert 0 == failures(engine, 20, "o")
        limits = []
        for ways in (engine.begin(), read_only(engine), autocommit(engine)):
            with ways as db:
                limits.append(
                    db.execute(
                        text("SELECT current_setting('statement_timeout'), current_setting('enable_seqscan')")
                    ).one()
                )
        with read_only(engine) as db:
            assert filters.find(db, limit=100)
            assert 0 == db.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
    with psycopg.connect(pooler.url(name), autocommit=True) as another:
        left = another.execute("SHOW lock_timeout").fetchone()

    assert [("30s", "off")] * 3 == limits
    assert ("0",) == left


def test_a_pooler_drops_no_statement_that_writes(server: PostgresServer, pooler: PgBouncer) -> None:
    name = fresh(server, "writes")
    with opened(pooler.url(name)) as engine:
        migrations.migrate(engine)
        with autocommit(engine) as db:
            db.execute(
                text(
                    "INSERT INTO connections (id, name, hold_reason, held_at, created_at, updated_at)"
                    " VALUES ('a', 'a', 'unknown_connection', now(), now(), now())"
                )
            )
        with read_only(engine) as db:
            assert ["a"] == [row.id for row in connections.list_all(db)]


def test_the_search_path_of_an_address_holds_behind_a_pooler(server: PostgresServer, pooler: PgBouncer) -> None:
    name = fresh(server, "paths")
    with opened(pooler.url(name)) as engine, engine.begin() as db:
        db.execute(text("CREATE SCHEMA cancel"))
    with opened(pooler.url(name, "?options=-csearch_path%3Dcancel&prepare_threshold=none")) as engine:
        migrations.migrate(engine)
        assert 0 == failures(engine, 3, "o")
        with read_only(engine) as db:
            found = db.execute(
                text("SELECT schemaname FROM pg_tables WHERE tablename IN ('cancellations', 'alembic_version')")
            )
            assert ["cancel"] * 2 == list(found.scalars())


def test_a_stale_session_behind_a_pooler_is_made_anew(server: PostgresServer, pooler: PgBouncer) -> None:
    name = fresh(server, "stale")
    with opened(pooler.url(name), pool_size=1, plan_once=True) as engine:
        migrations.migrate(engine)
        server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        server.end_clients()
        assert 3 == failures(engine, 3, "meanwhile")
        server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

        assert 1 >= failures(engine, 5, "afterwards")


def test_the_lock_of_a_migration_does_not_stay_with_a_pooler(server: PostgresServer, pooler: PgBouncer) -> None:
    name = fresh(server, "locks")
    waited: list[str] = []
    for _ in range(2):
        with opened(pooler.url(name)) as engine:
            migrations.migrate(engine, waiting=waited.append)

    assert [] == waited
    assert [(0,)] == server.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


# -- a password that is changed (B20)


def test_a_password_that_was_changed_in_its_file_is_read_again(
    postgres: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del postgres
    secret = tmp_path / "database_url"
    real = make_url(url)
    old = real.set(username="nobody_of_this_name", password="old").render_as_string(hide_password=False)
    secret.write_text(old + "\n")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL_FILE", str(secret))
    with opened(old) as engine:
        with pytest.raises(DBAPIError), engine.connect():
            pass
        secret.write_text(url + "\n")
        with engine.connect() as db:
            assert 1 == db.execute(text("SELECT 1")).scalar_one()


def test_a_file_that_names_another_database_is_not_followed(
    postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = postgres.empty(), postgres.empty()
    secret = tmp_path / "database_url"
    secret.write_text(second)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL_FILE", str(secret))
    stranger = make_url(first).set(username="nobody_of_this_name").render_as_string(hide_password=False)
    with (
        opened(stranger) as engine,
        pytest.raises(DBAPIError, match=re.escape("nobody_of_this_name")),
        engine.connect(),
    ):
        pass
    for made in (first, second):
        postgres.drop(made)
