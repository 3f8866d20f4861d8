"""What is wrong with the ledger, in sentences with what to do. Knows what both databases say; repeats none of it.

A driver's text may hold an address, a password that stands in the wrong place of it, or a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError, NotSupportedError, SQLAlchemyError

from worker.errors import LedgerUnavailableError
from worker.ledger.rights import WHERE_ROLES_ARE
from worker.ledger.sessions import ROLE


class Problem(NamedTuple):
    """A kind of error: its SQLSTATEs or what the server or the driver writes, and what a person is told."""

    pattern: str  # of a SQLSTATE, or else of the text
    sentence: str
    passes: bool = False  # by itself, as when a server has started: worth waiting for


_MIGRATE = "Check DATABASE_URL, and that `cancel-worker migrate` has run."

_NO_RIGHT = "42501"
_OWNERS = "`cancel-worker migrate` needs to own the tables, and CREATE on their schema"
# By SQLSTATE: a statement has failed. The first that fits is told.
BY_STATE = (
    Problem(_NO_RIGHT, "{role} lacks a right{which}: " + WHERE_ROLES_ARE + " (" + _OWNERS + ")."),
    Problem("42P01|42703|42883", f"The ledger has no tables yet, or old ones. {_MIGRATE}"),
    Problem("3F000", "No schema of the search_path exists: create it, or correct `options` in DATABASE_URL."),
    Problem("25006", "The database is read-only: end that, or let DATABASE_URL name the primary server.", passes=True),
    Problem("53100", "The database's disk is full: make room; the work goes on by itself.", passes=True),
    Problem("53300", "The database has no connection left: raise its limit, or use a pooler.", passes=True),
    Problem("55P03", "A table of the ledger is in use by another session: nothing was changed; try again."),
    Problem("57014", "The database did not answer in time: look for a lock or a load there, and try again."),
    Problem("40...", "Another transaction came between: nothing was changed; try again."),
    Problem("57P0[1-3]|08...", "The database ended the connection: it stops, or starts anew.", passes=True),
)
# By text: no session could be opened, or SQLite says it.
BY_TEXT = (
    Problem("database system is (starting|shutting)|not yet accepting|recovery", "The database starts.", passes=True),
    Problem(
        "too many (connections|clients)|connection slots|no more connections",
        "The database has no connection left: raise its limit, or use a pooler.",
        passes=True,
    ),
    Problem(
        "password|SASL|authentication failed|auth failed|no such user",
        "The database refuses the role or the password in DATABASE_URL: correct it, or the file it is read from.",
    ),
    Problem("role .* does not exist", "The database knows no role of the name in DATABASE_URL: create or correct it."),
    Problem("not permitted to log in", "The role in DATABASE_URL may not log in: give it LOGIN, or name another."),
    Problem(
        "database .* does not exist|no such database",
        "The server has no database of the name in DATABASE_URL: create or correct it.",
    ),
    Problem("permission denied for database", "The role in DATABASE_URL lacks the right CONNECT on the database."),
    Problem("pg_hba", "The server's pg_hba.conf does not admit this machine, role and database: add a line for them."),
    Problem(
        "could not translate host|Name or service|resolve", "No server of DATABASE_URL's host is known.", passes=True
    ),
    Problem("is not accepting|read-only|not read-write|hot standby", "The database is read-only.", passes=True),
    Problem(
        "unrecognized configuration|unsupported startup|invalid (value|.*option)|bad value|invalid .* value",
        "The server or the driver does not take an option of DATABASE_URL: correct what follows its `?`.",
    ),
    Problem(
        "certificate|SSL|TLS", "No safe connection to the database: check sslmode and sslrootcert in DATABASE_URL."
    ),
    Problem("no such (table|column)", f"The ledger has no tables yet, or old ones. {_MIGRATE}"),
    Problem(
        "unable to open", "The ledger's file cannot be opened: its folder must exist and be writable. " + _MIGRATE
    ),
    Problem("readonly database", "The ledger's file, or its folder, may not be written: correct its rights."),
    Problem("not a database|malformed", "DATABASE_URL names a file that is no SQLite database, or a damaged one."),
    Problem("disk is full|disk I/O", "The ledger's disk is full or fails: make room; the work goes on.", passes=True),
    Problem("locked", "Another process keeps the ledger's file locked: try again when it has ended.", passes=True),
)
_VERBS = re.compile(r"\b(INSERT|UPDATE|DELETE|CREATE|ALTER)\b")
UNREACHABLE = "The ledger could not be reached. Check DATABASE_URL, and that the database runs."


def ledger_problem(error: SQLAlchemyError) -> str:
    """Say what is wrong and what to do about it."""
    if isinstance(error, NotSupportedError) and not _state(error):
        return str(error.orig)  # our own sentence: such a database holds no ledger
    if lacks_a_right(error):
        return _lacking(error)
    if found := _find(error):
        return found.sentence
    return UNREACHABLE.replace(".", f" ({type(error).__name__}).", 1)


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Raise LedgerUnavailableError, with what is wrong, for whatever the block meets in the ledger."""
    try:
        yield
    except SQLAlchemyError as error:
        raise LedgerUnavailableError(ledger_problem(error)) from error


def lacks_a_right(error: SQLAlchemyError) -> bool:
    """Whether the role may not do what was asked."""
    return _state(error) == _NO_RIGHT


def _lacking(error: SQLAlchemyError) -> str:
    """Name the role, the right and what it is on, where the server's text and the statement tell."""
    original, statement = getattr(error, "orig", None), getattr(error, "statement", None) or ""
    named = vars(original).get(ROLE) if original else None
    role = f"The role {named}" if named else "The role in DATABASE_URL"
    on = re.search(r'permission denied for \w+ "?(\w+)', str(original))
    verbs = set(_VERBS.findall(statement))  # a statement may do several things: then which one, nobody tells
    right = f"{(verbs or {'SELECT'}).pop()} on " if len(verbs) <= 1 else ""
    which = f" ({right}{on[1]})" if on else ""
    return next(each for each in BY_STATE if each.pattern == _NO_RIGHT).sentence.format(role=role, which=which)


def passes(error: SQLAlchemyError) -> bool:
    """Whether it may end by itself, so that a worker waits for it."""
    found = _find(error)
    return found.passes if found else not _state(error) and not isinstance(error, NotSupportedError)


def _state(error: SQLAlchemyError) -> str | None:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


def _find(error: SQLAlchemyError) -> Problem | None:
    if state := _state(error):
        return next((each for each in BY_STATE if re.fullmatch(each.pattern, state)), None)
    # Names stand in quotation marks: a host or a role may be called as it likes.
    said = re.sub(r'"[^"]*"', '""', str(error.orig)) if isinstance(error, DBAPIError) else ""
    return next((each for each in BY_TEXT if re.search(each.pattern, said)), None)
