"""What `doctor` says of the ledger: the database, its schema, its clock, the role's rights, what is due, vacuum.

Knows findings; the statements are the ledger's, but for the one that tries whether it can be written.
"""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.standstill import STANDSTILL_SECONDS
from worker.cli.doctor.clock import clock_finding
from worker.cli.doctor.finding import Finding
from worker.cli.parts import opened_ledger
from worker.cli.words import in_bytes, in_time
from worker.inputs.faults import fault
from worker.ledger import backlog, migrations, queries
from worker.ledger.checkup import checkup
from worker.ledger.database import read_only
from worker.ledger.dialects import is_sqlite
from worker.ledger.problems import lacks_a_right, ledger_problem
from worker.ledger.rights import WHERE_ROLES_ARE, role_of
from worker.ledger.schema import cursors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.ledger.checkup import Checkup, Vacuum
    from worker.ledger.rights import Role
    from worker.settings import Settings

# Autovacuum begins at a fifth of the rows; so many more that it does not keep up.
DEAD_SHARE, MIN_DEAD_ROWS = 0.5, 100_000
# PostgreSQL begins to vacuum by force at 200 million, and takes no writes at two thousand million.
OLD_TRANSACTIONS, FULL_TRANSACTIONS = 1_000_000_000, 1_800_000_000


def look_at_ledger(settings: Settings) -> Iterator[Finding]:
    """Look at the database, and at what is due in it."""
    with opened_ledger(settings.database_url) as ledger:
        try:
            with read_only(ledger) as db:
                found, facts = migrations.current(db), checkup(db)
                asked = time.time()
                skew = clock_finding("Ledger", queries.now(db).timestamp(), (asked + time.time()) / 2)
        except SQLAlchemyError as error:
            yield Finding("Ledger", type(error).__name__, ledger_problem(error))
            return
        yield Finding("Ledger", f"{facts.kind} {facts.version}, {facts.encoding}, {in_bytes(facts.size)}")
        old = "" if found == migrations.head() else "Run `cancel-worker migrate`."
        yield Finding("Ledger", f"schema {found or 'empty'}", old)
        yield from _open_to_others(ledger)
        if not old:
            yield from _rights(ledger)
            yield from _due(ledger)
        yield skew
        yield from _vacuum(facts)


def _due(ledger: sa.Engine) -> Iterator[Finding]:
    try:
        with read_only(ledger) as db:
            due = backlog.longest_due(db)
    except SQLAlchemyError as error:
        yield Finding("Ledger", fault(error), ledger_problem(error))
        return
    if due is None:
        yield Finding("Ledger", "nothing is due")
        return
    late = due.seconds > STANDSTILL_SECONDS
    said = f"due on {due.connections} connections, for {in_time(due.seconds)} on {due.connection_id}"
    yield Finding("Ledger", said, "See what the workers below say." if late else "", passing=late)


def _vacuum(facts: Checkup) -> Iterator[Finding]:
    found = facts.vacuum
    if found is None:
        return
    last = f"{in_time(found.age_seconds)} ago" if found.age_seconds is not None else "never"
    said = f"vacuumed {last}, {found.dead_rows} dead rows beside {found.live_rows}"
    if found.transaction_age > OLD_TRANSACTIONS:
        age = f"{found.transaction_age // 1_000_000} million transactions are not frozen"
        remedy = "Run `VACUUM FREEZE` as the owner, and end the oldest transaction: at 2,000 million all writes stop."
        yield Finding("Ledger", f"{said}; {age}", remedy, passing=found.transaction_age < FULL_TRANSACTIONS)
    elif _is_behind(found):
        remedy = "Run `VACUUM cancellations`, and see what keeps autovacuum: a long transaction, or its settings."
        yield Finding("Ledger", said, remedy, passing=True)
    else:
        yield Finding("Ledger", said)


def _is_behind(found: Vacuum) -> bool:
    return found.dead_rows > MIN_DEAD_ROWS + DEAD_SHARE * found.live_rows


def _rights(ledger: sa.Engine) -> Iterator[Finding]:
    try:
        with read_only(ledger) as db:
            role = role_of(db)
        if role is not None:
            yield _role(role)
        with ledger.begin() as db:  # it writes no row; both roles may write there
            db.execute(sa.insert(cursors).from_select(cursors.c.keys(), sa.select(cursors).where(sa.false())))
    except SQLAlchemyError as error:
        if not lacks_a_right(error):
            yield Finding("Ledger", "cannot be written", f"{fault(error)}.")


def _role(role: Role) -> Finding:
    if role.lacks:
        return Finding("Ledger", f"the role {role.name} lacks {', '.join(role.lacks)}", f"{WHERE_ROLES_ARE}.")
    more = ", a superuser: nothing is refused to it, nor to who has its password" if role.superuser else ""
    return Finding("Ledger", f"as the role {role.name}{more}")


def _open_to_others(ledger: sa.Engine) -> Iterator[Finding]:
    """Say which files of SQLite others than their owner may read or write; an address of memory has none."""
    named = ledger.url.database if is_sqlite(ledger.dialect.name) else None
    files = [Path(f"{named}{suffix}") for suffix in ("", "-wal", "-shm")] if named else []
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in files if each.is_file()}
    if wide := {each.name: mode for each, mode in modes.items() if mode & 0o077}:
        said = ", ".join(f"{name} has mode {mode:o}" for name, mode in wide.items())
        remedy = f"chmod 600 {' '.join(str(each) for each in modes if each.name in wide)}"
        yield Finding("Ledger", f"others may open it: {said}", remedy, passing=True)
