"""What a person is told where a database does not do what was asked: a sentence for each kind, without a password."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from sqlite3 import connect as connect_sqlite
from typing import TYPE_CHECKING, Any

import pytest
from harness.parts import PostgresServer, lasting_port, open_folder

from worker.ledger import migrations
from worker.ledger.database import open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "pa55-word-of-the-role"
COMMAND = [sys.executable, "-c", "from worker.cli import main; main()"]
COMMANDS = (["migrate"], ["list"], ["show", "1001"], ["connections", "list"], ["run"])


def environment(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKSTAR_", "CREDENTIAL_"))}
    return kept | {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0", "TRACKSTAR_API_KEY": "k"}


def run(url: str, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *words], env=environment(url), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that asks the role `asked` for its password, and admits others without."""
    with open_folder("cancel-worker-rights-") as folder:
        made = PostgresServer.create(folder / "data")
        rules = made.data / "pg_hba.conf"
        rules.write_text("host all asked all scram-sha-256\nhost all barred all reject\n" + rules.read_text())
        made.start()
        made.execute(f"CREATE ROLE asked LOGIN PASSWORD '{SECRET}'")
        for role in ("mute", "barred"):
            made.execute(f"CREATE ROLE {role} {'NOLOGIN' if role == 'mute' else 'LOGIN'}")
        made.execute("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        made.execute("CREATE DATABASE closed")
        made.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        yield made
        made.stop()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("who", "database", "sentence"),
    [
        pytest.param(f"asked:not-{SECRET}", "postgres", "refuses the role or the password", id="wrong password"),
        pytest.param("stranger", "postgres", "knows no role", id="unknown role"),
        pytest.param("mute", "postgres", "may not log in", id="no login"),
        pytest.param("barred", "postgres", "pg_hba.conf", id="not admitted"),
        pytest.param("postgres", "nowhere", "has no database of the name", id="unknown database"),
        pytest.param(f"asked:{SECRET}", "closed", "lacks the right CONNECT", id="no right to connect"),
        pytest.param("postgres", "latin1", "encoding is LATIN1", id="encoding"),
    ],
)
def test_a_database_that_refuses_is_told_by_its_kind(
    server: PostgresServer, who: str, database: str, sentence: str, words: list[str]
) -> None:
    code, said = run(f"postgresql://{who}@127.0.0.1:{server.port}/{database}", *words)

    assert (3, True) == (code, sentence in said), said
    assert SECRET not in said


def test_a_missing_right_is_named(server: PostgresServer) -> None:
    code, said = run(f"postgresql://asked:{SECRET}@127.0.0.1:{server.port}/postgres", "migrate")

    assert (3, True) == (code, "lacks a right" in said and "CREATE" in said), said


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("options=-csearch_path%3Dnobody", "No schema of the search_path exists"),
        ("options=-cno_such_setting%3D1", "does not take an option of DATABASE_URL"),
        ("sslmode=require", "sslmode"),
        ("sslmode=sometimes", "does not take an option of DATABASE_URL"),
    ],
)
def test_an_option_that_fails_is_told_by_its_kind(server: PostgresServer, query: str, sentence: str) -> None:
    code, said = run(f"{server.url}?{query}", "migrate")

    assert (3, True) == (code, sentence in said), said


def test_a_server_that_is_not_there_is_told() -> None:
    code, said = run(f"postgresql://asked:{SECRET}@127.0.0.1:{lasting_port()}/postgres", "migrate")

    assert (3, True) == (code, "could not be reached" in said), said
    assert SECRET not in said


def test_a_schema_of_a_newer_version_is_left_alone(postgres: Any) -> None:
    url = postgres.migrated()
    engine = open_ledger(url)
    with engine.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = 'of-tomorrow'")
    code, said = run(url, "migrate")
    engine.dispose()
    postgres.drop(url)

    assert (2, True) == (code, "of-tomorrow, which a newer cancel-worker has made" in said), said


# -- SQLite


def sqlite_cases(folder: Path) -> dict[str, tuple[str, str]]:
    (folder / "text.sqlite3").write_text("This is a letter to nobody, and longer than any header. " * 50)
    return {
        "no folder": (str(folder / "nowhere" / "x.sqlite3"), "cannot be opened"),
        "a folder": (str(folder), "cannot be opened"),
        "another file": (str(folder / "text.sqlite3"), "no SQLite database"),
    }


@pytest.mark.parametrize("case", ["no folder", "a folder", "another file"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_file_that_holds_no_ledger_is_told_by_its_kind(tmp_path: Path, case: str, words: list[str]) -> None:
    path, sentence = sqlite_cases(tmp_path)[case]
    code, said = run(f"sqlite:///{path}", *words)

    assert (3, True) == (code, sentence in said), said


# -- a second migration


@contextmanager
def migrating(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, "migrate"]
    with subprocess.Popen(command, env=environment(url), stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@contextmanager
def held(url: str) -> Iterator[Callable[[], object]]:
    """Hold what a migration holds; give what ends that."""
    if url.startswith("sqlite"):
        with closing(connect_sqlite(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")  # as the first migration does
            db.execute("BEGIN IMMEDIATE")
            yield db.rollback
        return
    engine = open_ledger(url)
    with engine.connect() as held_by:
        held_by.exec_driver_sql(f"SELECT pg_advisory_xact_lock({migrations.MIGRATION_LOCK})")
        yield held_by.rollback
    engine.dispose()


def test_a_ledger_that_is_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    path, older = tmp_path / "new.sqlite3", tmp_path / "older.sqlite3"
    older.touch(0o640)
    for each in (path, older):
        ledger = open_ledger(f"sqlite:///{each}")
        with ledger.begin() as db:
            db.exec_driver_sql("CREATE TABLE t (a)")
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob(f"{each.name}*")}
        ledger.dispose()

        assert {0o600 if each is path else 0o640} == set(modes.values()), modes
        assert f"{each.name}-wal" in modes


@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_a_second_migration_waits_as_long_as_the_first_works_and_says_so(
    empty_database_url: str, seconds: float
) -> None:
    with held(empty_database_url) as release, migrating(empty_database_url) as process:
        assert process.stdout is not None
        assert "waiting until it has ended" in process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(seconds)
        release()

        assert 0 == process.wait(60)
        assert f"revision {migrations.head()}" in process.stdout.read()


def test_a_migration_that_waits_ends_when_it_is_told_to(empty_database_url: str) -> None:
    with held(empty_database_url), migrating(empty_database_url) as process:
        assert process.stdout is not None
        assert "waiting" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)

        assert 0 != process.wait(5)
