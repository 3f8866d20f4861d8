"""How our own cancels ended, counted by warehouse system, the order's age and the hour: one query, no document read.

It reads the newest cancellations by `ix_cancellations_received_at`: so many days of them, and never more than a limit,
so its cost does not grow with the ledger. Knows rows; what the counts say, `cancellation.chances` knows.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.chances import AGE_EDGES, MIN_AGE_SECONDS, Cell, Tally
from worker.cancellation.outcome import NOT_SUPPORTED
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger.dialects import db_now, now_plus, seconds_between, utc_hour
from worker.ledger.schema import cancellations, connections

if TYPE_CHECKING:
    from sqlalchemy.sql.base import ReadOnlyColumnCollection

    Columns = ReadOnlyColumnCollection[str, sa.ColumnElement[Any]]

c = cancellations.c
k = connections.c

DAYS = 30
MAX_ROWS = 200_000  # cancellations that are looked at: about a second
MAX_ROWS_AT_ONCE = 20_000  # below a tenth of one, where somebody waits who has asked for something else
SECONDS_OF_A_DAY = 86_400.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted, of how many cancellations, received since when (None: none) and as of when."""

    cells: list[Cell]
    rows: int
    since: datetime | None
    now: datetime


def of_all(db: sa.Connection, days: float = DAYS, most: int = MAX_ROWS) -> Sample:
    """Count what became of the newest cancellations."""
    return _count(db, sa.true(), days, most)


def of_connection(db: sa.Connection, connection_id: str, days: float = DAYS, most: int = MAX_ROWS) -> Sample:
    """Count what became of those of one connection among the newest."""
    return _count(db, k.id == connection_id, days, most)


def of_integration(db: sa.Connection, name: str, days: float = DAYS, most: int = MAX_ROWS) -> Sample:
    """Count what became of those of one warehouse system among the newest; its name in any case."""
    return _count(db, sa.func.lower(k.integration_name) == name.lower(), days, most)


def of_same_system(db: sa.Connection, connection_id: str) -> Sample:
    """Count quickly what became of cancels in the system of this connection; where that is not stated, in itself."""
    system = sa.select(k.integration_name).where(k.id == connection_id).scalar_subquery()
    return _count(db, (k.id == connection_id) | (k.integration_name == system), DAYS, MAX_ROWS_AT_ONCE)


def _count(db: sa.Connection, which: sa.ColumnElement[bool], days: float, most: int) -> Sample:
    recent = _recent(days, most)
    r = recent.c
    age, hour = _age_of(db.dialect.name, r), utc_hour(r.first_sent_at)
    succeeded, failed, undecided = _succeeded(r), _failed(r), _undecided(r)
    counted = (
        sa.select(
            k.integration_name.label("system"),
            age.label("age"),
            hour.label("hour"),
            *(sa.func.count(sa.case((each, 1))).label(name) for name, each in _named(succeeded, failed, undecided)),
            sa.func.max(sa.case((succeeded, r.first_sent_at))).label("last_success"),
        )
        .join_from(recent, connections, k.id == r.connection_id)
        .where(which, r.first_sent_at.is_not(None), succeeded | failed | undecided)
        .group_by(k.integration_name, "age", "hour")
        .subquery()
    )
    looked_at = sa.select(sa.func.count().label("rows"), sa.func.min(r.received_at).label("since")).subquery()
    # Also where nothing was counted it is said how much was looked at.
    rows = db.execute(
        sa.select(counted, looked_at, db_now().label("now")).outerjoin_from(looked_at, counted, sa.true())
    ).all()
    cells = [_cell(row) for row in rows if row.hour is not None]
    return Sample(cells=cells, rows=rows[0].rows, since=rows[0].since, now=rows[0].now)


def _named(*of_each: sa.ColumnElement[bool]) -> zip[tuple[str, sa.ColumnElement[bool]]]:
    return zip(("succeeded", "failed", "undecided"), of_each, strict=True)


def _recent(days: float, most: int) -> sa.CTE:
    # A clock that moves while a statement runs is no bound of an index; one that was read before is.
    since = sa.select(now_plus(sa.literal(-days * SECONDS_OF_A_DAY, sa.Float()))).scalar_subquery()
    facts = (c.connection_id, c.received_at, c.first_sent_at, c.order_created_at)
    known = (c.ended_at, c.status, c.verdict, c.evidence, c.outcome_reason)
    return (
        sa.select(*facts, *known)
        .where(c.received_at >= since)
        .order_by(c.received_at.desc())
        .limit(sa.literal_column(str(int(most))))  # as text: a plan for any number would not keep to the index
        .cte("recent")
    )


def _age_of(dialect: str, r: Columns) -> sa.ColumnElement[int]:
    """Return the number of AGE_EDGES that an order had reached when its cancel was first sent."""
    seconds = seconds_between(dialect, r.order_created_at, r.first_sent_at)
    below = [(seconds < edge, number) for number, edge in enumerate(AGE_EDGES)]
    unknown = seconds.is_(None) | (seconds < MIN_AGE_SECONDS)
    return sa.case((unknown, sa.null()), *below, else_=len(AGE_EDGES))


def _succeeded(r: Columns) -> sa.ColumnElement[bool]:
    # What was refused and is cancelled all the same, another has cancelled: it says nothing of ours.
    return (r.verdict == Verdict.CANCELLED.value) & (r.status != Status.REJECTED.value) & r.ended_at.is_not(None)


def _failed(r: Columns) -> sa.ColumnElement[bool]:
    # What Trackstar itself refuses never came to the warehouse, but for a system that knows no cancel.
    came = r.evidence.not_in([Evidence.NEVER_SENT.value, Evidence.REFUSAL.value]) | (r.outcome_reason == NOT_SUPPORTED)
    return (r.verdict == Verdict.NOT_CANCELLED.value) & r.ended_at.is_not(None) & came


def _undecided(r: Columns) -> sa.ColumnElement[bool]:
    return r.verdict.in_([Verdict.ACCEPTED.value, Verdict.UNKNOWN.value]) & r.ended_at.is_not(None)


def _cell(row: Any) -> Cell:
    tally = Tally(succeeded=row.succeeded, failed=row.failed, undecided=row.undecided, last_success=row.last_success)
    return Cell(system=row.system, age=row.age, hour=int(row.hour), tally=tally)
