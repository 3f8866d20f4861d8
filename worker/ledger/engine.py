"""How to reach the ledger: one engine a process, with the limits that keep a dead database from holding a thread."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

# Far above any statement of ours; a query or a lock that takes longer is a fault, and its error frees the thread.
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
SQLITE_BUSY_SECONDS = 15


# Each statement of a worker or a client has its index, and is planned once: planning a batch again costs a third of
# running it. A plan that was made while a table was small would go on reading all of it when it is large, so it may
# not read all.
PLANNED_ONCE = "-c enable_seqscan=off"
PLANNED_EACH_TIME = "-c plan_cache_mode=force_custom_plan"


def open_ledger(url: str, *, pool_size: int = 8, plan_once: bool = False) -> Engine:
    """Make the engine for a `DATABASE_URL`; connects at first use.

    With `plan_once` plans are kept, and none reads a whole table where an index would do: for the few statements of a
    worker or a client, not for all that a person may ask.

    Raises ValueError with a sentence where the URL is of no known kind.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("DATABASE_URL is no database address: use postgresql://... or sqlite:///file.") from error
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url)
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(f"DATABASE_URL names {parsed.get_backend_name()}: only postgresql and sqlite are supported.")
    engine = create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=4,
        pool_use_lifo=True,  # the same few connections, which know the statements
        hide_parameters=True,  # an error may be logged; a row may not
        pool_timeout=10,
        connect_args={
            "connect_timeout": 5,
            "prepare_threshold": 1,  # a few statements, all of one text, again and again
            # A network that swallows packets answers nothing: without these a thread would wait for ever.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC"
            f" {PLANNED_ONCE if plan_once else PLANNED_EACH_TIME}",
            "application_name": "cancel-worker",
            "autocommit": True,  # the driver begins no transaction by itself: `_begin_with` does
        },
    )

    _begin_with(engine, "BEGIN")
    return engine


def _open_sqlite(url: str) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin too late
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, as on PostgreSQL
        connection.execute("PRAGMA foreign_keys = ON")

    # A transaction that reads first and writes later would fail at once when another wrote in between.
    _begin_with(engine, "BEGIN IMMEDIATE")
    return engine


# The option of connections on which no transaction is begun: each statement is one by itself.
_UNBEGUN = "ledger_unbegun"


def _begin_with(engine: Engine, command: str) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(_UNBEGUN):
            connection.exec_driver_sql(command)


def reading(engine: Engine) -> Engine:
    """Return the same engine for transactions that only read, so that they never wait for a writer.

    On PostgreSQL one statement is one round trip then; and a ROLLBACK would make the driver forget all that it has
    prepared.
    """
    return _unbegun(engine)


def one_statement(engine: Engine) -> AbstractContextManager[Connection]:
    """Open a transaction of a single statement that writes: it needs no BEGIN, no COMMIT, and a third of the trips."""
    if engine.dialect.name == "sqlite":
        return engine.begin()
    return _unbegun(engine).connect()


@lru_cache(maxsize=16)  # a process has a few
def _unbegun(engine: Engine) -> Engine:
    return engine.execution_options(**{_UNBEGUN: True})


def refuses_the_row(error: BaseException) -> bool:
    """Whether a row itself was at fault. Anything else is the database's state, and worth trying again unchanged."""
    return isinstance(error, DataError | IntegrityError)
