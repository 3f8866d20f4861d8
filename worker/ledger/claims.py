"""Claims: who may attempt, in one statement for any number. A claim is a lease by the database's clock.

Knows when a claim may be made or taken over; what came of it is `recording`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Connection, Integer, Text, bindparam, func, or_, select, update

from worker.cancellation.lifecycle import Evidence, State, Verdict
from worker.ledger.moving import Fence
from worker.ledger.sqltypes import (
    RecordId,
    among,
    as_rows,
    db_now,
    given,
    now_plus_given,
    once,
    unindexed,
)
from worker.ledger.tables import LEASED, cancellations, connections

if TYPE_CHECKING:
    from collections.abc import Iterable

c = cancellations.c


# Reads are answered from Trackstar's own copy: a warehouse that is down does not keep them from being told.
STILL_READ = ("outage", "trackstar_outage")


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The right to attempt one cancellation, and all that an attempt must know."""

    fence: Fence
    connection_id: str
    order_id: str
    generation: int
    state: State
    claimed_at: datetime  # the ledger's time
    sealed_token: str | None
    hold_reason: str | None  # of its connection: this attempt is a probe
    ended_at: datetime | None = None  # set where only a read-back is due

    @property
    def idempotency_key(self) -> str:
        """One key per intent; a replay is a new intent."""
        return self.fence.id if self.generation == 1 else f"{self.fence.id}-{self.generation}"


_token = select(connections.c.access_token).where(connections.c.id == c.connection_id).scalar_subquery()
_hold = select(connections.c.hold_reason).where(connections.c.id == c.connection_id).scalar_subquery()
_CLAIM_COLUMNS = (
    c.id,
    c.connection_id,
    c.order_id,
    c.generation,
    c.claims,
    c.attempts,
    c.first_sent_at,
    c.send_by,
    c.verdict,
    c.evidence,
    c.outcome_reason,
    c.outcome_message,
    c.lease_owner,
    c.ended_at,
    db_now().label("claimed_at"),
    _token.label("sealed_token"),
    _hold.label("hold_reason"),
)


_owner = bindparam("owner", type_=Text())
_limit = bindparam("limit", type_=Integer())
_lease_end = now_plus_given("lease_seconds")


@once
def _claim(dialect: str) -> Any:
    source = given(dialect, {"id": RecordId})
    return (
        update(cancellations)
        .where(
            among(dialect, c.id, select(source.c.id)),
            # Waits for a lock and skips none: a dispatcher with an older view of the ledger locks a row for an
            # instant that is ours, and a skipped one would be left until its lease ends.
            unindexed(c.status) == "queued",
            # A cancel that is worthless by now is not sent; a refusal that must be read is read at any time.
            or_(c.send_by.is_(None), c.send_by > db_now(), c.evidence.is_not(None)),
        )
        .values(
            status="in_flight",
            lease_owner=_owner,
            lease_expires_at=_lease_end,
            claims=c.claims + 1,
            first_sent_at=func.coalesce(c.first_sent_at, db_now()),
        )
        .returning(*_CLAIM_COLUMNS)
    )


def claim(connection: Connection, ids: Iterable[str], owner: str, lease_seconds: float) -> list[Claim]:
    """Claim what is queued among `ids`. What is not ours any more is left out silently.

    The claim number rises here, before the call: a crash after this line is known to be in doubt.
    """
    rows = as_rows({"id": record_id} for record_id in ids)
    claimed = connection.execute(_claim(connection), {**rows, "owner": owner, "lease_seconds": lease_seconds})
    return [_as_claim(row) for row in claimed]


@once
def _take_over(dialect: str) -> Any:
    lost = (
        select(c.id)
        .where(LEASED, c.lease_expires_at <= db_now(), c.status == "in_flight")
        .order_by(c.lease_expires_at)
        .limit(_limit)
        .with_for_update(skip_locked=True)
    )
    return (
        update(cancellations)
        .where(among(dialect, c.id, lost))
        .values(lease_owner=_owner, lease_expires_at=_lease_end)
        .returning(*_CLAIM_COLUMNS)
    )


def take_over(connection: Connection, owner: str, lease_seconds: float, limit: int) -> list[Claim]:
    """Take claims whose lease has ended: their worker is dead, or paused and too late."""
    values = {"owner": owner, "lease_seconds": lease_seconds, "limit": limit}
    return [_as_claim(row) for row in connection.execute(_take_over(connection), values)]


@once
def _claim_read_backs(dialect: str) -> Any:
    due = (
        select(c.id)
        .where(c.confirm_at <= db_now())
        .where(_hold.is_(None) | _hold.in_(STILL_READ))
        .order_by(c.confirm_at)
        .limit(_limit)
        .with_for_update(skip_locked=True)
    )
    return (
        update(cancellations)
        .where(among(dialect, c.id, due))
        .values(confirm_at=_lease_end, claims=c.claims + 1)
        .returning(*_CLAIM_COLUMNS)
    )


def claim_read_backs(connection: Connection, lease_seconds: float, limit: int) -> list[Claim]:
    """Claim ended cancellations whose read-back is due, by moving it past the time that reading takes."""
    values = {"lease_seconds": lease_seconds, "limit": limit}
    return [_as_claim(row) for row in connection.execute(_claim_read_backs(connection), values)]


def _as_claim(row: Any) -> Claim:
    return Claim(
        fence=Fence(str(row.id), row.lease_owner or "", row.claims),
        connection_id=row.connection_id,
        order_id=row.order_id,
        generation=row.generation,
        state=State(
            attempts=row.attempts,
            first_sent_at=row.first_sent_at or row.claimed_at,
            send_by=row.send_by,
            verdict=Verdict(row.verdict) if row.verdict else None,
            evidence=Evidence(row.evidence) if row.evidence else None,
            reason=row.outcome_reason,
            message=row.outcome_message,
        ),
        claimed_at=row.claimed_at,
        sealed_token=row.sealed_token,
        hold_reason=row.hold_reason,
        ended_at=row.ended_at,
    )
