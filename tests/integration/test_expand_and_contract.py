"""What a revision may do to tables on which the release before works: an expand adds, a contract takes away later.

Read twice: from the SQL that is written for PostgreSQL, and from SQLite's tables before and after each revision.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from alembic.script import Script, ScriptDirectory
from alembic.util import template_to_file
from sqlalchemy import inspect

from worker.ledger import migrations
from worker.ledger.database import open_ledger
from worker.ledger.migration_scripts import BASE, script
from worker.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Engine

# Contracts that came with the very release that does without what goes. There will be no more.
BEFORE_THE_RULE = {
    "c41d7e90b2fa": "of the first release: there was none before it",
    "d3f0c8a1b6e4": "an index alone: the release before sorts without it",
}
REVISIONS: list[Script] = [*ScriptDirectory.from_config(migrations.alembic_config()).walk_revisions()][::-1]
EXPANDS = [each for each in REVISIONS if each.module.step == "expand"]
CONTRACTS = [each for each in REVISIONS if each.module.step == "contract"]
CHECK = re.compile(r"CONSTRAINT (ck_\w+) CHECK \((.*)\)")
WORDS = re.compile(r"'(\w+)'")


def name_of(revision: Script) -> str:
    return str(revision.revision)


def release_of(revision: Script) -> tuple[int, ...]:
    return version(revision.module.release)


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


# -- the SQL for PostgreSQL

HARMLESS = (
    r"BEGIN|COMMIT",
    r"SET \w+ = \S+",
    r"DO \$\$ BEGIN IF EXISTS \(SELECT FROM pg_index .* NOT indisvalid\) THEN DROP INDEX \w+; END IF; END \$\$",
    r"CREATE TABLE .*",
    r"CREATE VIEW .*",
    r"CREATE INDEX .*",
    r"(INSERT INTO|UPDATE) alembic_version .*",
)


class Written(NamedTuple):
    """A table's change, as its statement says it."""

    table: str
    change: str


def statements(sql: str) -> list[str]:
    """Return what a script does, without its head and its remarks, each in one line."""
    body = "\n".join(line for line in sql.splitlines() if not line.startswith("--")).partition("\nBEGIN;\n")[2]
    return [" ".join(each.split()) for each in f"BEGIN;\n{body}".split(";\n") if each.strip()]


def objections(sql: Iterable[str], checks: dict[str, str] | None = None) -> list[str]:
    """Return those that may disturb a release which knows nothing of them; `checks`: the old ones by name."""
    done = list(sql)
    new = {found[1] for each in done if (found := re.match(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", each))}
    return [each for each in done if not _is_harmless(each, new, done, checks or {})]


def _is_harmless(statement: str, new: set[str], done: list[str], checks: dict[str, str]) -> bool:
    if any(re.fullmatch(each, statement) for each in HARMLESS):
        return True
    if found := re.fullmatch(r"CREATE UNIQUE INDEX .* ON (\w+) .*", statement):
        return found[1] in new
    if found := re.fullmatch(r"DROP VIEW (\w+)", statement):  # tests/integration/test_views.py compares its columns
        return any(each.startswith(f"CREATE VIEW {found[1]} AS") for each in done)
    found = re.fullmatch(r"ALTER TABLE (\w+) (.*)", statement)
    return found is not None and (found[1] in new or _only_widens(Written(found[1], found[2]), done, checks))


def _only_widens(written: Written, done: list[str], checks: dict[str, str]) -> bool:
    """Whether a table of old takes all that it took: a column that may be left out, more words in a list of words."""
    if re.fullmatch(r"ADD COLUMN .*", written.change):
        needed = "NOT NULL" in written.change and "DEFAULT" not in written.change
        return not needed and not re.search("UNIQUE|PRIMARY KEY", written.change)
    if found := re.fullmatch(r"DROP CONSTRAINT (ck_\w+)", written.change):
        return any(f"ADD CONSTRAINT {found[1]} CHECK" in each for each in done)
    found = CHECK.search(written.change)
    return found is not None and _takes_more(checks.get(found[1], ""), found[2])


def _takes_more(old: str, new: str) -> bool:
    """Whether a check is a list of words, which holds all of the old one and differs in nothing else."""
    same = re.sub(r"\(.*\)", "", old) == re.sub(r"\(.*\)", "", new)
    return same and set(WORDS.findall(old)) <= set(WORDS.findall(new))


def checks_until(revision: Script) -> dict[str, str]:
    """Return the checks of all tables before a revision, by name."""
    if revision.down_revision is None:
        return {}
    sql = script("postgresql", BASE, str(revision.down_revision))
    return {found[1]: found[2] for line in sql.splitlines() if (found := CHECK.search(line))}


@pytest.mark.parametrize("revision", EXPANDS, ids=name_of)
def test_an_expand_leaves_the_release_before_all_that_it_uses_and_writes(revision: Script) -> None:
    sql = script("postgresql", str(revision.down_revision or BASE), str(revision.revision))

    assert [] == objections(statements(sql), checks_until(revision))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE events",
        "DROP INDEX ix_events_place",
        "DROP VIEW attempts_v1",
        "UPDATE cancellations SET verdict = 'unknown'",
        "ALTER TABLE events RENAME TO told",
        "ALTER TABLE events RENAME COLUMN place TO position",
        "ALTER TABLE events DROP COLUMN place",
        "ALTER TABLE events ADD COLUMN kind TEXT NOT NULL",
        "ALTER TABLE events ADD COLUMN kind TEXT UNIQUE",
        "ALTER TABLE events ALTER COLUMN place SET NOT NULL",
        "ALTER TABLE events ALTER COLUMN place TYPE INTEGER",
        "ALTER TABLE events ALTER COLUMN place DROP DEFAULT",
        "ALTER TABLE events ADD CONSTRAINT ck_events_type_known CHECK (type IN ('a', 'b'))",
        "ALTER TABLE events ADD CONSTRAINT uq_events_place UNIQUE (place)",
        "ALTER TABLE events ADD CONSTRAINT fk_events FOREIGN KEY(cancellation_id) REFERENCES cancellations (id)",
        "ALTER TABLE events DROP CONSTRAINT ck_events_type_known",
        "CREATE UNIQUE INDEX ix_events_place ON events (place)",
        "CREATE TRIGGER t BEFORE UPDATE ON events EXECUTE FUNCTION f()",
    ],
)
def test_what_takes_away_or_tightens_is_no_expand(statement: str) -> None:
    assert [statement] == objections([statement])


def test_a_list_of_words_may_only_grow() -> None:
    old = {"ck_t": "a IN ('x', 'y')"}
    change = ["ALTER TABLE t DROP CONSTRAINT ck_t", "ALTER TABLE t ADD CONSTRAINT ck_t CHECK ({})"]
    grown = [each.format("a IN ('x', 'y', 'z')") for each in change]
    shrunk = [each.format("a IN ('x', 'z')") for each in change]
    other = [each.format("b IN ('x', 'y')") for each in change]

    assert [[], shrunk[1:], other[1:]] == [objections(each, old) for each in (grown, shrunk, other)]


# -- SQLite's tables, before and after


class State(NamedTuple):
    """What tables hold and refuse."""

    columns: dict[tuple[str, str], tuple[str, bool, Any]]  # table, name → type, may be null, default
    checks: dict[tuple[str, str], str]
    uniques: set[tuple[str, str]]  # table, columns
    indexes: set[str]
    tables: set[str]

    @classmethod
    def of(cls, engine: Engine) -> State:
        with engine.connect() as db:
            found = inspect(db)
            tables = set(found.get_table_names()) - {"alembic_version"}
            named = db.exec_driver_sql("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index'").all()
            return cls(
                {
                    (table, column["name"]): (str(column["type"]), bool(column["nullable"]), column["default"])
                    for table in tables
                    for column in found.get_columns(table)
                },
                {(t, str(each["name"])): each["sqltext"] for t in tables for each in found.get_check_constraints(t)},
                {(t, str(each["column_names"])) for t in tables for each in found.get_unique_constraints(t)}
                | {(table, sql) for _, table, sql in named if sql and "UNIQUE" in sql.partition("(")[0]},
                {name for name, _, sql in named if sql},
                tables,
            )


def disturbed(before: State, after: State) -> list[object]:
    """Return what the release before no longer finds, or may no longer write."""
    return [
        *(before.columns.keys() - after.columns.keys()),
        *(before.indexes - after.indexes),
        *(each for each, was in before.columns.items() if each in after.columns and was != after.columns[each]),
        *(
            each
            for each, (_, may_be_null, default) in after.columns.items()
            if each[0] in before.tables
            and each not in before.columns
            and not may_be_null
            and default in {None, "NULL"}
        ),
        *(each for each in after.uniques - before.uniques if each[0] in before.tables),
        *(
            each
            for each, text in after.checks.items()
            if each[0] in before.tables and not _takes_more(before.checks.get(each, ""), text)
            if before.checks.get(each) != text
        ),
    ]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, State]:
    """Return what tables there are after each revision, and before the first."""
    engine = open_ledger(f"sqlite:///{tmp_path_factory.mktemp('history')}/ledger.sqlite3")
    found: dict[str | None, State] = {None: State.of(engine)}
    for each in REVISIONS:
        migrations.migrate(engine, str(each.revision))
        found[str(each.revision)] = State.of(engine)
    engine.dispose()
    return found


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.parametrize("revision", EXPANDS, ids=name_of)
def test_an_expand_leaves_sqlites_tables_what_they_held_and_took(
    states: dict[str | None, State], revision: Script
) -> None:
    before, after = states[revision.down_revision], states[str(revision.revision)]  # type: ignore[index]

    assert [] == disturbed(before, after)


SPOILS = [
    "ALTER TABLE events DROP COLUMN payload",
    "ALTER TABLE events RENAME COLUMN payload TO words",
    "ALTER TABLE events ADD COLUMN kind TEXT NOT NULL DEFAULT NULL",
    "CREATE UNIQUE INDEX u ON events (place)",
    "DROP INDEX ix_events_place",
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite3")
    migrations.migrate(made)
    yield made
    made.dispose()


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection")
@pytest.mark.parametrize("statement", SPOILS)
def test_what_takes_away_or_tightens_is_seen_on_sqlite(engine: Engine, statement: str) -> None:
    before = State.of(engine)
    with engine.begin() as db:
        db.exec_driver_sql(statement)

    assert disturbed(before, State.of(engine))
    assert [] == disturbed(before, before)


# -- what each says of itself


def test_each_revision_is_an_expand_or_a_contract_of_a_release() -> None:
    assert REVISIONS == [each for each in REVISIONS if each.module.step in {"expand", "contract"}]
    releases = [release_of(each) for each in REVISIONS]
    assert releases == sorted(releases)
    assert releases[-1] <= version(__version__.partition(".dev")[0])


def test_a_contract_comes_a_release_after_the_code_that_does_without_what_goes() -> None:
    early = [each for each in CONTRACTS if release_of(each) <= version(each.module.unused_since)]

    assert set(BEFORE_THE_RULE) == {name_of(each) for each in early}


def test_a_new_revision_is_written_as_an_expand_of_the_release_to_come(tmp_path: Path) -> None:
    template = Path(migrations.alembic_config().get_main_option("script_location") or "") / "script.py.mako"
    names: dict[str, Any] = {
        "message": "m",
        "imports": "",
        "up_revision": "a",
        "down_revision": "b",
        "upgrades": "",
        "downgrades": "",
    }
    made: dict[str, Any] = {}
    template_to_file(str(template), str(tmp_path / "new.py"), "utf-8", **names)
    exec((tmp_path / "new.py").read_text(), made)  # noqa: S102 - as Alembic will load it

    assert ("expand", __version__.partition(".dev")[0]) == (made["step"], made["release"])
