"""All that PostgreSQL and SQLite say differently in SQL. No other file with statements names either of them.

An instant and the database's clock, INSERT ... ON CONFLICT, a list of rows as one parameter, and what SQLite lacks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Dialect

T = TypeVar("T")


def is_sqlite(dialect: str) -> bool:
    """Whether this is the embedded database: no LATERAL, statements that change one table each, no round trips."""
    return dialect == "sqlite"


# As text of one width, so that SQLite compares instants as it compares words.
_SQLITE_FORMAT = "%Y-%m-%d %H:%M:%f000+00:00"


class UtcTimestamp(TypeDecorator[datetime]):
    """A point in time with its offset: `timestamptz`, or ISO-8601 text in UTC on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.String(32) if is_sqlite(dialect.name) else sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or not is_sqlite(dialect.name):
            return value
        return instant_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base's shape
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return value.astimezone(UTC) if value is not None else None


def instant_text(value: datetime) -> str:
    """Write an instant as both databases read it."""
    return value.astimezone(UTC).isoformat(" ", "microseconds")


RecordId = sa.Uuid(as_uuid=False).with_variant(sa.String(36), "sqlite")  # SQLAlchemy would drop the dashes there
RowId = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only INTEGER counts by itself there


class now_plus(FunctionElement[datetime]):  # noqa: N801 - it reads as SQL
    """The database's clock, plus seconds: leases never trust a worker's clock."""

    type = UtcTimestamp()
    inherit_cache = True


def db_now() -> now_plus:
    return now_plus(sa.text("0"))


@compiles(now_plus, "postgresql")
def _now_plus_postgresql(element: now_plus, compiler: Any, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(seconds, **kw)}))"


@compiles(now_plus, "sqlite")
def _now_plus_sqlite(element: now_plus, compiler: Any, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"strftime('{_SQLITE_FORMAT}', 'now', ({compiler.process(seconds, **kw)}) || ' seconds')"


def keep_time(connection: Any, now: Callable[[], datetime]) -> None:
    """Let a driver's connection to SQLite take its time from `now`: for tests of whoever builds on the client."""

    def strftime(_format: str, _now: str, shift: str) -> str:  # the one form in which `now_plus` asks for it
        return instant_text(now() + timedelta(seconds=float(shift.removesuffix(" seconds"))))

    connection.create_function("strftime", 3, strftime)


def now_plus_parameter(name: str) -> now_plus:
    """Read the database's clock, plus as many seconds as the parameter of that name says."""
    return now_plus(sa.bindparam(name, type_=sa.Float()))


def takes_no_writes(db: sa.Connection) -> bool:
    """Whether this session may only read, as on a server that repeats what another one writes."""
    asked = "SELECT current_setting('transaction_read_only')"
    return not is_sqlite(db.dialect.name) and db.exec_driver_sql(asked).scalar_one() == "on"


class utc_hour(FunctionElement[int]):  # noqa: N801 - it reads as SQL
    """The hour of the day in UTC, 0 to 23, of an instant."""

    type = sa.Integer()
    inherit_cache = True


@compiles(utc_hour, "postgresql")
def _utc_hour_postgresql(element: utc_hour, compiler: Any, **kw: Any) -> str:
    (instant,) = element.clauses
    return f"CAST(extract(hour FROM {compiler.process(instant, **kw)} AT TIME ZONE 'UTC') AS INTEGER)"


@compiles(utc_hour, "sqlite")
def _utc_hour_sqlite(element: utc_hour, compiler: Any, **kw: Any) -> str:
    (instant,) = element.clauses
    return f"CAST(substr({compiler.process(instant, **kw)}, 12, 2) AS INTEGER)"  # all of them are in UTC


def seconds_between(
    dialect: str, earlier: sa.ColumnElement[datetime], later: sa.ColumnElement[datetime]
) -> sa.ColumnElement[float]:
    """Return the seconds from one instant to another."""
    if is_sqlite(dialect):
        return (sa.func.julianday(later, type_=sa.Float()) - sa.func.julianday(earlier, type_=sa.Float())) * 86_400.0
    return sa.cast(sa.extract("epoch", later) - sa.extract("epoch", earlier), sa.Float())


def clamped(dialect: str, value: sa.ColumnElement[Any], low: Any, high: Any) -> sa.Function[Any]:
    """Return a value, or the bound that it is beyond."""
    least, greatest = (sa.func.min, sa.func.max) if is_sqlite(dialect) else (sa.func.least, sa.func.greatest)
    return greatest(low, least(value, high), type_=value.type)


def json_member_is(dialect: str, column: sa.ColumnElement[Any], key: str, value: str) -> sa.ColumnElement[bool]:
    """Whether an object of a JSON column has a member, and that, written as text, is this value."""
    if not is_sqlite(dialect):
        return column.op("->>")(sa.literal(key, sa.Text())) == sa.literal(value, sa.Text())
    members = sa.func.json_each(column).table_valued("key", "value", "type", name="members")
    # SQLite hands truth values over as numbers.
    truth = members.c.type.in_(["true", "false"])
    text = sa.case((truth, members.c.type), else_=sa.cast(members.c.value, sa.Text()))
    return sa.select(sa.literal(1)).select_from(members).where(members.c.key == key, text == value).exists()


def insert(dialect: str, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that knows ON CONFLICT."""
    return sqlite.insert(table) if is_sqlite(dialect) else postgresql.insert(table)


def partial_index(name: str, *columns: sa.ColumnElement[Any], where: sa.ColumnElement[bool]) -> sa.Index:
    """Return an index that holds only the rows of a condition."""
    return sa.Index(name, *columns, postgresql_where=where, sqlite_where=where)


def built_once_per_dialect(build: Callable[[str], T]) -> Callable[[sa.Connection], T]:
    """Let a statement be built once for each kind of database: building one takes longer than running it."""
    built = cache(build)
    return lambda db: built(db.dialect.name)


def rows_parameter(dialect: str, columns: Mapping[str, Any]) -> sa.FromClause:
    """Return a table named `rows`, filled by one parameter: `bind_rows(...)` bound to the name `rows`.

    A list of any length is then one statement with one text, so it is parsed and planned once.
    """
    rows = sa.bindparam("rows", type_=sa.Text())
    if is_sqlite(dialect):
        entries = sa.func.json_each(rows).table_valued(sa.column("value", sa.Text()), name="entries")
        picked = [
            sa.cast(sa.func.json_extract(entries.c.value, f"$.{name}"), kind).label(name)
            if isinstance(kind, sa.Integer)
            else sa.func.json_extract(entries.c.value, f"$.{name}", type_=kind).label(name)
            for name, kind in columns.items()
        ]
        return sa.select(*picked).select_from(entries).subquery("rows")
    return (
        sa.func.json_to_recordset(sa.cast(rows, postgresql.JSON))
        .table_valued(*[sa.column(name, kind) for name, kind in columns.items()])
        .render_derived(name="rows", with_types=True)
    )


def id_in_chosen(dialect: str, column: sa.ColumnElement[Any], rows: sa.Select[Any]) -> sa.ColumnElement[bool]:
    """Whether a column is among the rows of a query that chooses and locks, asked once.

    A plain subquery is run again per row, and then its LIMIT limits nothing. And PostgreSQL, which cannot know how few
    rows it will be, would read a whole table to find them; an array sends it to the index.
    """
    chosen = sa.select(rows.cte().c.id)
    if is_sqlite(dialect):
        return column.in_(chosen)
    return column == sa.func.any(sa.func.array(chosen.scalar_subquery()))


def hidden_from_planner(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """Return `status || ''`: an expression that no index covers, so PostgreSQL keeps to the primary key.

    Beside it, it would read the whole partial index of that status, with every entry that is not vacuumed yet.
    """
    return column.concat("")


def joined_by_id(dialect: str, column: sa.ColumnElement[Any], rows: sa.CTE) -> sa.ColumnElement[bool]:
    """Join a table to rows by their `id`, through the column's index however large the planner thinks either is."""
    same: sa.ColumnElement[bool] = column == rows.c.id
    return same if is_sqlite(dialect) else same & id_in_chosen(dialect, column, sa.select(rows.c.id))


def bind_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Bind a list of rows to the parameter of `rows_parameter`."""
    return {"rows": msgspec.json.encode([_bound(row) for row in rows], enc_hook=str).decode()}


def _bound(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: instant_text(value) if isinstance(value, datetime) else value for name, value in row.items()}
