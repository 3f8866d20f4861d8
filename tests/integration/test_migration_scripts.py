"""`migrate --sql` and `migrate --check`: what a person runs or asks, without a program that changes tables."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from sqlite3 import connect as connect_sqlite
from typing import TYPE_CHECKING, Any

import pytest
from harness.commands import Run, in_process
from harness.parts import part, postgres_binary
from sqlalchemy import Engine, make_url, text

from worker.cli import main
from worker.ledger import migrations
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

BEFORE = "f19c2ab7d804"  # with rows to copy, and six indexes to build beside the work
BEFORE_COPIES = "e7a4b19d5c63"  # SQLite copies `cancellations` next
INDEX = "ix_cancellations_batch"
OF_INDEX = f"WHERE indexrelid = '{INDEX}'::regclass"
HALF_BUILT = f"UPDATE pg_index SET indisvalid = false {OF_INDEX}"  # noqa: S608
AS_BUILT = f"SELECT indisvalid, pg_get_indexdef(indexrelid) FROM pg_index {OF_INDEX}"  # noqa: S608
DO_MIGRATE = "run `cancel-worker migrate`."
Written = Callable[..., str]
NOBODYS = "postgresql://nobody@127.0.0.1:1/nothing"
ROWS = (
    "INSERT INTO connections (id, access_token, created_at, updated_at) VALUES"
    " ('shop-1', 'encrypted', '2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00')",
    "INSERT INTO cancellations"
    " (id, connection_id, order_id, idempotency_key, priority, requested_at, received_at, status) VALUES"
    " ('00000000-0000-5000-8000-000000000001', 'shop-1', 'o-1', 'k', 'normal', '2026-01-01 00:00:00+00:00',"
    " '2026-01-01 00:00:00+00:00', 'pending')",
    "INSERT INTO attempts (cancellation_id, number, kind, generation, started_at, reason, replayed) VALUES"
    " ('00000000-0000-5000-8000-000000000001', 1, 'cancel', 1, '2026-01-01 00:00:00+00:00', 'accepted', false)",
)


@pytest.fixture
def empty(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    engine = open_ledger(empty_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(monkeypatch, capsys)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Written:
    """Return what prints the SQL, and returns it as it is printed."""

    def write(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["cancel-worker", "migrate", "--sql", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out

    return write


def apply(url: str, script: str) -> tuple[int, str]:
    """Run a script as a person does, with the database's own program; return how it ended."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        command: list[str | Path] = [part("sqlite3"), str(parsed.database)]
    else:
        command = [postgres_binary("psql"), "--no-psqlrc", "--quiet", url.replace("+psycopg", "")]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def parts_of(sql: str) -> list[str]:
    """Return what a statement of SQLite says, with a table's rules in one order: who copies a table mixes them."""
    words = " ".join(sql.replace(" IF NOT EXISTS", "").split()).removesuffix(" )")
    return sorted(re.split(", (?=CONSTRAINT )", words))


def schema_of(url: str) -> list[str]:
    """Return the schema as the database itself writes it down."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(connect_sqlite(str(parsed.database))) as db:
            rows = db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name").fetchall()
        return [each for (sql,) in rows for each in parts_of(sql)]
    command = [postgres_binary("pg_dump"), "--schema-only", "--no-owner", url.replace("+psycopg", "")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\"))]


def revision_of(engine: Engine) -> str | None:
    with engine.connect() as db:
        return migrations.current(db)


def write_rows(engine: Engine) -> None:
    with engine.begin() as db:
        for statement in ROWS:
            db.exec_driver_sql(statement)


@pytest.fixture
def another(request: pytest.FixtureRequest, empty_database_url: str, tmp_path: Path) -> str:
    """The address of a second database of the same kind, without tables."""
    if empty_database_url.startswith("sqlite"):
        return f"sqlite:///{tmp_path}/another.sqlite3"
    return str(request.getfixturevalue("postgres").empty())


@pytest.mark.parametrize("since", [None, BEFORE_COPIES, BEFORE])
def test_sql_that_is_run_by_hand_makes_the_schema_that_migrate_makes(
    empty: Engine, empty_database_url: str, another: str, written: Written, since: str | None
) -> None:
    other = open_ledger(another)
    for engine in (empty, other):
        if since:
            migrations.migrate(engine, since)
            write_rows(engine)
    code, said = apply(empty_database_url, written())
    migrations.migrate(other)
    other.dispose()

    assert (0, 0) == (code, said.count("rror")), said
    assert schema_of(another) == schema_of(empty_database_url)
    assert migrations.head() == revision_of(empty)
    migrations.check(empty)
    with empty.connect() as db:
        assert (1 if since else 0) == db.execute(text("SELECT count(*) FROM attempts")).scalar_one()


def test_sql_from_a_revision_asks_no_database(monkeypatch: pytest.MonkeyPatch, written: Written) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODYS)

    assert "ADD COLUMN owner" in written("--from", BEFORE)
    assert "CREATE TABLE connections" in written("--from", "base")


def test_sql_of_a_schema_that_fits_does_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    code, said = run("migrate", "--sql")

    assert (0, f"-- The ledger's schema is at {migrations.head()}: nothing to do.") == (code, said)
    assert (0, "") == apply(database_url, said)


@pytest.mark.parametrize("words", [("--sql", "--from", "of-yesterday"), ("--from", BEFORE), ("--check", "--sql")])
@pytest.mark.usefixtures("empty")
def test_options_that_make_no_sense_are_refused(run: Run, words: tuple[str, ...]) -> None:
    assert 2 == run("migrate", *words)[0]


def test_sql_for_another_revision_stops_before_it_changes_anything(
    ledger: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, written: Written
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    before = schema_of(database_url)
    code, said = apply(database_url, written("--from", BEFORE))

    assert 0 != code
    assert BEFORE in said
    assert (before, migrations.head()) == (schema_of(database_url), revision_of(ledger))


def test_sql_that_fails_half_way_leaves_whole_revisions_and_is_written_anew_for_the_rest(
    empty: Engine, empty_database_url: str, written: Written
) -> None:
    migrations.migrate(empty, BEFORE)
    with empty.begin() as db:
        db.exec_driver_sql("CREATE TABLE documents (taken INTEGER)")  # in the way of the third revision
    assert 0 != apply(empty_database_url, written())[0]

    assert "a83d51c7e2f6" == revision_of(empty)
    with empty.begin() as db:
        db.exec_driver_sql("DROP TABLE documents")
    assert 0 == apply(empty_database_url, written())[0]
    migrations.check(empty)


def test_an_index_that_was_half_built_is_built_anew_by_the_sql(
    postgres: Any, monkeypatch: Any, written: Written
) -> None:
    url = postgres.empty()
    monkeypatch.setenv("DATABASE_URL", url)
    engine = open_ledger(url)
    migrations.migrate(engine, "a4e7b9d02c15")
    with engine.begin() as db:
        db.exec_driver_sql(f"CREATE INDEX {INDEX} ON cancellations (order_id)")
        db.exec_driver_sql(HALF_BUILT)

    assert 0 == apply(url, written())[0]
    with engine.connect() as db:
        found = db.exec_driver_sql(AS_BUILT).one()
    engine.dispose()
    assert (True, True) == (found[0], "(batch, received_at)" in found[1])


def test_sql_does_not_run_beside_a_migration(postgres: Any, monkeypatch: Any, written: Written) -> None:
    url = postgres.empty()
    monkeypatch.setenv("DATABASE_URL", url)
    engine = open_ledger(url)
    script = written()
    with engine.connect() as db:
        db.exec_driver_sql(f"SELECT pg_advisory_xact_lock({migrations.MIGRATION_LOCK})")
        code, said = apply(url, script)
        db.rollback()
    engine.dispose()

    assert (3, True) == (code, "Another migration is running" in said), said
    assert [] == [line for line in schema_of(url) if "TABLE" in line]


# -- --check


def test_check_tells_whether_the_schema_fits_and_changes_nothing(
    empty: Engine, empty_database_url: str, run: Run
) -> None:
    assert 4 == run("migrate", "--check")[0]
    assert not empty_database_url.startswith("sqlite") or not Path(empty.url.database or "").exists()
    migrations.migrate(empty, BEFORE)
    before = schema_of(empty_database_url)
    due = run("migrate", "--check")
    assert (1, f"The ledger's schema is {BEFORE}, this version needs {migrations.head()}: {DO_MIGRATE}") == due
    assert (before, BEFORE) == (schema_of(empty_database_url), revision_of(empty))
    migrations.migrate(empty)
    assert (0, f"The ledger's schema is {migrations.head()}, as this version needs it.") == run("migrate", "--check")
    with empty.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = 'of-tomorrow'")
    code, said = run("migrate", "--check")
    assert (5, True) == (code, "of-tomorrow, which a newer cancel-worker has made" in said)


def test_check_needs_no_right_but_to_read_the_revision(
    postgres: Any, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    url = postgres.migrated()
    engine = open_ledger(url)
    role = f"reader_of_{engine.url.database}"
    with engine.begin() as db:
        db.exec_driver_sql(f"CREATE ROLE {role}")
        db.exec_driver_sql(f"GRANT SELECT ON alembic_version TO {role}")
    read_only = f"-crole={role} -cdefault_transaction_read_only=on"
    as_role = make_url(url).update_query_dict({"options": read_only}).render_as_string(hide_password=False)
    monkeypatch.setenv("DATABASE_URL", as_role)
    checked = run("migrate", "--check")
    printed = run("migrate", "--sql")
    with engine.begin() as db:
        db.exec_driver_sql(f"DROP OWNED BY {role}")
        db.exec_driver_sql(f"DROP ROLE {role}")
    engine.dispose()

    assert (0, 0) == (checked[0], printed[0]), (checked, printed)


def test_check_of_a_database_that_is_away_is_no_answer(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("DATABASE_URL", NOBODYS)

    assert 3 == run("migrate", "--check")[0]
