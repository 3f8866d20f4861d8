"""What endpoints were not sent yet, and who sends it: leases, the fan-out of the feed, what is next.

An endpoint is sent to by one worker at a time, under a lease. A delivery is a row from the moment at which the
endpoint's place passes its event until it is delivered, so nothing is lost with a process. Knows rows; does not know
HTTP, schedules, or what an event means.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.delivery import Standing
from worker.cancellation.event import OF_ENDPOINTS, CancellationEvent, ConnectionEvent, Event, ServiceEvent
from worker.ledger import feed
from worker.ledger.dialects import (
    built_once_per_dialect,
    db_now,
    id_in_chosen,
    insert,
    now_plus_parameter,
)
from worker.ledger.schema import cursors, deliveries, endpoints

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from worker.ledger.told import Told

d, p = deliveries.c, endpoints.c

MAX_TAKEN = 200  # endpoints at once
MAX_WAITING = 1000  # deliveries of one endpoint that are still tried; beyond that it waits in the feed
MAX_READ = 200  # events of the feed at once, for all endpoints at one place
ACTIVE = p.state == sa.literal_column("'active'")


class Lane(msgspec.Struct, kw_only=True):
    """An endpoint that this worker sends to, as it was when it was taken."""

    id: str
    url: str
    types: list[str] | None
    connections: list[str] | None
    secret: str  # encrypted
    old_secret: str | None
    old_secret_until: datetime | None
    place: int
    active: bool
    standing: Standing

    def wants(self, event: Event) -> bool:
        """Whether an event is among what it asked for; of endpoints only one that asks for it hears, and of others."""
        if self.types is None:
            # Where many receivers are away, news of each to all of them would be more than the events.
            return event.type not in OF_ENDPOINTS and self._of_mine(event)
        own = isinstance(event, ServiceEvent) and event.endpoint_id == self.id
        return event.type in self.types and not own and self._of_mine(event)

    def _of_mine(self, event: Event) -> bool:
        return self.connections is None or getattr(event, "connection_id", None) in self.connections


class Due(msgspec.Struct, frozen=True):
    """A delivery that may be made now."""

    endpoint_id: str
    number: int
    tries: int


def subject_of(event: Event, number: int) -> str:
    """Name what an event is about, so that events of one order, or of one connection, are sent one after another."""
    if isinstance(event, CancellationEvent):
        name = f"order\n{event.connection_id}\n{event.order_id}"
    elif isinstance(event, ConnectionEvent):
        name = f"connection\n{event.connection_id or ''}"
    else:
        name = f"event\n{number}"
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


# ---- what there is to do


def _ready() -> sa.ColumnElement[bool]:
    """Whether a delivery may be made: it is due, and no earlier one of its subject waits."""
    earlier = deliveries.alias("earlier")
    before = sa.exists(
        sa.select(sa.literal(1)).where(
            earlier.c.endpoint_id == d.endpoint_id,
            earlier.c.subject == d.subject,
            earlier.c.event_number < d.event_number,
            earlier.c.due_at.is_not(None),
        )
    )
    now = sa.select(db_now()).scalar_subquery()  # asked once: PostgreSQL seeks in no index for a time that moves on
    return (d.due_at <= now) & ~before


_READY = _ready()
_HAS_READY = sa.exists(sa.select(sa.literal(1)).where(d.endpoint_id == p.id, _READY))
_TRIED = sa.select(sa.literal(1)).where(d.endpoint_id == p.id, d.due_at.is_not(None))
_FULL = sa.exists(_TRIED.offset(MAX_WAITING - 1).limit(1))
_END = sa.select(sa.func.coalesce(sa.func.max(cursors.c.place), 0)).where(cursors.c.consumer == "").scalar_subquery()
_HAS_WORK = sa.and_(
    ACTIVE,
    sa.or_(p.lease_expires_at.is_(None), p.lease_expires_at <= db_now()),
    sa.or_(p.retry_at.is_(None), p.retry_at <= db_now()),
    sa.or_(_HAS_READY, (p.place < _END) & ~_FULL),
)
_LANE = (p.id, p.url, p.types, p.connections, p.secret, p.old_secret, p.old_secret_until, p.place)
_STATE = (p.state, p.failures, p.failing_since, p.counted_at, p.told)


def survey(db: sa.Connection, limit: int) -> tuple[int, int]:
    """Return how many endpoints are active, and the most consecutive failures of one; at `limit` it is paused."""
    failing = sa.func.max(p.failures).filter(ACTIVE | (p.failures >= limit))
    found = db.execute(sa.select(sa.func.count().filter(ACTIVE), failing)).one()
    return found[0], found[1] or 0


def has_work(db: sa.Connection) -> bool:
    """Whether some endpoint waits for a worker."""
    return db.execute(sa.select(sa.exists(sa.select(p.id).where(_HAS_WORK)))).scalar_one()


@built_once_per_dialect
def _take(dialect: str) -> Any:
    known = sa.case((p.id.in_(sa.bindparam("first", expanding=True)), 0), else_=1)
    order = (known, p.failures, sa.func.random())
    free = sa.select(p.id).where(_HAS_WORK).order_by(*order).limit(MAX_TAKEN)
    return (
        sa.update(endpoints)
        .where(id_in_chosen(dialect, p.id, free.with_for_update(of=endpoints, skip_locked=True)))
        .values(lease_owner=sa.bindparam("owner"), lease_expires_at=now_plus_parameter("lease_seconds"))
        .returning(*_LANE, *_STATE)
    )


def take(db: sa.Connection, owner: str, lease_seconds: float, first: Collection[str]) -> list[Lane]:
    """Take endpoints that have something to do and that nobody holds: `first` these, and those that fail last."""
    rows = db.execute(_take(db), {"owner": owner, "lease_seconds": lease_seconds, "first": list(first)})
    return [_lane(row) for row in rows]


def mine(db: sa.Connection, owner: str, ids: Collection[str]) -> list[Lane]:
    """Return those of these endpoints that the worker still holds, as they are now, and lock them."""
    held = sa.select(*_LANE, *_STATE).where(p.id.in_(ids), p.lease_owner == owner).order_by(p.id)
    return [_lane(row) for row in db.execute(held.with_for_update(key_share=True))]


def _lane(row: Any) -> Lane:
    facts = {column.name: getattr(row, column.name) for column in _LANE}
    standing = Standing(row.failures, row.failing_since, row.counted_at, row.told)
    return Lane(**facts, active=row.state == "active", standing=standing)


def fan_out(db: sa.Connection, lanes: Collection[Lane]) -> tuple[list[Told], bool]:
    """Write the next deliveries of these endpoints, and move their places on.

    Returns what was read, and whether there is more of it.
    """
    if not lanes:
        return [], False
    end = feed.end_of_feed(db)
    if not (behind := sorted((each for each in lanes if each.place < end), key=lambda lane: lane.place)):
        return [], False
    full = set(db.execute(sa.select(p.id).where(p.id.in_([each.id for each in behind]), _FULL)).scalars())
    read: list[Told] = []
    more = False
    for place, group in groupby((each for each in behind if each.id not in full), key=lambda lane: lane.place):
        told = feed.read_feed(db, place, MAX_READ)
        _write_deliveries(db, told, group, told[-1].place or end if told else end)
        read, more = [*read, *told], more or len(told) == MAX_READ
    return read, more


def _write_deliveries(db: sa.Connection, told: Sequence[Told], lanes: Iterable[Lane], place: int) -> None:
    subjects = {each.number: subject_of(each.event, each.number) for each in told}
    moved, rows = [], []
    for lane in lanes:
        lane.place = place
        moved.append(lane.id)
        wanted = [each.number for each in told if lane.wants(each.event)]
        rows += [{"endpoint_id": lane.id, "event_number": each, "subject": subjects[each]} for each in wanted]
    if rows:
        new = insert(db.dialect.name, deliveries).values(due_at=db_now())
        db.execute(new.on_conflict_do_nothing(), rows)
    db.execute(sa.update(endpoints).where(p.id.in_(moved)).values(place=place))


_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer())


def _choose_from_all(first: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Select what comes `first` of each endpoint: everything that waits for it is read."""
    row = sa.func.row_number().over(partition_by=d.endpoint_id, order_by=(first, d.event_number)).label("row")
    ready = sa.select(d.endpoint_id, d.event_number, d.tries, row).where(d.endpoint_id.in_(_IDS), _READY).subquery()
    columns = (ready.c.endpoint_id, ready.c.event_number, ready.c.tries)
    return sa.select(*columns).where(ready.c.row <= _LIMIT).order_by(ready.c.row)


@built_once_per_dialect
def _choose_oldest(dialect: str) -> Any:
    if dialect == "sqlite":
        return _choose_from_all(sa.literal(0))
    oldest = sa.select(d.event_number, d.tries).where(d.endpoint_id == p.id, _READY)
    few = oldest.order_by(d.event_number).limit(_LIMIT).lateral()
    return sa.select(p.id, few.c.event_number, few.c.tries).where(p.id.in_(_IDS)).order_by(few.c.event_number)


@built_once_per_dialect
def _choose_least_tried(_dialect: str) -> Any:
    return _choose_from_all(d.tries)


def choose(db: sa.Connection, lanes: Collection[Lane], limit: int) -> list[Due]:
    """Return up to `limit` deliveries of each of these endpoints that may be made now, the oldest of each first.

    Of one that fails first what was tried least: an event that it always refuses does not take all its tries.
    """
    found: list[Due] = []
    for statement, fails in ((_choose_oldest, False), (_choose_least_tried, True)):
        if ids := [each.id for each in lanes if bool(each.standing.failures) is fails]:
            found += [Due(*row) for row in db.execute(statement(db), {"ids": ids, "limit": limit})]
    return found
