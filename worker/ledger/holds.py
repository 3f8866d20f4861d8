"""Holds: a connection set aside with a reason. One update, one event when it starts and one when it ends.

A hold touches no cancellation: a held connection's rows simply stay pending. Knows rows; why a connection is held,
others decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, literal, null, select, update

from worker.cancellation.breaker import FIRST_PROBE_SECONDS, seconds_to_probe
from worker.ledger.outbox import announce
from worker.ledger.sqltypes import db_now, now_plus
from worker.ledger.tables import connections
from worker.ledger.turns import HAS_PENDING

if TYPE_CHECKING:
    from collections.abc import Collection

k = connections.c

CREDENTIALS = "credentials"
OUTAGE = "outage"
TRACKSTAR_OUTAGE = "trackstar_outage"  # every connection fails alike; one probe serves all
OPERATOR = "operator"
UNKNOWN_CONNECTION = "unknown_connection"
ALL = (CREDENTIALS, OUTAGE, TRACKSTAR_OUTAGE, OPERATOR, UNKNOWN_CONNECTION)
PROBED = (CREDENTIALS, OUTAGE, TRACKSTAR_OUTAGE)  # these end by themselves


def hold(connection: Connection, ids: Collection[str], reason: str) -> frozenset[str]:
    """Hold those of these connections that are not held yet; return them."""
    if not ids:
        return frozenset()
    probe_at = now_plus(literal(FIRST_PROBE_SECONDS)) if reason in PROBED else null()
    rows = connection.execute(
        update(connections)
        .where(k.id.in_(sorted(ids)), k.hold_reason.is_(None))
        .values(hold_reason=reason, held_at=db_now(), probe_at=probe_at, updated_at=db_now())
        .returning(k.id)
    )
    held = frozenset(row.id for row in rows)
    announce(
        connection, [(None, "connection.held", {"connection_id": name, "reason": reason}) for name in sorted(held)]
    )
    return held


def hold_by_operator(connection: Connection, connection_id: str) -> bool:
    """Hold a connection because a person says so, whatever else holds it; return whether it exists."""
    changed = connection.execute(
        update(connections)
        .where(k.id == connection_id)
        .values(hold_reason=OPERATOR, held_at=db_now(), probe_at=null(), updated_at=db_now())
    ).rowcount
    if changed:
        announce(connection, [(None, "connection.held", {"connection_id": connection_id, "reason": OPERATOR})])
    return bool(changed)


def hold_all(connection: Connection) -> int:
    """Hold every open connection because Trackstar itself is down; return how many that are."""
    rows = connection.execute(
        update(connections)
        .where(k.hold_reason.is_(None) | (k.hold_reason == OUTAGE))
        .values(
            hold_reason=TRACKSTAR_OUTAGE,
            held_at=db_now(),
            probe_at=now_plus(literal(FIRST_PROBE_SECONDS)),
            updated_at=db_now(),
        )
        .returning(k.id)
    ).all()
    if rows:
        announce(connection, [(None, "trackstar.held", {"connections": len(rows)})])
    return len(rows)


def resume(connection: Connection, ids: Collection[str], reasons: Collection[str]) -> frozenset[str]:
    """End the holds of these connections where their reason is among these and they have a token; return them."""
    if not ids:
        return frozenset()
    rows = connection.execute(
        update(connections)
        .where(k.id.in_(sorted(ids)), k.hold_reason.in_(reasons), k.access_token.is_not(None))
        .values(hold_reason=null(), held_at=null(), probe_at=null(), updated_at=db_now())
        .returning(k.id)
    )
    resumed = frozenset(row.id for row in rows)
    announce(connection, [(None, "connection.resumed", {"connection_id": name}) for name in sorted(resumed)])
    return resumed


def resume_all(connection: Connection) -> int:
    """End the hold of Trackstar as a whole; return how many connections go on."""
    rows = connection.execute(
        update(connections)
        .where(k.hold_reason == TRACKSTAR_OUTAGE)
        .values(hold_reason=null(), held_at=null(), probe_at=null(), updated_at=db_now())
        .returning(k.id)
    ).all()
    if rows:
        announce(connection, [(None, "trackstar.resumed", {"connections": len(rows)})])
    return len(rows)


def claim_probes(connection: Connection) -> list[str]:
    """Return the connections that may send one real job each to see whether their hold can end.

    Whoever asks first gets them; the next time is put off, further the longer the hold lasts.
    """
    due = connection.execute(
        select(k.id, k.hold_reason, k.held_at, db_now().label("now"))
        .where(k.hold_reason.in_(PROBED), k.probe_at <= db_now(), HAS_PENDING)
        .order_by(k.id)
        .with_for_update()
    ).all()
    probes: list[str] = []
    for row in due:
        of_all = row.hold_reason == TRACKSTAR_OUTAGE
        same = k.hold_reason == TRACKSTAR_OUTAGE if of_all else k.id == row.id
        after = seconds_to_probe((row.now - row.held_at).total_seconds())
        moved = connection.execute(
            update(connections).where(same, k.probe_at <= db_now()).values(probe_at=now_plus(literal(after)))
        ).rowcount
        if moved:  # of those held with Trackstar, the first one's probe is the only one
            probes.append(row.id)
    return probes
