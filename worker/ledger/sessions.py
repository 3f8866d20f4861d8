"""How a session with PostgreSQL is made, limited, and thrown away.

Knows what a session needs, what a pooler of transactions cannot keep, and after which errors a session is of no more
use; does not know any statement of the ledger.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError

from worker.environment import SettingsError, from_environment
from worker.inputs.database_options import (
    SessionOptions,
    one_value_each,
    read_prepare_threshold,
    read_session_options,
    write_session_options,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import ExceptionContext

# Far above any statement of ours; a query or a lock that takes longer is a fault, and its error frees the thread.
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 10_000
LIMITS = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
    "timezone": "UTC",
}
# Each statement of a worker or a client has its index, and is planned once: planning a batch again costs a third of
# running it. A plan that was made while a table was small would go on reading all of it when it is large, so it may
# not read all.
BY_INDEX = {"enable_seqscan": "off"}
PLANNED_EACH_TIME = {"plan_cache_mode": "force_custom_plan"}
DRIVER_OPTIONS = {
    "connect_timeout": "5",
    # A network that swallows packets answers nothing: without these a thread would wait for ever.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "cancel-worker",
}
ROLE = "ledger_role"  # of an error: the role that asked
PREPARE_THRESHOLD = 1  # a few statements, all of one text, again and again
OLDEST_SERVER = 140_000
# SQLSTATEs, or their first two digits, that are no fault of the session: the row, a conflict with another transaction,
# the server's resources, an object in use, a statement that took too long.
NOT_THE_SESSIONS = ("22", "23", "40", "53", "55", "57014")


class PostgresqlSessions:
    """Makes the sessions of one engine, each with the same limits, whatever stands between it and the server.

    A session of the server's own gets them as start options, for nothing. A pooler (PgBouncer, and whatever else gives
    a transaction to any session) refuses those, or drops them: then each transaction begins with them, in the round
    trip of its BEGIN, and nothing is prepared unless the address says `prepare_threshold`.
    """

    def __init__(self, url: URL, *, plan_once: bool, by_index: bool) -> None:
        self.pooled = False  # known from the first connection on, and once found, for good
        self._url = url
        self._planning = {
            **(BY_INDEX if plan_once or by_index else {}),
            **({} if plan_once else PLANNED_EACH_TIME),
        }
        self._read(url)

    def _read(self, url: URL) -> None:
        # Slow to load, and SQLite does without.
        from psycopg import Error, conninfo  # noqa: PLC0415
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg  # noqa: PLC0415

        given = one_value_each(url.query)
        threshold = given.pop("prepare_threshold", None)
        asked = read_session_options(given.pop("options", ""))
        try:
            conninfo.make_conninfo("", **given)
        except Error as error:
            raise ValueError("DATABASE_URL has an option that PostgreSQL's client does not know.") from error
        self._threshold = None if threshold is None else read_prepare_threshold(threshold)
        self._says_threshold = threshold is not None
        self._asked = SessionOptions({**LIMITS, **self._planning, **asked.settings}, asked.others)
        hosts = {name: value for name, value in url.query.items() if name in {"host", "port"}}
        named = PGDialect_psycopg().create_connect_args(url.set(query=hosts))[1]  # type: ignore[no-untyped-call]
        # Rows are sent as UTF-8 whatever the database's encoding is: what that cannot hold, the server refuses by row.
        self._driver_options = {**DRIVER_OPTIONS, **named, **given, "client_encoding": "utf8"}

    def beginning(self, several: bool) -> str | None:
        """Return what begins a transaction; None where nothing has to: for single statements on a direct session."""
        if not self.pooled:
            return "BEGIN" if several else None
        settings = ", ".join(f"set_config({_quoted(n)}, {_quoted(v)}, true)" for n, v in self._asked.settings.items())
        return f"BEGIN; SELECT {settings}".replace("%", "%%")  # several in one text are never prepared

    def serve(self, engine: Engine) -> None:
        """Make every session of this engine from now on."""
        self._dialect = engine.dialect
        self._open_driver = engine.dialect.connect
        # Not by the event `do_connect`, whose first listener ends it for the others.
        engine.dialect.connect = self._connect_or_renew  # type: ignore[method-assign]
        event.listen(engine, "handle_error", self.forget_after)
        event.listen(engine, "handle_error", self._note_role)

    def _connect_or_renew(self, *_: Any, **__: Any) -> Any:
        """Open a session. Where that fails and DATABASE_URL's file has changed meanwhile, try what it says now."""
        try:
            return self._connect()
        except self._dialect.loaded_dbapi.OperationalError:
            if not self._renew():
                raise
            return self._connect()

    def _connect(self) -> Any:
        if not self.pooled:
            try:
                made = self._open(write_session_options(self._asked), PREPARE_THRESHOLD)
            except self._dialect.loaded_dbapi.OperationalError as error:
                if "unsupported startup parameter" not in str(error):
                    raise
            else:
                # A pooler answers with a number of its own.
                if made.execute("SELECT pg_backend_pid()").fetchone() == (made.info.backend_pid,):
                    return made
                made.close()
            self.pooled = True
        return self._open(" ".join(self._asked.others), None)

    def _open(self, options: str, threshold: int | None) -> Any:
        made = self._open_driver(
            **self._driver_options,
            **({"options": options} if options else {}),
            prepare_threshold=self._threshold if self._says_threshold else threshold,
            autocommit=True,  # the driver begins no transaction by itself
        )
        encoding = made.info.parameter_status("server_encoding")
        if problem := _unsuitable(encoding, made.info.server_version):
            made.close()
            raise self._dialect.loaded_dbapi.NotSupportedError(problem)
        return made

    def _renew(self) -> bool:
        """Take what DATABASE_URL gives now, if it is another way into the same database; return whether it is."""
        with suppress(SettingsError, ArgumentError, ValueError):
            now = make_url(from_environment("DATABASE_URL") or "")
            if now != self._url and _place(now) == _place(self._url):
                self._read(now)
                self._url = now
                return True
        return False

    def _note_role(self, context: ExceptionContext) -> None:
        """Let the error say as whom it was asked: the server's own text does not."""
        role = self._asked.settings.get("role") or self._url.username
        context.original_exception.__dict__[ROLE] = role

    @staticmethod
    def forget_after(context: ExceptionContext) -> None:
        """Throw the session away after an error that it may go on giving, with all that were opened before it.

        Read-only since a failover or by a setting, with plans of tables that have changed, with statements that are
        not there any more, ended by the server: a new session knows better, and costs one statement once.
        """
        state = getattr(context.original_exception, "sqlstate", None)
        if context.connection is not None and state and not state.startswith(NOT_THE_SESSIONS):
            context.is_disconnect = True


def _unsuitable(encoding: str | None, version: int) -> str | None:
    """Say in sentences why this server cannot hold a ledger; None where it can."""
    if encoding is not None and encoding.upper() != "UTF8":
        return (
            f"The database's encoding is {encoding}, which cannot hold every order id: create one with"
            " `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`, and name it in DATABASE_URL."
        )
    if 0 < version < OLDEST_SERVER:
        return f"The server is PostgreSQL {version // 10_000}: upgrade it to {OLDEST_SERVER // 10_000} or newer."
    return None


def _place(url: URL) -> tuple[object, ...]:
    return url.get_backend_name(), url.host, url.port, url.database, url.query.get("host"), url.query.get("port")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
