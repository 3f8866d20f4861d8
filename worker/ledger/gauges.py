"""What `/metrics` asks the ledger: one statement, over partial indexes, at a bounded cost however large the ledger is.

Knows rows; does not know the names of series. What is counted is counted up to a limit, and read from no table whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.fairness import PRIORITY_RANK
from worker.cancellation.status import UNPROVEN
from worker.inputs.headers import MAX_RATE, MIN_RATE
from worker.ledger.dialects import UtcTimestamp, db_now
from worker.ledger.schema import (
    HOLD_REASONS,
    LEASED,
    PENDING,
    RANK,
    UNSETTLED,
    WAITING,
    cancellations,
    connections,
    dead_letters,
    events,
)
from worker.ledger.selection import HAS_PENDING, OPEN

if TYPE_CHECKING:
    from collections.abc import Sequence

c = cancellations.c
k = connections.c
d = dead_letters.c

MAX_COUNTED = 100_000  # rows of one status
MAX_UNSETTLED = 20_000
MAX_DEAD_LETTERS = 10_000
MAX_EVENTS = 10_000
MAX_CONNECTIONS = 1_000  # that are named


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the ledger, in numbers and our own words. Ages are in seconds."""

    backlog: dict[str, int]  # by status
    oldest_due: dict[str, float]  # by priority
    unproven: dict[str, int]  # by verdict
    unproven_age: dict[str, float]
    needs_person: dict[str, int]  # by why
    held: dict[str, int]  # by reason
    open_connections: int
    writes_per_second: float  # of all open connections
    dead_letters: dict[str, int]  # by reason
    outbox_age: float


def _number(value: int) -> sa.ColumnElement[int]:
    """Write a number into the statement, whose plan is then made for it."""
    return sa.literal_column(str(value), sa.Integer())


_NO_TIME = sa.null().cast(UtcTimestamp())
_NO_NUMBER = sa.cast(_number(0), sa.Float())


def _fact(
    what: str,
    word: Any,
    number: Any,
    at: Any = _NO_TIME,
    more: Any = _NO_NUMBER,
) -> sa.Select[Any]:
    """Select rows of one shape: what it is, a word, a number, an instant, and one more number."""
    return sa.select(
        sa.literal_column(f"'{what}'", sa.Text()).label("what"),
        word.label("word"),
        sa.cast(number, sa.BigInteger()).label("number"),
        at.label("at"),
        more.label("more"),
    )


def _text(word: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{word}'", sa.Text())


def _counted(status: str, which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    rows = sa.select(_number(1)).where(which).limit(_number(MAX_COUNTED)).subquery()
    return _fact("backlog", _text(status), sa.func.count()).select_from(rows)


def _leased() -> sa.Select[Any]:
    return _fact("backlog", c.status, sa.func.count()).where(LEASED).group_by(c.status)


def _oldest(priority: str, rank: int) -> sa.Select[Any]:
    """Select since when the head of a priority may be sent, of the connection that has waited longest.

    The oldest row is the first of those without a `send_by`, or of those with one, which go by that. What was sent
    before is left out: nobody knows since when it is due again. A resumed connection's rows are due since then.
    """
    since = sa.case((c.received_at > k.updated_at, c.received_at), else_=k.updated_at)
    heads = [
        sa.select(since)
        .where(c.connection_id == k.id, PENDING, _number(rank) == RANK, c.first_sent_at.is_(None), those)
        .order_by(c.send_by.asc().nulls_last(), c.requested_at)
        .limit(_number(1))
        .correlate(connections)
        .scalar_subquery()
        for those in (c.send_by.is_(None), c.send_by.is_not(None))
    ]
    found = sa.union_all(*(sa.select(head.label("since")).where(OPEN, HAS_PENDING) for head in heads)).subquery()
    return _fact("due", _text(priority), _number(0), sa.func.min(found.c.since, type_=UtcTimestamp()))


def _unsettled() -> sa.Select[Any]:
    rows = sa.select(c.verdict, c.needs_person, c.ended_at).where(UNSETTLED).limit(_number(MAX_UNSETTLED)).subquery()
    unproven = rows.c.verdict.in_([_text(each) for each in UNPROVEN])
    # Waits for a crawl, or for a person: one of both.
    what = sa.case((rows.c.needs_person.is_(None), _text("unproven")), else_=_text("person"))
    word = sa.func.coalesce(rows.c.needs_person, rows.c.verdict)
    return (
        sa.select(
            what.label("what"),
            word.label("word"),
            sa.cast(sa.func.count(), sa.BigInteger()).label("number"),
            sa.func.min(rows.c.ended_at, type_=UtcTimestamp()).label("at"),
            _NO_NUMBER.label("more"),
        )
        .where(rows.c.ended_at.is_not(None), unproven)
        .group_by(what, word)
    )


_default_rate = sa.bindparam("default_rate", type_=sa.Float())


def _of_connections() -> sa.Select[Any]:
    rate = sa.case((k.writes_per_second.between(MIN_RATE, MAX_RATE), k.writes_per_second), else_=_default_rate)
    return _fact(
        "held", sa.func.coalesce(k.hold_reason, ""), sa.func.count(), more=sa.func.sum(rate, type_=sa.Float())
    ).group_by(k.hold_reason)


def _of_dead_letters() -> sa.Select[Any]:
    sent_again = d.requeued_at.is_not(None)
    newest = sa.select(d.reason).where(~sent_again).order_by(d.id.desc()).limit(_number(MAX_DEAD_LETTERS)).subquery()
    return _fact("dead", newest.c.reason, sa.func.count()).group_by(newest.c.reason)


def _of_outbox() -> sa.Select[Any]:
    first = (
        sa.select(events.c.created_at)
        .where(events.c.publish_at.is_not(None))
        .order_by(events.c.publish_at)
        .limit(_number(MAX_EVENTS))
        .subquery()
    )
    return _fact("outbox", _text(""), _number(0), sa.func.min(first.c.created_at, type_=UtcTimestamp())).select_from(
        first
    )


_FACTS = sa.union_all(
    _counted("pending", PENDING),
    _counted("waiting", WAITING),
    _leased(),
    *(_oldest(priority, rank) for priority, rank in PRIORITY_RANK.items()),
    _unsettled(),
    _of_connections(),
    _of_dead_letters(),
    _of_outbox(),
).subquery("facts")
_GAUGES = sa.select(_FACTS, db_now().label("now"))


def read(db: sa.Connection, default_rate: float) -> Gauges:
    """Read all of it in one statement. `default_rate`: writes per second of a connection without one of its own."""
    rows = db.execute(_GAUGES, {"default_rate": default_rate}).all()

    def numbers(what: str) -> dict[str, int]:
        return {row.word: row.number for row in rows if row.what == what}

    def ages(what: str) -> dict[str, float]:
        found = {row.word: (row.now - row.at).total_seconds() if row.at else 0.0 for row in rows if row.what == what}
        return {word: max(0.0, age) for word, age in found.items()}

    held = numbers("held")
    return Gauges(
        backlog={"pending": 0, "queued": 0, "in_flight": 0, "waiting": 0} | numbers("backlog"),
        oldest_due=ages("due"),
        unproven=dict.fromkeys(map(str, UNPROVEN), 0) | numbers("unproven"),
        unproven_age=dict.fromkeys(map(str, UNPROVEN), 0.0) | ages("unproven"),
        needs_person=numbers("person"),
        open_connections=held.pop("", 0),
        held=dict.fromkeys(HOLD_REASONS, 0) | held,
        writes_per_second=sum(row.more or 0.0 for row in rows if row.what == "held" and not row.word),
        dead_letters=numbers("dead"),
        outbox_age=max(ages("outbox").values(), default=0.0),
    )


def named_connections(db: sa.Connection) -> Sequence[Any]:
    """Return id, name, owner and integration of the first connections that have a token."""
    columns = (k.id, k.name, k.owner, k.integration_name)
    return db.execute(
        sa.select(*columns).where(k.access_token.is_not(None)).order_by(k.id).limit(MAX_CONNECTIONS)
    ).all()
