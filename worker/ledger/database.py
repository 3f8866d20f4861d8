"""How to reach the ledger: engines, and transactions. How a session of PostgreSQL is made, `sessions` knows.

Three ways to use an engine: `ledger.begin()` for a transaction, `autocommit` for one statement, `read_only`.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError

from worker.ledger.dialects import is_sqlite
from worker.ledger.sessions import PostgresqlSessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL, Connection

SQLITE_BUSY_SECONDS = 15


NO_ADDRESS = (
    "DATABASE_URL is no database address: use postgresql://... or sqlite:///file, and percent-encode the characters "
    "of its password (@ is %40, / is %2F, : is %3A)."
)


def open_ledger(url: str, *, pool_size: int = 8, plan_once: bool = False, by_index: bool = False) -> Engine:
    """Make the engine for a `DATABASE_URL`; connects at first use.

    With `plan_once` plans are kept, and none reads a whole table where an index would do: for the few statements of a
    worker or a client, not for all that a person may ask. With `by_index` none reads a whole table either, and each is
    made for the values at hand: for what people look for in a large ledger.

    Raises ValueError with a sentence where the URL is of no known kind, or asks for what nobody knows.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(NO_ADDRESS) from None
    if "@" in (parsed.host or ""):  # the rest of a password, which each error of a connection would repeat
        raise ValueError(NO_ADDRESS)
    if is_sqlite(parsed.get_backend_name()):
        return _open_embedded(url)
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"DATABASE_URL names {parsed.get_backend_name()}: only postgresql and sqlite are supported.")
    return _open_postgresql(parsed, pool_size, plan_once=plan_once, by_index=by_index)


def _open_postgresql(url: URL, pool_size: int, *, plan_once: bool, by_index: bool) -> Engine:
    sessions = PostgresqlSessions(url, plan_once=plan_once, by_index=by_index)
    engine = create_engine(
        # The options are the sessions' business: SQLAlchemy would hand them to the driver as they stand.
        url.set(drivername="postgresql+psycopg", query={}),
        pool_size=pool_size,
        max_overflow=4,
        pool_use_lifo=True,  # the same few connections, which know the statements
        hide_parameters=True,  # an error may be logged; a row may not
        pool_timeout=10,
    )
    sessions.serve(engine)
    _begin_with(engine, sessions.beginning)
    return engine


def _open_embedded(url: str) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "do_connect")
    def _make_private(_dialect: Any, _record: Any, arguments: list[str], _named: Any) -> None:
        path = arguments[0]
        if path != ":memory:" and not path.startswith("file:"):
            with suppress(OSError):  # it is there, or SQLite says what is wrong
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))

    @event.listens_for(engine, "connect")
    def _prepare(db: Any, _record: Any) -> None:
        db.isolation_level = None  # the driver would begin too late
        db.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
        db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, as on PostgreSQL
        db.execute("PRAGMA foreign_keys = ON")

    # A transaction that reads first and writes later would fail at once when another wrote in between.
    _begin_with(engine, lambda several: "BEGIN IMMEDIATE" if several else None)
    return engine


# Options of a connection: it runs single statements, which need no transaction; and one is all it runs.
_SINGLE = "ledger_single_statements"
ONE_STATEMENT = "ledger_one_statement"  # the tests fail where a second one follows


def _begin_with(engine: Engine, beginning: Callable[[bool], str | None]) -> None:
    """Let transactions begin with what `beginning` returns; it is told whether several statements belong together.

    Who asks SQLAlchemy for its AUTOCOMMIT gets no transaction: what builds an index beside writers may be in none.
    """

    @event.listens_for(engine, "begin")
    def _begin(db: Connection) -> None:
        if db.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return
        if command := beginning(not db.get_execution_options().get(_SINGLE)):
            db.exec_driver_sql(command)


@contextmanager
def read_only(ledger: Engine) -> Iterator[Connection]:
    """Open a connection for questions: none of them waits for a writer, and each is one round trip on PostgreSQL.

    A ROLLBACK after them would make the driver forget all that it has prepared.
    """
    with ledger.connect() as db:
        yield db.execution_options(**{_SINGLE: True})


@contextmanager
def autocommit(ledger: Engine) -> Iterator[Connection]:
    """Open a transaction of a single statement that writes: it needs no BEGIN, no COMMIT, and a third of the trips.

    A second statement would be committed apart on PostgreSQL and with the first on SQLite, so there may be none.
    """
    with ledger.connect() as db:
        db.execution_options(**{_SINGLE: not is_sqlite(ledger.dialect.name)})
        with db.begin():  # which sends nothing, except to SQLite and through a pooler
            yield db.execution_options(**{ONE_STATEMENT: True})


def refuses_the_row(error: BaseException) -> bool:
    """Whether a row itself was at fault, also with a value that the database's encoding cannot hold.

    Anything else is the database's state, and worth trying again unchanged.
    """
    return isinstance(error, DataError | IntegrityError)
