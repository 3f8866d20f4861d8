"""The two things that PostgreSQL and SQLite say differently: an instant with its clock, and a list as one parameter.

Nothing else in the ledger names a dialect.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Float,
    FromClause,
    Integer,
    String,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSON as PG_JSON
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Connection, Dialect, Select

T = TypeVar("T")

# As text of one width, so that SQLite compares instants as it compares words.
_SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f000+00:00"


class Instant(TypeDecorator[datetime]):
    """A point in time with its offset: `timestamptz`, or ISO-8601 text in UTC on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return instant_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base's shape
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return value.astimezone(UTC) if value is not None else None


def instant_text(value: datetime) -> str:
    """Write an instant as both databases read it."""
    return value.astimezone(UTC).isoformat(" ", "microseconds")


RecordId = Uuid(as_uuid=False).with_variant(String(36), "sqlite")  # SQLAlchemy would drop the dashes there
RowId = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER counts by itself there


class now_plus(FunctionElement[datetime]):  # noqa: N801 - it reads as SQL
    """The database's clock, plus seconds: leases never trust a worker's clock."""

    type = Instant()
    inherit_cache = True


def db_now() -> now_plus:
    return now_plus(text("0"))


@compiles(now_plus, "postgresql")
def _now_plus_postgresql(element: now_plus, compiler: Any, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **kw)}))"


@compiles(now_plus, "sqlite")
def _now_plus_sqlite(element: now_plus, compiler: Any, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"strftime('{_SQLITE_FORMAT}', 'now', ({compiler.process(seconds, **kw)}) || ' seconds')"


def now_plus_given(name: str) -> now_plus:
    """Read the database's clock, plus as many seconds as the parameter of that name says."""
    return now_plus(bindparam(name, type_=Float()))


def once(build: Callable[[str], T]) -> Callable[[Connection], T]:
    """Let a statement be built once for each kind of database: building one takes longer than running it."""
    built = cache(build)
    return lambda connection: built(connection.dialect.name)


def given(dialect: str, columns: Mapping[str, Any]) -> FromClause:
    """Return a table named `given`, filled by one parameter: `as_rows(...)` bound to the name `rows`.

    A list of any length is then one statement with one text, so it is parsed and planned once.
    """
    rows = bindparam("rows", type_=Text())
    if dialect == "sqlite":
        entries = func.json_each(rows).table_valued(column("value", Text()), name="entries")
        picked = [
            cast(func.json_extract(entries.c.value, f"$.{name}"), kind).label(name)
            if isinstance(kind, Integer)
            else func.json_extract(entries.c.value, f"$.{name}", type_=kind).label(name)
            for name, kind in columns.items()
        ]
        return select(*picked).select_from(entries).subquery("given")
    return (
        func.json_to_recordset(cast(rows, PG_JSON))
        .table_valued(*[column(name, kind) for name, kind in columns.items()])
        .render_derived(name="given", with_types=True)
    )


def among(dialect: str, column: ColumnElement[Any], rows: Select[Any]) -> ColumnElement[bool]:
    """Whether a column is among the rows of a query that chooses and locks, asked once.

    A plain subquery is run again per row, and then its LIMIT limits nothing. And PostgreSQL, which cannot know how few
    rows it will be, would read a whole table to find them; an array sends it to the index.
    """
    chosen = select(rows.cte().c.id)
    if dialect == "sqlite":
        return column.in_(chosen)
    return column == func.any(func.array(chosen.scalar_subquery()))


def unindexed(column: ColumnElement[str]) -> ColumnElement[str]:
    """Name a status so that no index is thought of: the primary key has found the few rows already.

    PostgreSQL would read the whole partial index of that status beside it, with every entry that is not vacuumed yet.
    """
    return column.concat("")


def found_by(dialect: str, column: ColumnElement[Any], rows: CTE) -> ColumnElement[bool]:
    """Join a table to rows by their `id`, through the column's index however large the planner thinks either is."""
    same: ColumnElement[bool] = column == rows.c.id
    return same if dialect == "sqlite" else same & among(dialect, column, select(rows.c.id))


def as_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Bind a list of rows to `given`."""
    return {"rows": msgspec.json.encode(list(rows), enc_hook=str).decode()}


def instant_or_none(value: datetime | None) -> str | None:
    return instant_text(value) if value is not None else None


__all__ = [
    "JSON",
    "Instant",
    "RecordId",
    "RowId",
    "among",
    "as_rows",
    "db_now",
    "found_by",
    "given",
    "instant_or_none",
    "instant_text",
    "now_plus",
    "now_plus_given",
    "once",
    "unindexed",
]
