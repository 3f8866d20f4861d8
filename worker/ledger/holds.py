"""Holds: a connection set aside with a reason. One update, one event when it starts and one when it ends.

A hold touches no cancellation: a held connection's rows simply stay pending. Knows rows; why a connection is held,
others decide.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from worker.cancellation.outage import FIRST_PROBE_SECONDS, seconds_to_probe
from worker.ledger.dialects import db_now, now_plus
from worker.ledger.outbox import add_events
from worker.ledger.schema import TIMED, connections
from worker.ledger.selection import HAS_PENDING, HAS_SEND

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

k = connections.c

CREDENTIALS = "credentials"
OUTAGE = "outage"
TRACKSTAR_OUTAGE = "trackstar_outage"  # every connection fails alike; one probe serves all
OPERATOR = "operator"
UNKNOWN_CONNECTION = "unknown_connection"
RATE_LIMITED = "rate_limited"  # the server asks for a pause; `probe_at` is its end, and nothing is probed
ALL = (CREDENTIALS, OUTAGE, TRACKSTAR_OUTAGE, OPERATOR, UNKNOWN_CONNECTION, RATE_LIMITED)
PROBED = (CREDENTIALS, OUTAGE, TRACKSTAR_OUTAGE)  # these end when a probe was answered


def hold(db: sa.Connection, ids: Collection[str], reason: str, *, instead_of: str | None = None) -> frozenset[str]:
    """Hold those of these connections that are not held yet, or for a reason that this one overrides; return them."""
    if not ids:  # as in nearly every commit: nothing is built then
        return frozenset()
    free = k.hold_reason.is_(None) if instead_of is None else k.hold_reason.is_(None) | (k.hold_reason == instead_of)
    held = _hold(db, k.id.in_(sorted(ids)) & free, reason)
    _add_held(db, held, reason)
    return frozenset(held)


def pause(db: sa.Connection, seconds: Mapping[str, float]) -> frozenset[str]:
    """Hold those of these connections that are not held yet for so many seconds (`rate_limited`); return them."""
    held = [
        name
        for each, length in sorted(seconds.items())
        for name in _hold(db, (k.id == each) & k.hold_reason.is_(None), RATE_LIMITED, length)
    ]
    _add_held(db, held, RATE_LIMITED)
    return frozenset(held)


def _add_held(db: sa.Connection, held: Collection[str], reason: str) -> None:
    add_events(db, [(None, "connection.held", {"connection_id": name, "reason": reason}) for name in held])


def hold_by_operator(db: sa.Connection, connection_id: str) -> bool:
    """Hold a connection because a person says so, whatever else holds it; return whether it exists."""
    held = _hold(db, k.id == connection_id, OPERATOR)
    _add_held(db, held, OPERATOR)
    return bool(held)


def hold_all(db: sa.Connection) -> int:
    """Hold every open connection because Trackstar itself is down; return how many that are."""
    held = _hold(db, k.hold_reason.is_(None) | (k.hold_reason == OUTAGE), TRACKSTAR_OUTAGE)
    if held:
        add_events(db, [(None, "trackstar.held", {"connections": len(held)})])
    return len(held)


def resume(db: sa.Connection, ids: Collection[str], reasons: Collection[str]) -> frozenset[str]:
    """End the holds of these connections where their reason is among these and they have a token; return them."""
    if not ids:
        return frozenset()
    resumed = _resume(db, k.id.in_(sorted(ids)) & k.hold_reason.in_(reasons) & k.access_token.is_not(None))
    return _add_resumed(db, resumed)


def end_pauses(db: sa.Connection) -> frozenset[str]:
    """End each pause that a server asked for and that is over; return their connections. Any worker may, always."""
    return _add_resumed(db, _resume(db, TIMED & (k.hold_reason == RATE_LIMITED) & (k.probe_at <= db_now())))


def _add_resumed(db: sa.Connection, resumed: Collection[str]) -> frozenset[str]:
    add_events(db, [(None, "connection.resumed", {"connection_id": name}) for name in resumed])
    return frozenset(resumed)


def resume_all(db: sa.Connection) -> int:
    """End the hold of Trackstar as a whole; return how many connections go on."""
    resumed = _resume(db, k.hold_reason == TRACKSTAR_OUTAGE)
    if resumed:
        add_events(db, [(None, "trackstar.resumed", {"connections": len(resumed)})])
    return len(resumed)


def _hold(db: sa.Connection, which: sa.ColumnElement[bool], reason: str, seconds: float | None = None) -> list[str]:
    after = FIRST_PROBE_SECONDS if reason in PROBED else seconds
    probe_at = sa.null() if after is None else now_plus(sa.literal(after))
    return _set(db, which, hold_reason=reason, held_at=db_now(), probe_at=probe_at)


def _resume(db: sa.Connection, which: sa.ColumnElement[bool]) -> list[str]:
    return _set(db, which, hold_reason=sa.null(), held_at=sa.null(), probe_at=sa.null())


def _set(db: sa.Connection, which: sa.ColumnElement[bool], **values: Any) -> list[str]:
    changed = sa.update(connections).where(which).values(**values, updated_at=db_now()).returning(k.id)
    return sorted(db.execute(changed).scalars())


def claim_probes(db: sa.Connection) -> list[str]:
    """Return the connections that may send one real job each to see whether their hold can end.

    Whoever asks first gets them; the next time is put off, further the longer the hold lasts.
    """
    due = db.execute(
        sa.select(k.id, k.hold_reason, k.held_at, db_now().label("now"), HAS_SEND.label("has_send"))
        .where(k.hold_reason.in_(PROBED), k.probe_at <= db_now(), HAS_PENDING)
        .order_by(k.id)
        .with_for_update()
    ).all()
    probes: list[str] = []
    # Locked in the order of ids; but no one connection may decide for all of them again and again, and a read says
    # nothing of a warehouse.
    for row in sorted(due, key=lambda row: (not row.has_send, random.random())):
        of_all = row.hold_reason == TRACKSTAR_OUTAGE
        same = k.hold_reason == TRACKSTAR_OUTAGE if of_all else k.id == row.id
        after = seconds_to_probe((row.now - row.held_at).total_seconds())
        moved = db.execute(
            sa.update(connections).where(same, k.probe_at <= db_now()).values(probe_at=now_plus(sa.literal(after)))
        ).rowcount
        if moved:  # of those held with Trackstar, this one's probe is the only one
            probes.append(row.id)
    return probes
