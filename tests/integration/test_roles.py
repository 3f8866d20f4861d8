"""The roles of ops/postgres/roles.sql, on a real server: what each may do, what the file does twice, what is said."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness.grafana import dashboard, queries, with_macros, with_variables
from harness.parts import PostgresServer, open_folder
from harness.roles import OPERATOR, OWNER, READER, ROLES, WORKER, apply, migrate_as_owner, url_of
from harness.shell import Operator
from psycopg import sql

from worker.ledger import migrations, rights
from worker.ledger.database import open_ledger, read_only
from worker.runtime.inboxes import Inboxes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

DATA = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
ACT = (
    "INSERT INTO audit (at, actor, action, target_kind, reason) VALUES (now(), 'ann', 'hold', 'connection', 'because')"
)
Refused = psycopg.errors.InsufficientPrivilege


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server whose tables the owner has made, with one act in the audit."""
    with open_folder("cancel-worker-roles-") as folder:
        made = PostgresServer.create(folder / "data")
        made.start()
        migrate_as_owner(made)
        made.execute(ACT)
        yield made
        made.stop()


@pytest.fixture
def bare() -> Iterator[PostgresServer]:
    """A server without roles and tables."""
    with open_folder("cancel-worker-roles-") as folder:
        made = PostgresServer.create(folder / "data")
        made.start()
        yield made
        made.stop()


@contextmanager
def session(server: PostgresServer, role: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of a role, of which nothing stays."""
    with psycopg.connect(url_of(server, role)) as db:
        yield db
        db.rollback()


def may(server: PostgresServer, role: str, statement: str) -> bool:
    """Whether the role may do this; nothing of it stays."""
    with session(server, role) as db:
        try:
            db.execute(statement.encode())
        except Refused:
            return False
    return True


GRANTED = """
    SELECT grantee, table_name, privilege_type, column_name FROM information_schema.column_privileges
    WHERE grantee LIKE 'cancel\\_%' AND table_schema = 'public' AND grantee <> 'cancel_owner'
    UNION ALL
    SELECT grantee, table_name, privilege_type, '' FROM information_schema.table_privileges
    WHERE grantee LIKE 'cancel\\_%' AND table_schema = 'public' AND grantee <> 'cancel_owner'
"""


def granted(server: PostgresServer) -> set[tuple[str, ...]]:
    return set(server.execute(GRANTED))


# ---- the file


def test_it_runs_before_and_after_the_migration_by_the_owner_too_and_as_often_as_one_likes(
    bare: PostgresServer,
) -> None:
    migrate_as_owner(bare)
    first = granted(bare)
    apply(bare)
    assert first == granted(bare)

    bare.execute("GRANT ALL ON audit, documents TO cancel_worker; GRANT ALL ON documents TO cancel_reader")
    with psycopg.connect(url_of(bare, OWNER), autocommit=True) as db:
        db.execute(ROLES.encode())
    assert first == granted(bare)


def test_a_table_of_a_later_migration_is_nobodys_until_the_next_run(bare: PostgresServer) -> None:
    migrate_as_owner(bare)
    bare.execute("DROP TABLE IF EXISTS producers")
    with psycopg.connect(url_of(bare, OWNER), autocommit=True) as db:
        db.execute("CREATE TABLE producers (name text PRIMARY KEY)")
    assert not any(may(bare, role, "SELECT FROM producers") for role in (WORKER, OPERATOR, READER))

    apply(bare)
    assert all(may(bare, role, "SELECT FROM producers") for role in (WORKER, OPERATOR, READER))
    insert = "INSERT INTO producers VALUES ('oms')"
    assert [False, True, False] == [may(bare, role, insert) for role in (WORKER, OPERATOR, READER)]


def test_tables_that_another_role_has_made_are_given_to_the_owner(bare: PostgresServer) -> None:
    engine = open_ledger(bare.url)
    migrations.migrate(engine)
    engine.dispose()
    apply(bare)

    owners = bare.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert [(OWNER,)] == owners
    assert may(bare, OWNER, "ALTER TABLE cancellations ADD COLUMN more text")


def test_a_managed_server_needs_no_superuser(bare: PostgresServer) -> None:
    bare.execute("CREATE ROLE customer LOGIN CREATEROLE; GRANT ALL ON DATABASE postgres TO customer")
    bare.execute("ALTER DATABASE postgres OWNER TO customer")
    with psycopg.connect(url_of(bare, "customer"), autocommit=True) as db:
        db.execute(ROLES.encode())
    engine = open_ledger(url_of(bare, OWNER))
    migrations.migrate(engine)
    engine.dispose()
    with (
        psycopg.connect(url_of(bare, "customer"), autocommit=True) as db,
        pytest.raises(psycopg.errors.RaiseException, match="belongs to another role"),
    ):
        db.execute(ROLES.encode())
    with psycopg.connect(url_of(bare, OWNER), autocommit=True) as db:
        db.execute(ROLES.encode())

    first = granted(bare)
    apply(bare)
    assert first == granted(bare)
    bare.execute(ACT)
    assert not may(bare, OWNER, "DELETE FROM audit")
    assert not may(bare, WORKER, "CREATE TABLE mine (id int)")


def test_parameters_of_statements_are_not_logged(server: PostgresServer) -> None:
    for role in (WORKER, OPERATOR, READER, OWNER):
        with session(server, role) as db:
            assert ("0",) == db.execute("SHOW log_parameter_max_length").fetchone()


@pytest.mark.parametrize("attribute", ["SUPERUSER", "CREATEROLE", "CREATEDB", "BYPASSRLS"])
def test_a_role_that_no_right_would_bind_is_refused(bare: PostgresServer, attribute: str) -> None:
    bare.execute(f"CREATE ROLE cancel_worker LOGIN {attribute}")
    with pytest.raises(psycopg.errors.RaiseException, match="cancel_worker is a superuser, or may make roles"):
        apply(bare)


# ---- what each may do


@pytest.mark.parametrize("role", [WORKER, OPERATOR, READER])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE cancellations ADD COLUMN mine int",
        "DROP TABLE cancellations",
        "TRUNCATE cancellations CASCADE",
        "ALTER TABLE audit DISABLE TRIGGER ALL",
        "CREATE ROLE mine",
        "SET session_replication_role = replica",
        "SET ROLE cancel_owner",
        "COPY cancellations TO PROGRAM 'cat'",
    ],
)
def test_no_role_but_the_owner_changes_the_schema(server: PostgresServer, role: str, statement: str) -> None:
    assert not may(server, role, statement)


@pytest.mark.parametrize("role", [WORKER, OPERATOR, READER, OWNER])
def test_names_are_looked_for_in_one_schema(server: PostgresServer, role: str) -> None:
    with session(server, role) as db:
        assert ("public",) == db.execute("SHOW search_path").fetchone()


@pytest.mark.parametrize("role", [WORKER, OPERATOR, READER, OWNER, "postgres"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit SET reason = 'another'",
        "UPDATE audit SET actor = 'bob'",
        "UPDATE audit SET reason = 'redacted', at = now() + interval '1 day'",
        "UPDATE audit SET after = '{}'",
        "DELETE FROM audit",
        "TRUNCATE audit",
    ],
)
def test_nobody_changes_or_removes_an_act(server: PostgresServer, role: str, change: str) -> None:
    assert not may(server, role, change)


def test_an_act_is_not_changed_where_triggers_rest(server: PostgresServer) -> None:
    assert not may(server, "postgres", "SET session_replication_role = replica; DELETE FROM audit")


def test_what_the_law_may_ask_for_is_erased_from_the_audit(server: PostgresServer) -> None:
    redact, forget = "UPDATE audit SET reason = 'redacted'", "UPDATE audit SET actor = 'erased'"

    assert [True, False, False] == [may(server, role, redact) for role in (OPERATOR, WORKER, READER)]
    assert [True, False, False] == [may(server, role, forget) for role in (OWNER, OPERATOR, WORKER)]


@pytest.mark.parametrize(("role", "asks"), [(WORKER, False), (OPERATOR, True), (READER, False)])
def test_who_acts_and_who_asks_about_it(server: PostgresServer, role: str, *, asks: bool) -> None:
    assert (role != READER, asks) == (may(server, role, ACT), may(server, role, "SELECT FROM audit"))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE cancellations SET order_id = 'another'",
        "UPDATE cancellations SET connection_id = 'another'",
        "UPDATE connections SET writes_per_second = 1000",
        "UPDATE connections SET id = 'another'",
        "UPDATE endpoints SET url = 'https://elsewhere.example/'",
        "UPDATE endpoints SET secret = 'known'",
        "INSERT INTO endpoints SELECT * FROM endpoints",
        "DELETE FROM connections",
        "DELETE FROM audit",
        "SELECT raw FROM dead_letters",
    ],
)
def test_a_worker_does_not_change_what_people_decide(server: PostgresServer, change: str) -> None:
    assert not may(server, WORKER, change)


def kept_from_readers() -> Iterator[tuple[str, str]]:
    """Yield table and column of all that docs/data.md calls personal, free text, staff's or a secret."""
    for line in re.findall(r"^\| `.*$", DATA.partition("## Views")[0], re.MULTILINE):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        table = cells[0].strip("`")
        if len(cells) == 4 and (
            re.search(r"yes|free text|secret|staff \(", cells[2]) or table in {"documents", "audit"}
        ):
            yield from ((table, column) for column in re.findall(r"`(\w+)`", cells[1]))


@pytest.mark.parametrize(("table", "column"), [*kept_from_readers(), ("connections", "owner")])
def test_the_reader_sees_no_text_no_token_and_no_document(server: PostgresServer, table: str, column: str) -> None:
    asked = sql.SQL("SELECT {} FROM {}").format(sql.Identifier(column), sql.Identifier(table))

    assert not may(server, READER, asked.as_string())


def test_there_is_much_that_the_reader_must_not_see() -> None:
    found = set(kept_from_readers())

    assert {("documents", "order_snapshot"), ("audit", "actor"), ("connections", "access_token")} < found
    assert {("endpoints", "secret"), ("endpoints", "old_secret"), ("dead_letters", "raw")} < found


@pytest.mark.parametrize("query", [query for _, query in queries(dashboard("cancel-worker-sql"))])
def test_the_dashboards_are_answered_to_the_reader(server: PostgresServer, query: str) -> None:
    assert may(server, READER, with_variables(with_macros(query), {"connection": "SELECT 'shop-1'"}))


def test_the_reader_asks_tables_for_what_is_no_text(server: PostgresServer) -> None:
    assert may(server, READER, "SELECT id, order_id, status, verdict FROM cancellations")
    assert may(server, READER, "SELECT state, failures FROM endpoints")
    assert not may(server, READER, "UPDATE cancellations SET status = status")


# ---- what is said


@pytest.mark.parametrize(("role", "needs"), [(WORKER, rights.WORKER), (OPERATOR, rights.OPERATOR)])
def test_what_the_doctor_asks_for_is_what_the_file_grants(
    server: PostgresServer, role: str, needs: dict[str, str]
) -> None:
    asked = {(table, verb) for table, verbs in needs.items() for verb in verbs.split() if verb != "USAGE"}
    there = {name for (name,) in server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}

    assert {each for each in asked if each[0] in there} == {row[1:3] for row in granted(server) if row[0] == role}


@pytest.mark.parametrize("role", [WORKER, OPERATOR])
def test_the_doctor_finds_that_nothing_is_lacking(server: PostgresServer, role: str) -> None:
    engine = open_ledger(url_of(server, role))
    with read_only(engine) as db:
        assert rights.Role(role, superuser=False, lacks=()) == rights.role_of(db)
    engine.dispose()


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("REVOKE DELETE ON documents FROM cancel_worker", "DELETE on documents"),
        ("REVOKE ALL ON audit FROM cancel_worker", "INSERT on audit"),
        ("REVOKE USAGE ON SEQUENCE events_id_seq FROM cancel_worker", "USAGE on events_id_seq"),
    ],
)
def test_the_doctor_names_role_right_and_file(
    server: PostgresServer, tmp_path: Path, redis_url: str, taken: str, said: str
) -> None:
    server.execute(taken)
    shell = Operator(tmp_path, DATABASE_URL=url_of(server, WORKER), REDIS_URL=redis_url, COLUMNS="300")
    code, answer = shell.run("doctor")
    apply(server)
    _, well = shell.run("doctor")

    assert (1, True) == (code, f"the role cancel_worker lacks {said}" in answer), answer
    assert "ops/postgres/roles.sql, run as a superuser or as the owner of the tables" in answer
    assert "as the role cancel_worker" in well
    assert "lacks" not in well


@pytest.mark.parametrize(
    ("role", "words", "which"),
    [
        (READER, ("audit", "list"), "SELECT on audit"),
        (READER, ("show", "o-1"), "SELECT on cancellations"),
        (WORKER, ("audit", "list"), "SELECT on audit"),
        (WORKER, ("dead-letters", "show", "1"), "SELECT on dead_letters"),
    ],
)
def test_a_command_that_is_refused_names_role_right_and_file(
    server: PostgresServer, tmp_path: Path, role: str, words: tuple[str, ...], which: str
) -> None:
    code, said = Operator(tmp_path, DATABASE_URL=url_of(server, role)).run(*words)

    assert (3, True) == (code, f"The role {role} lacks a right ({which}): ops/postgres/roles.sql" in said), said


def test_a_superuser_is_called_one(server: PostgresServer, tmp_path: Path, redis_url: str) -> None:
    shell = Operator(tmp_path, DATABASE_URL=server.url, REDIS_URL=redis_url, COLUMNS="300")

    assert "as the role postgres, a superuser: nothing is refused to it" in shell.run("doctor")[1]


# ---- a ledger that is a file


def test_the_files_of_sqlite_are_their_owners_and_the_doctor_says_where_they_are_not(
    tmp_path: Path, redis_url: str
) -> None:
    shell = Operator(tmp_path, DATABASE_URL="sqlite:///ledger.sqlite3", REDIS_URL=redis_url, COLUMNS="300")
    before = os.umask(0)
    try:
        assert 0 == shell.run("migrate")[0]
        engine = open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
        with engine.begin() as db:
            db.exec_driver_sql("INSERT INTO cursors VALUES ('oms', 1, '2026-01-01')")
        modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.glob("ledger.sqlite3*")}
        well = shell.run("doctor")[1]
        (tmp_path / "ledger.sqlite3-wal").chmod(0o644)
        wide = shell.run("doctor")[1]
        engine.dispose()
    finally:
        os.umask(before)

    assert dict.fromkeys(("ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm"), 0o600) == modes
    assert "others may open it" not in well
    assert "others may open it: ledger.sqlite3-wal has mode 644" in wide
    assert "chmod 600 ledger.sqlite3-wal" in wide


def test_a_worker_that_may_not_see_who_has_an_inbox_says_so_and_reads_the_one_without_a_name(
    server: PostgresServer, redis: Redis
) -> None:
    ledger = open_ledger(url_of(server, WORKER), pool_size=1)
    inboxes, problems = Inboxes(redis, ledger), []
    for change in ("REVOKE SELECT ON producers FROM cancel_worker", "GRANT SELECT ON producers TO cancel_worker"):
        server.execute(change)
        inboxes.refresh()
        problems.append(inboxes.problem)
    ledger.dispose()

    assert ("SELECT on producers" in problems[0], "") == (True, problems[1])
    assert ("cancellations:inbox",) == inboxes.streams
