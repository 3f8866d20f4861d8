"""Which cancellations a person means, and how they are found, the newest first, without reading a whole ledger.

`list`, `replay` and `withdraw` choose by the same filter. Knows rows and indexes; does not know what is done then.

What is found by a number, by waiting or by what it lacks is gathered from indexes that hold little else. Everything
else is looked for along one index in the order of receipt, in stretches of bounded length (and what came at the same
instant as their last row): no statement reads more than one stretch, and `find_page` gives up after a few of them and
says where to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from worker.cancellation.policy import Policy
from worker.cancellation.request import is_record_id
from worker.cancellation.status import FINAL, UNPROVEN, SafeToRefund, Status, Verdict
from worker.errors import UnknownCancellationError
from worker.ledger import outlook, queries
from worker.ledger.dialects import id_in_chosen, json_member_is
from worker.ledger.record import Cancellation
from worker.ledger.schema import FAILED, LEASED, LEFT_OPEN, PENDING, UNSETTLED, WAITING, cancellations

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c

STRETCHES = (1_000, 10_000, 50_000)  # rows; the last one again and again
LOOK_AT = 500_000  # rows that one page looks at, at most
UNENDED = frozenset(Status) - FINAL
_OPEN = {Status.PENDING: PENDING, Status.WAITING: WAITING, Status.QUEUED: LEASED, Status.IN_FLIGHT: LEASED}


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which cancellations are meant: those that match all that is given; of several words, one of them."""

    name: str | None = None  # an order id, a reference id or an order number
    order_id: str | None = None
    reference: str | None = None  # without case; with or without a '#' before it, as order numbers are
    order_number: str | None = None
    connection_id: str | None = None
    status: tuple[Status, ...] = ()
    verdict: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    refund: SafeToRefund | None = None
    reason: str | None = None  # of the outcome
    requested_by: str | None = None
    metadata: Mapping[str, str] = {}
    batch: str | None = None
    since: datetime | None = None  # of receipt
    until: datetime | None = None
    older_than: float | None = None  # seconds since receipt, by the ledger's clock
    newer_than: float | None = None
    needs_person: bool = False
    undoubted: bool = False  # nothing of it may have reached the warehouse


class Page(msgspec.Struct, frozen=True):
    """What was found; `after` is where to go on, and None where all was looked at."""

    found: list[Cancellation]
    after: str | None = None
    looked_back_to: datetime | None = None  # where it was given up before enough was found


EVERYTHING = Filter()
_DEFAULT = Policy()


def find(
    db: sa.Connection, which: Filter = EVERYTHING, *, limit: int = 50, policy: Policy = _DEFAULT
) -> list[Cancellation]:
    """Return the newest cancellations that match, however far they are."""
    return find_page(db, which, limit=limit, policy=policy, look_at=None).found


def find_page(
    db: sa.Connection,
    which: Filter = EVERYTHING,
    *,
    limit: int = 50,
    after: str | None = None,
    policy: Policy = _DEFAULT,
    look_at: int | None = LOOK_AT,
) -> Page:
    """Return the newest cancellations that match, from behind the one with the id `after` on.

    Raises UnknownCancellationError where `after` is none.
    """
    which = _with_times(db, which)
    place = _place_of(db, after) if after is not None else None
    branches = _branches(which)
    found: list[Any] = []
    looked, stretch, looked_back_to = 0, 0, None
    while True:
        size = STRETCHES[min(stretch, len(STRETCHES) - 1)]
        end = None if branches else _end_of_stretch(db, which, place, size)
        found += db.execute(_matching(db.dialect.name, which, branches, place, end, limit + 1 - len(found))).all()
        if end is None or len(found) > limit:
            break
        place, looked, stretch = end, looked + size, stretch + 1
        if look_at is not None and looked >= look_at:
            place, looked_back_to = _last_of(db, which, end), end.received_at
            break
    shown = [queries.as_cancellation(row, policy) for row in found[:limit]]
    if len(found) > limit:
        return Page(shown, shown[-1].id)
    return Page(shown, place.id if place and looked_back_to else None, looked_back_to)


class _Place(msgspec.Struct, frozen=True):
    """A place in the order of receipt: behind one row, or, without an id, behind all of its instant."""

    received_at: datetime
    id: str | None = None


def _with_times(db: sa.Connection, which: Filter) -> Filter:
    """Turn ages into instants: as values, since PostgreSQL searches no index for what its clock says."""
    if which.older_than is None and which.newer_than is None:
        return which
    now = queries.now(db)
    until, since = (
        None if age is None else now - timedelta(seconds=age) for age in (which.older_than, which.newer_than)
    )
    return replace(
        which,
        since=max(filter(None, (which.since, since)), default=None),
        until=min(filter(None, (which.until, until)), default=None),
    )


def _place_of(db: sa.Connection, record_id: str) -> _Place:
    row = db.execute(
        sa.select(c.received_at, c.id).where(c.id == record_id if is_record_id(record_id) else sa.false())
    ).one_or_none()
    if row is None:
        raise UnknownCancellationError(f"Nothing in the ledger has the id {record_id}: begin again without it.")
    return _Place(row.received_at, str(row.id))


# ---- the order of receipt

_NEWEST_FIRST = (c.received_at.desc(), c.id.desc())


def _older(place: _Place | None) -> list[sa.ColumnElement[bool]]:
    if place is None:
        return []
    if place.id is None:
        return [c.received_at < place.received_at]
    return [c.received_at <= place.received_at, (c.received_at < place.received_at) | (c.id < place.id)]


def _end_of_stretch(db: sa.Connection, which: Filter, place: _Place | None, size: int) -> _Place | None:
    """Return the place behind so many rows from another on, and all of the last one's instant; None: there are fewer.

    Without ids, which are in no index of receipt: then no row is read, but only the index.
    """
    begin = [c.received_at <= place.received_at] if place and place.id else _older(place)
    row = db.execute(
        sa.select(c.received_at)
        .where(*_along(which), *_times(which), *begin)
        .order_by(c.received_at.desc())
        .offset(size - 1)
        .limit(1)
    ).one_or_none()
    return _Place(row.received_at) if row else None


def _last_of(db: sa.Connection, which: Filter, end: _Place) -> _Place:
    """Return the place behind the last row of a stretch."""
    row = db.execute(
        sa.select(c.received_at, c.id)
        .where(*_along(which), *_times(which), c.received_at >= end.received_at)
        .order_by(c.received_at, c.id)
        .limit(1)
    ).one()
    return _Place(row.received_at, str(row.id))


def _along(which: Filter) -> list[sa.ColumnElement[bool]]:
    """Return the condition whose index is followed: each is in the order of receipt."""
    if which.batch is not None:
        return [c.batch == which.batch, c.batch.is_not(None)]
    if which.status and set(which.status) <= FINAL - {Status.SUCCEEDED}:
        return [FAILED]
    return [c.connection_id == which.connection_id] if which.connection_id is not None else []


def _times(which: Filter) -> list[sa.ColumnElement[bool]]:
    since = [] if which.since is None else [c.received_at >= which.since]
    return since if which.until is None else [*since, c.received_at < which.until]


# ---- what matches


def _matching(
    dialect: str,
    which: Filter,
    branches: Sequence[sa.ColumnElement[bool]],
    place: _Place | None,
    end: _Place | None,
    limit: int,
) -> sa.Select[Any]:
    matching = [*_conditions(dialect, which), *_times(which), *_older(place)]
    query = sa.select(*queries.COLUMNS).order_by(*_NEWEST_FIRST).limit(limit)
    if not branches:
        until = [] if end is None else [c.received_at >= end.received_at]
        return query.where(*_along(which), *matching, *until)
    each = [sa.select(c.id, c.received_at).where(branch, *matching) for branch in branches]
    # Without the OFFSET, PostgreSQL may look for the newest of them among all rows instead of in their index.
    gathered = (sa.union(*each) if len(each) > 1 else each[0]).offset(0).subquery()
    newest = sa.select(gathered.c.id).order_by(gathered.c.received_at.desc(), gathered.c.id.desc()).limit(limit)
    return query.where(id_in_chosen(dialect, c.id, newest))


def _branches(which: Filter) -> list[sa.ColumnElement[bool]]:
    """Return conditions, each with an index that holds few other rows, which together hold all that match; or none."""
    if which.name is not None:
        return [c.order_id == which.name, *(_is_number(column, which.name) for column in NUMBERS)]
    for column, value in zip(
        (c.order_id, *NUMBERS), (which.order_id, which.reference, which.order_number), strict=True
    ):
        if value is not None:
            return [c.order_id == value if column is c.order_id else _is_number(column, value)]
    if which.needs_person:
        return list(outlook.FOR_A_PERSON)
    if which.status and set(which.status) <= UNENDED:
        return list({id(_OPEN[status]): _OPEN[status] for status in which.status}.values())
    if which.refund is SafeToRefund.NOT_YET or (which.verdict and set(which.verdict) <= set(UNPROVEN)):
        return [PENDING, WAITING, LEASED, UNSETTLED, c.confirm_at.is_not(None), LEFT_OPEN]
    return []


NUMBERS = (c.reference_id, c.order_number)


def _is_number(column: sa.Column[Any], value: str) -> sa.ColumnElement[bool]:
    """Whether a column holds a number that people use, without case, and with or without a '#' before it."""
    bare = value.removeprefix("#")
    # A database's lower() may know no letters but those of ASCII: then at least all-small and all-large are found.
    spelled = {form for each in (bare, f"#{bare}") for form in (each, each.lower(), each.upper())}
    return column.is_not(None) & sa.func.lower(column).in_([sa.func.lower(form) for form in sorted(spelled)])


def _conditions(dialect: str, which: Filter) -> list[sa.ColumnElement[bool]]:
    equal = {
        "order_id": which.order_id,
        "connection_id": which.connection_id,
        "outcome_reason": which.reason,
        "requested_by": which.requested_by,
        "batch": which.batch,
    }
    among = {"status": which.status, "verdict": which.verdict, "evidence": which.evidence}
    numbers = zip(NUMBERS, (which.reference, which.order_number), strict=True)
    return [
        *(c[name] == value for name, value in equal.items() if value is not None),
        *(c[name].in_(words) for name, words in among.items() if words),
        *(_is_number(column, value) for column, value in numbers if value is not None),
        *(json_member_is(dialect, c.metadata, key, value) for key, value in which.metadata.items()),
        *([_REFUND[which.refund]] if which.refund else []),
        *([sa.or_(*outlook.FOR_A_PERSON)] if which.needs_person else []),
        *([c.verdict.is_(None)] if which.undoubted else []),
    ]


_REFUND = {
    SafeToRefund.YES: c.ended_at.is_not(None) & (c.verdict == Verdict.CANCELLED),
    SafeToRefund.NO: c.ended_at.is_not(None) & (c.verdict == Verdict.NOT_CANCELLED),
    SafeToRefund.NOT_YET: c.ended_at.is_(None) | c.verdict.in_(UNPROVEN),
}
