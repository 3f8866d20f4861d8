"""How to reach the ledger: engines, with limits that keep a dead database from holding a thread, and transactions.

Three ways to use an engine: `ledger.begin()` for a transaction, `autocommit` for one statement, `read_only`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError

from worker.ledger.dialects import is_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

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


NO_ADDRESS = (
    "DATABASE_URL is no database address: use postgresql://... or sqlite:///file, and percent-encode the characters "
    "of its password (@ is %40, / is %2F, : is %3A)."
)


def open_ledger(url: str, *, pool_size: int = 8, plan_once: bool = False) -> Engine:
    """Make the engine for a `DATABASE_URL`; connects at first use.

    With `plan_once` plans are kept, and none reads a whole table where an index would do: for the few statements of a
    worker or a client, not for all that a person may ask.

    Raises ValueError with a sentence where the URL is of no known kind.
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


def _open_embedded(url: str) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _prepare(db: Any, _record: Any) -> None:
        db.isolation_level = None  # the driver would begin too late
        db.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
        db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, as on PostgreSQL
        db.execute("PRAGMA foreign_keys = ON")

    # A transaction that reads first and writes later would fail at once when another wrote in between.
    _begin_with(engine, "BEGIN IMMEDIATE")
    return engine


# Options of a connection: no transaction is begun on it, each statement is one by itself; and that one is all it runs.
_UNBEGUN = "ledger_unbegun"
ONE_STATEMENT = "ledger_one_statement"  # the tests fail where a second one follows


def _begin_with(engine: Engine, command: str) -> None:
    @event.listens_for(engine, "begin")
    def _begin(db: Connection) -> None:
        if not db.get_execution_options().get(_UNBEGUN):
            db.exec_driver_sql(command)


@contextmanager
def read_only(ledger: Engine) -> Iterator[Connection]:
    """Open a connection for questions: none of them waits for a writer, and each is one round trip on PostgreSQL.

    A ROLLBACK after them would make the driver forget all that it has prepared.
    """
    with ledger.connect() as db:
        yield db.execution_options(**{_UNBEGUN: True})


@contextmanager
def autocommit(ledger: Engine) -> Iterator[Connection]:
    """Open a transaction of a single statement that writes: it needs no BEGIN, no COMMIT, and a third of the trips.

    A second statement would be committed apart on PostgreSQL and with the first on SQLite, so there may be none.
    """
    if is_sqlite(ledger.dialect.name):
        with ledger.begin() as db:
            yield db.execution_options(**{ONE_STATEMENT: True})
    else:
        with ledger.connect() as db:
            yield db.execution_options(**{_UNBEGUN: True, ONE_STATEMENT: True})


def refuses_the_row(error: BaseException) -> bool:
    """Whether a row itself was at fault. Anything else is the database's state, and worth trying again unchanged."""
    return isinstance(error, DataError | IntegrityError)
