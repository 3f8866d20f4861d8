"""Claims: the right of one worker to attempt one cancellation, a lease by the database's clock.

Knows what a claim holds, and how one is taken over from a lost worker. Claims are made in `transitions.claim_next`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.lifecycle import State
from worker.cancellation.proof import NeedsPerson, Unproven
from worker.cancellation.request import named
from worker.cancellation.status import Evidence, Verdict
from worker.ledger.dialects import built_once_per_dialect, db_now, id_in_chosen, now_plus_parameter
from worker.ledger.schema import LEASED, cancellations, connections

if TYPE_CHECKING:
    from sqlalchemy.sql.dml import ReturningUpdate

c = cancellations.c

# Reads are answered from Trackstar's own copy, so they are made while the warehouse is down too; and they have a rate
# limit of their own.
STILL_READ = ("outage", "rate_limited", "trackstar_outage")


class Lease(msgspec.Struct, frozen=True):
    """What makes a claim ours: nobody else has this owner and this fencing token on this row."""

    record_id: str
    owner: str
    token: int  # rises with each claim of the row


class _Claim(msgspec.Struct, frozen=True, kw_only=True):
    lease: Lease
    connection_id: str
    order_id: str
    generation: int
    claimed_at: datetime  # the ledger's time
    encrypted_token: str | None
    hold_reason: str | None  # of its connection when it was claimed; a cancel or a refusal with one is a probe
    priority: str = "normal"
    requested_at: datetime | None = None
    traceparent: str | None = None

    @property
    def id(self) -> str:
        return self.lease.record_id

    @property
    def named(self) -> dict[str, str]:
        return named(self.id, self)


class SendClaim(_Claim, frozen=True, kw_only=True):
    """The right to send one cancel, and all that its attempt must know."""

    state: State

    @property
    def request_key(self) -> str:
        """The Idempotency-Key of the request: one per intent; a replay is a new intent."""
        return self.id if self.generation == 1 else f"{self.id}-{self.generation}"


class RefusalClaim(_Claim, frozen=True, kw_only=True):
    """The right to read back an order whose cancel was refused and could not be read so far; nothing is sent again."""

    state: State


class ConfirmClaim(_Claim, frozen=True, kw_only=True):
    """The right to read back an order whose cancellation has ended without proof."""

    known: Unproven

    @property
    def verdict(self) -> Verdict:
        return self.known.verdict


AttemptClaim = SendClaim | RefusalClaim
Claim = SendClaim | RefusalClaim | ConfirmClaim

STATE_COLUMNS = (
    c.attempts,
    c.first_sent_at,
    c.received_at,
    c.send_by,
    c.verdict,
    c.evidence,
    c.outcome_reason,
    c.outcome_message,
)


def state_of(row: Any, now: datetime) -> State:
    """Return what a decision must know, from a row with STATE_COLUMNS."""
    return State(
        attempts=row.attempts,
        first_sent_at=row.first_sent_at or now,
        received_at=row.received_at,
        send_by=row.send_by,
        verdict=Verdict(row.verdict) if row.verdict else None,
        evidence=Evidence(row.evidence) if row.evidence else None,
        reason=row.outcome_reason,
        message=row.outcome_message,
    )


_token = sa.select(connections.c.access_token).where(connections.c.id == c.connection_id).scalar_subquery()
_hold = sa.select(connections.c.hold_reason).where(connections.c.id == c.connection_id).scalar_subquery()
CLAIM_COLUMNS = (
    c.id,
    c.connection_id,
    c.order_id,
    c.generation,
    c.priority,
    c.requested_at,
    c.traceparent,
    c.claims,
    *STATE_COLUMNS,
    c.lease_owner,
    c.ended_at,
    c.as_of,
    c.known_by,
    c.needs_person,
    db_now().label("claimed_at"),
    _token.label("encrypted_token"),
    _hold.label("hold_reason"),
)

owner_parameter = sa.bindparam("owner", type_=sa.Text())
lease_end = now_plus_parameter("lease_seconds")
_limit = sa.bindparam("limit", type_=sa.Integer())


def attempt_claim(row: Any) -> AttemptClaim:
    """Return the claim of a row with CLAIM_COLUMNS that has not ended."""
    state = state_of(row, row.claimed_at)
    return (RefusalClaim if state.awaits_read else SendClaim)(**_common(row), state=state)


def _common(row: Any) -> dict[str, Any]:
    return {
        "lease": Lease(str(row.id), row.lease_owner or "", row.claims),
        "connection_id": row.connection_id,
        "order_id": row.order_id,
        "generation": row.generation,
        "claimed_at": row.claimed_at,
        "encrypted_token": row.encrypted_token,
        "hold_reason": row.hold_reason,
        "priority": row.priority,
        "requested_at": row.requested_at,
        "traceparent": row.traceparent,
    }


@built_once_per_dialect
def _take_over(dialect: str) -> ReturningUpdate[Any]:
    lost = (
        sa.select(c.id)
        .where(LEASED, c.lease_expires_at <= db_now(), c.status == "in_flight")
        .order_by(c.lease_expires_at)
        .limit(_limit)
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(cancellations)
        .where(id_in_chosen(dialect, c.id, lost))
        .values(lease_owner=owner_parameter, lease_expires_at=lease_end)
        .returning(*CLAIM_COLUMNS)
    )


def take_over(db: sa.Connection, owner: str, lease_seconds: float, limit: int) -> list[AttemptClaim]:
    """Take claims whose lease has ended: their worker is dead, or paused and too late."""
    values = {"owner": owner, "lease_seconds": lease_seconds, "limit": limit}
    return [attempt_claim(row) for row in db.execute(_take_over(db), values)]


@built_once_per_dialect
def _claim_read_backs(dialect: str) -> ReturningUpdate[Any]:
    due = (
        sa.select(c.id)
        .where(c.confirm_at <= db_now())
        .where(_hold.is_(None) | _hold.in_(STILL_READ))
        .order_by(c.confirm_at)
        .limit(_limit)
        .with_for_update(skip_locked=True)
    )
    return (
        sa.update(cancellations)
        .where(id_in_chosen(dialect, c.id, due))
        .values(confirm_at=lease_end, claims=c.claims + 1)
        .returning(*CLAIM_COLUMNS)
    )


def claim_read_backs(db: sa.Connection, lease_seconds: float, limit: int) -> list[ConfirmClaim]:
    """Claim ended cancellations whose read-back is due, by moving it past the time that reading takes."""
    values = {"lease_seconds": lease_seconds, "limit": limit}
    return [confirm_claim(row) for row in db.execute(_claim_read_backs(db), values)]


def confirm_claim(row: Any) -> ConfirmClaim:
    """Return the claim of a row with CLAIM_COLUMNS that has ended."""
    known = Unproven(
        verdict=Verdict(row.verdict),
        evidence=Evidence(row.evidence) if row.evidence else None,
        ended_at=row.ended_at,
        as_of=row.as_of,
        known_by=row.known_by,
        needs_person=NeedsPerson(row.needs_person) if row.needs_person else None,
    )
    return ConfirmClaim(**_common(row), known=known)
