"""The events in one order that never changes, for whoever reads them from the ledger: each has a place, given once.

An event gets its place when somebody first reads that far. The numbers of rows are no such order: they are taken
before a transaction commits, so a smaller one may appear after a larger one was read. Knows rows and places.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from worker.errors import CursorError
from worker.ledger.dialects import built_once_per_dialect, db_now, insert
from worker.ledger.schema import cursors, events
from worker.ledger.told import select_told, told_of

if TYPE_CHECKING:
    from datetime import datetime

    from worker.ledger.told import Told

e, u = events.c, cursors.c

MAX_READ = 500  # events
MAX_PLACED = 1_000  # in one transaction, in which all other readers wait
COMMIT_TIME = timedelta(minutes=5)  # at most so long after it is written an event is seen
_END = ""  # the name of the feed's own end among the cursors
WITHOUT_PLACE = e.place.is_(None)


def without_place(db: sa.Connection, until: int | None = None) -> bool:
    """Whether an event waits for its place; of those with numbers up to `until`, where it is given."""
    which = WITHOUT_PLACE if until is None else WITHOUT_PLACE & (e.id <= until)
    return db.execute(sa.select(sa.exists().where(which))).scalar_one()


def newest_number(db: sa.Connection) -> int:
    """Return the number of the newest event, with a place or without."""
    return db.execute(sa.select(sa.func.max(e.id))).scalar() or 0


def give_places(db: sa.Connection) -> int:
    """Give the next events their places, by their numbers; return how many. In a transaction of the caller's.

    One reader at a time does it, and in one statement: of two events of one cancellation the second is written after
    the first is committed, so what sees the second sees both. It waits for no row of an event, or it and whoever
    publishes or prunes many could wait for each other: it stops before the first that another holds.
    """
    end = _locked_end(db)
    count = len(db.execute(_placing(db), {"end": end, "limit": MAX_PLACED}).all())
    if count:
        db.execute(sa.update(cursors).where(u.consumer == _END).values(place=end + count))
    return count


@built_once_per_dialect
def _placing(_dialect: str) -> Any:
    limit = sa.bindparam("limit", type_=sa.Integer())
    waiting = sa.select(e.id).where(WITHOUT_PLACE).order_by(e.id).limit(limit)
    wanted, free = waiting.cte("wanted"), waiting.with_for_update(skip_locked=True, key_share=True).cte("free")
    held = sa.select(sa.func.min(wanted.c.id)).where(wanted.c.id.not_in(sa.select(free.c.id))).scalar_subquery()
    row = sa.func.row_number().over(order_by=free.c.id).label("row")
    before = sa.select(free.c.id, row).where(held.is_(None) | (free.c.id < held)).subquery()
    end = sa.bindparam("end", type_=sa.BigInteger())
    return sa.update(events).where(e.id == before.c.id).values(place=before.c.row + end).returning(e.id)


def _locked_end(db: sa.Connection) -> int:
    new = insert(db.dialect.name, cursors).values(consumer=_END, place=0, moved_at=db_now())
    locked = new.on_conflict_do_update(index_elements=[u.consumer], set_={"moved_at": db_now()})
    end: int = db.execute(locked.returning(u.place)).scalar_one()
    return end


def read_feed(db: sa.Connection, after: int, limit: int = MAX_READ) -> list[Told]:
    """Read the next events beyond a place, in their order."""
    rows = db.execute(select_told().where(e.place > after).order_by(e.place).limit(limit)).all()
    return sorted(told_of(db, rows), key=lambda told: told.place or 0)


def end_of_feed(db: sa.Connection) -> int:
    """Return the place of the newest event that has one."""
    return place_of(db, _END) or 0


def check_place(db: sa.Connection, place: int) -> None:
    """Raise CursorError where the feed has never come so far: then it is another ledger, or one that was restored."""
    if place > (end := end_of_feed(db)):
        raise CursorError(
            f"The cursor {place} is beyond the end of the feed, {end}: this is another ledger, or it was restored "
            "from a backup. Read again from an instant (`since`), and drop what you have seen by its id."
        )


def place_since(db: sa.Connection, since: datetime) -> int:
    """Return a place beyond which everything stands that was written at `since` or later, and perhaps older ones."""
    early = since - COMMIT_TIME
    before = sa.select(e.place).where(e.place.is_not(None), e.created_at < early).order_by(e.place.desc()).limit(1)
    return db.execute(before).scalar() or 0


def place_of(db: sa.Connection, consumer: str) -> int | None:
    """Return how far a consumer has read; None where it never has."""
    place: int | None = db.execute(sa.select(u.place).where(u.consumer == consumer)).scalar_one_or_none()
    return place


def move(db: sa.Connection, consumer: str, place: int) -> None:
    """Note how far a consumer has read."""
    new = insert(db.dialect.name, cursors).values(consumer=consumer, place=place, moved_at=db_now())
    changed: Any = {"place": new.excluded.place, "moved_at": new.excluded.moved_at}
    db.execute(new.on_conflict_do_update(index_elements=[u.consumer], set_=changed))
