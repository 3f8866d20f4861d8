"""Endpoints as people see and change them: where events are sent to over HTTP. Secrets come and go encrypted.

Knows rows; does not know HTTP, signatures, or who sends.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.ledger import deliveries, delivery_notes, feed
from worker.ledger.dialects import db_now, insert, now_plus
from worker.ledger.outbox import add_events
from worker.ledger.schema import deliveries as table
from worker.ledger.schema import delivery_tries, endpoints, events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.ledger.told import Told

d, e, p, t = table.c, events.c, endpoints.c, delivery_tries.c

OVERLAP = timedelta(days=1)  # in which the old secret signs too
MAX_COUNTED = 10_000
ALL = 100  # percent


class UnknownEndpointError(ValueError):
    """There is no such endpoint; the text says so."""


class EndpointRow(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint as people see it; never its secret."""

    id: str
    url: str
    types: list[str] | None
    connections: list[str] | None
    state: str
    failures: int  # consecutive
    failing_since: datetime | None
    retry_at: datetime | None
    old_secret_until: datetime | None  # both secrets sign until then
    created_at: datetime
    waiting: int  # deliveries that are to be made, up to MAX_COUNTED
    set_aside: int  # that are not tried by themselves any more
    behind: int  # events of the feed that it was not looked at for, up to MAX_COUNTED


class Try(msgspec.Struct, frozen=True):
    """One try, as it is kept."""

    event_number: int
    try_: int
    at: datetime
    duration_ms: int
    status: int | None
    reason: str


def new_id() -> str:
    """Return an id for an endpoint: its secret is encrypted for it before there is a row."""
    return f"ep_{secrets.token_hex(8)}"


def add(
    db: sa.Connection,
    url: str,
    encrypted_secret: str,
    *,
    types: Sequence[str] | None = None,
    connections: Sequence[str] | None = None,
    id_: str | None = None,
) -> str:
    """Add an endpoint, which gets what comes from now on; return its id, one of `new_id` or a new one."""
    while feed.without_place(db):
        feed.give_places(db)
    id_ = id_ or new_id()
    db.execute(
        sa.insert(endpoints).values(
            id=id_,
            url=url,
            secret=encrypted_secret,
            types=list(types) if types else None,
            connections=list(connections) if connections else None,
            state="active",
            place=feed.end_of_feed(db),
            created_at=db_now(),
        )
    )
    return id_


def _count(which: sa.ColumnElement[bool], table: sa.Table) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(table).where(which).scalar_subquery()


_SHOWN = (
    *(p.id, p.url, p.types, p.connections, p.state, p.failures, p.failing_since, p.retry_at),
    *(p.old_secret_until, p.created_at, p.place, db_now().label("now")),
    _count((d.endpoint_id == p.id) & d.due_at.is_not(None), table).label("waiting"),
    _count((d.endpoint_id == p.id) & d.due_at.is_(None), table).label("set_aside"),
)


def list_all(db: sa.Connection) -> list[EndpointRow]:
    """Return every endpoint, the oldest first."""
    return [_row(db, row) for row in db.execute(sa.select(*_SHOWN).order_by(p.created_at, p.id)).all()]


def known(db: sa.Connection, endpoint_id: str) -> EndpointRow:
    """Return one endpoint. Raises UnknownEndpointError."""
    row = db.execute(sa.select(*_SHOWN).where(p.id == endpoint_id)).one_or_none()
    if row is None:
        raise UnknownEndpointError(f"There is no endpoint {endpoint_id}: see `cancel-worker endpoints list`.")
    return _row(db, row)


def _row(db: sa.Connection, row: Any) -> EndpointRow:
    facts = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name
    place, now = facts.pop("place"), facts.pop("now")
    until = facts["old_secret_until"]
    facts["old_secret_until"] = until if until and until > now else None
    beyond = sa.select(e.id).where(e.place > place).limit(MAX_COUNTED).subquery()
    behind = db.execute(sa.select(sa.func.count()).select_from(beyond)).scalar_one()
    return EndpointRow(**facts, behind=behind)


def last_tries(db: sa.Connection, endpoint_id: str, limit: int) -> list[Try]:
    """Return the newest tries of an endpoint, also of one that is gone."""
    columns = (t.event_number, t["try"], t.at, t.duration_ms, t.status, t.reason)
    query = sa.select(*columns).where(t.endpoint_id == endpoint_id).order_by(t.id.desc()).limit(limit)
    return [Try(*row) for row in db.execute(query)]


def waiting(db: sa.Connection, endpoint_id: str, limit: int) -> Sequence[Any]:
    """Return event number, tries and due time of the oldest deliveries; one that is set aside has no time."""
    query = sa.select(d.event_number, d.tries, d.due_at).where(d.endpoint_id == endpoint_id)
    return db.execute(query.order_by(d.event_number).limit(limit)).all()


def encrypted_secret(db: sa.Connection, endpoint_id: str) -> str:
    """Return the encrypted secret of an endpoint. Raises UnknownEndpointError."""
    known(db, endpoint_id)
    secret: str = db.execute(sa.select(p.secret).where(p.id == endpoint_id)).scalar_one()
    return secret


def rotate(db: sa.Connection, endpoint_id: str, encrypted: str) -> None:
    """Give an endpoint a new secret; the one before signs too for a day."""
    known(db, endpoint_id)
    until = now_plus(sa.literal(OVERLAP.total_seconds(), sa.Float()))
    changes = {"old_secret": p.secret, "old_secret_until": until, "secret": encrypted}
    db.execute(sa.update(endpoints).where(p.id == endpoint_id).values(**changes))


def pause(db: sa.Connection, endpoint_id: str) -> bool:
    """Send nothing more; return whether it was sent to. What comes waits in the feed."""
    known(db, endpoint_id)
    active = (p.id == endpoint_id) & (p.state == "active")
    return db.execute(sa.update(endpoints).where(active).values(state="paused")).rowcount > 0


def resume(db: sa.Connection, endpoint_id: str) -> None:
    """Go on from where it was, also with what was set aside, and with all tries anew."""
    known(db, endpoint_id)
    fresh = {"failures": 0, "failing_since": None, "counted_at": None, "told": 0, "retry_at": None}
    db.execute(sa.update(endpoints).where(p.id == endpoint_id).values(state="active", **fresh))
    delivery_notes.bring_forward(db, endpoint_id, anew=True)


def remove(db: sa.Connection, endpoint_id: str) -> None:
    """Forget an endpoint and what it was not sent; its tries stay as long as events do."""
    known(db, endpoint_id)
    db.execute(sa.delete(table).where(d.endpoint_id == endpoint_id))
    db.execute(sa.delete(endpoints).where(p.id == endpoint_id))
    add_events(db, [(None, "endpoint.removed", {"endpoint_id": endpoint_id})])


def announce_level(db: sa.Connection, endpoint_id: str, percent: int, failures: int) -> None:
    """Tell that an endpoint has reached this part of the limit of failures; at all of it, that it is paused."""
    kind = "endpoint.paused" if percent >= ALL else "endpoint.failing"
    add_events(db, [(None, kind, {"endpoint_id": endpoint_id, "percent": percent, "failures": failures})])


def replay_since(db: sa.Connection, endpoint_id: str, since: datetime) -> None:
    """Send again what it wants that was written since then (perhaps a little before), also what is set aside."""
    known(db, endpoint_id)
    place = feed.place_since(db, since)
    back = (p.id == endpoint_id) & (p.place > place)
    db.execute(sa.update(endpoints).where(back).values(place=place))
    since_then = d.event_number.in_(sa.select(e.id).where(e.place > place))
    aside = (d.endpoint_id == endpoint_id) & d.due_at.is_(None) & since_then
    db.execute(sa.update(table).where(aside).values(due_at=db_now(), tries=0))


def replay_one(db: sa.Connection, endpoint_id: str, told: Told) -> None:
    """Send one event again, whatever it wants."""
    known(db, endpoint_id)
    new = insert(db.dialect.name, table).values(
        endpoint_id=endpoint_id,
        event_number=told.number,
        subject=deliveries.subject_of(told.event, told.number),
        due_at=db_now(),
    )
    again = {"due_at": db_now(), "tries": 0}
    db.execute(new.on_conflict_do_update(index_elements=[d.endpoint_id, d.event_number], set_=again))


def secrets_of_all(db: sa.Connection) -> dict[str, list[str]]:
    """Return the encrypted secrets of each endpoint that sign."""
    old = sa.case((p.old_secret_until > db_now(), p.old_secret)).label("old")
    rows = db.execute(sa.select(p.id, p.secret, old).order_by(p.id))
    return {row.id: [each for each in (row.secret, row.old) if each] for row in rows}


def rekey(db: sa.Connection, reencrypt: Callable[[str, str], str]) -> int:
    """Encrypt every secret anew, which is told with its endpoint's id; return of how many endpoints."""
    rows = db.execute(sa.select(p.id, p.secret, p.old_secret).order_by(p.id).with_for_update()).all()
    for row in rows:
        old = reencrypt(row.old_secret, row.id) if row.old_secret else None
        anew = {"secret": reencrypt(row.secret, row.id), "old_secret": old}
        db.execute(sa.update(endpoints).where(p.id == row.id).values(**anew))
    return len(rows)
