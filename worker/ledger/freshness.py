"""What the ledger keeps of each connection's crawls, and which connections it is asked about.

Knows rows; what a crawl proves, `cancellation.proof` knows. One row per connection that was ever asked about.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.freshness import Crawls, CrawlStatus
from worker.cancellation.proof import PASSING
from worker.ledger.claims import STILL_READ
from worker.ledger.dialects import db_now, insert, now_plus
from worker.ledger.schema import UNSETTLED, WATCHED, cancellations, connections, freshness

if TYPE_CHECKING:
    from collections.abc import Mapping

c, k, f = cancellations.c, connections.c, freshness.c

_CRAWLS = tuple(Crawls.__struct_fields__)
FIRST_LOOK_SECONDS = 86_400.0  # what changed so long before Trackstar was first asked is read too


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """One connection of which something waits for proof or is watched, and what is known of its crawls."""

    connection_id: str
    trackstar_id: str
    encrypted_token: str  # "" where it is forgotten
    hold_reason: str | None
    writes_per_second: float | None
    crawls: Crawls | None
    asked: bool  # whether Trackstar was asked about it already
    force_after: datetime | None
    look_at: datetime | None
    looked_to: datetime | None  # None until Trackstar was asked
    next_known_by: datetime | None  # of what waits for a crawl; None where nothing does
    with_person: bool  # whether something is for a person that may pass by itself
    now: datetime

    @property
    def waits(self) -> bool:
        return self.next_known_by is not None

    @property
    def readable(self) -> bool:
        return self.hold_reason is None or self.hold_reason in STILL_READ


def _some(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.exists(sa.select(sa.literal_column("1")).where(c.connection_id == k.id, *conditions))


def watched(db: sa.Connection, watch_seconds: float) -> list[Watch]:
    """Return the connections that have a token and something that waits for proof or is watched.

    And those without one of which something should be known by now: a person must hear of it.
    """
    next_known_by = sa.select(sa.func.min(c.known_by)).where(c.connection_id == k.id, UNSETTLED).scalar_subquery()
    with_person = _some(UNSETTLED, c.needs_person.in_(sorted(PASSING)))
    overtaken = _some(UNSETTLED, c.known_by <= db_now(), c.ended_at.is_not(None))
    # A clock that moves while a statement runs is no bound of an index; one that was read before is.
    since = sa.select(now_plus(sa.literal(-watch_seconds, sa.Float()))).scalar_subquery()
    recent = _some(WATCHED, c.ended_at > since)
    rows = db.execute(
        sa.select(
            k.id.label("connection_id"),
            sa.func.coalesce(f.trackstar_id, k.id).label("trackstar_id"),
            sa.func.coalesce(k.access_token, "").label("encrypted_token"),
            k.hold_reason,
            k.writes_per_second,
            f.connection_id.is_not(None).label("asked"),
            f.force_after,
            f.look_at,
            f.looked_to,
            next_known_by.label("next_known_by"),
            with_person.label("with_person"),
            db_now().label("now"),
            *(f[name].label(f"crawl_{name}") for name in _CRAWLS),
        )
        .outerjoin_from(connections, freshness, f.connection_id == k.id)
        .where(sa.case((k.access_token.is_not(None), recent | _some(UNSETTLED)), else_=overtaken))
        .order_by(k.id)
    )
    return [_watch(row) for row in rows]


def _watch(row: Any) -> Watch:
    facts = {name: getattr(row, name) for name in Watch.__struct_fields__ if name != "crawls"}
    return Watch(**facts, crawls=_crawls(row, "crawl_"))


def _crawls(row: Any, prefix: str = "") -> Crawls | None:
    if getattr(row, f"{prefix}seen_at") is None:
        return None
    known = {name: getattr(row, prefix + name) for name in _CRAWLS}
    return Crawls(**{**known, "status": CrawlStatus(known["status"]), "length": known["length"] or 0.0})


def crawls_of_all(db: sa.Connection) -> dict[str, Crawls]:
    """Return what is known of the crawls of every connection that was asked about."""
    rows = db.execute(sa.select(f.connection_id, *(f[name] for name in _CRAWLS)).where(f.seen_at.is_not(None)))
    return {row.connection_id: crawls for row in rows if (crawls := _crawls(row))}


def crawls_of(db: sa.Connection, connection_id: str) -> Crawls | None:
    """Return what is known of the crawls of one connection."""
    row = db.execute(sa.select(*(f[name] for name in _CRAWLS)).where(f.connection_id == connection_id)).one_or_none()
    return _crawls(row) if row else None


def trackstar_id(db: sa.Connection, connection_id: str) -> str:
    """Return under which id Trackstar knows a connection."""
    known = sa.select(f.trackstar_id).where(f.connection_id == connection_id)
    return db.execute(known).scalar() or connection_id


def keep(db: sa.Connection, seen: Mapping[str, Crawls | None]) -> None:
    """Keep what was seen of these connections' crawls; None: Trackstar was asked, and says nothing of them."""
    for connection_id, crawls in sorted(seen.items()):
        _upsert(db, connection_id, msgspec.structs.asdict(crawls) if crawls else {"status": CrawlStatus.UNKNOWN})
    first = now_plus(sa.literal(-FIRST_LOOK_SECONDS, sa.Float()))
    db.execute(sa.update(freshness).where(f.looked_to.is_(None), f.connection_id.in_(seen)).values(looked_to=first))


def set_trackstar_id(db: sa.Connection, connection_id: str, trackstar_id: str) -> None:
    """Note under which id Trackstar knows a connection, where that is not ours."""
    _upsert(db, connection_id, {"trackstar_id": trackstar_id})


def _upsert(db: sa.Connection, connection_id: str, values: dict[str, Any]) -> None:
    db.execute(
        insert(db.dialect.name, freshness)
        .values({"connection_id": connection_id, "status": CrawlStatus.UNKNOWN, **values})
        .on_conflict_do_update(index_elements=["connection_id"], set_=values)
    )


def claim_forcing(db: sa.Connection, connection_id: str, seconds: float) -> bool:
    """Claim the right to ask for a crawl now; nobody may for so many seconds. False where another has it."""
    _upsert(db, connection_id, {"connection_id": connection_id})
    free = f.force_after.is_(None) | (f.force_after <= db_now())
    return _claim(db, connection_id, free, {"force_after": now_plus(sa.literal(seconds, sa.Float()))})


def put_off_forcing(db: sa.Connection, connection_id: str, seconds: float) -> None:
    """Do without forced crawls for so many seconds: Trackstar refuses them."""
    _upsert(db, connection_id, {"force_after": now_plus(sa.literal(seconds, sa.Float()))})


def claim_look(db: sa.Connection, connection_id: str, seconds: float) -> bool:
    """Claim the right to read what crawls have changed; another may after so many seconds."""
    due = f.look_at <= db_now()
    return _claim(db, connection_id, due, {"look_at": now_plus(sa.literal(seconds, sa.Float()))})


def looked(db: sa.Connection, connection_id: str, to: datetime, again_after: timedelta | None) -> None:
    """Note up to when all changes are known, and when what crawls bring is read again."""
    again = None if again_after is None else now_plus(sa.literal(again_after.total_seconds(), sa.Float()))
    _upsert(db, connection_id, {"looked_to": to, "look_at": again})


def look_now(db: sa.Connection, connection_id: str) -> None:
    """Let what crawls have changed be read now."""
    _upsert(db, connection_id, {"look_at": db_now()})


def _claim(db: sa.Connection, connection_id: str, free: sa.ColumnElement[bool], values: dict[str, Any]) -> bool:
    taken = db.execute(sa.update(freshness).where(f.connection_id == connection_id, free).values(values))
    return taken.rowcount > 0
