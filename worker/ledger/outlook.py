"""By when, or by whom, what is not known yet is known; and how often what was called known was not true.

Knows rows and holds; what a read proves, and when one comes, `cancellation.proof` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa
from msgspec import structs

from worker.cancellation.proof import NeedsPerson, known_by_at_the_latest, prospect
from worker.cancellation.status import SafeToRefund, Verdict
from worker.ledger.dialects import UtcTimestamp, now_plus
from worker.ledger.holds import ALL, RATE_LIMITED
from worker.ledger.schema import CONTRADICTED, PENDING, UNSETTLED, WATCHED, cancellations, connections, events

if TYPE_CHECKING:
    from datetime import datetime

    from worker.cancellation.policy import Policy
    from worker.ledger.record import Cancellation

c = cancellations.c
k = connections.c
STAND_STILL = [reason for reason in ALL if reason != RATE_LIMITED]  # nobody knows when these holds end
ENOUGH = 100_000  # verdicts: beyond them one more changes no rate that a person reads
CHUNK = 20  # connections in one statement
_HELD = NeedsPerson.CONNECTION_HELD.value


def with_outlook(found: Cancellation, now: datetime, policy: Policy) -> Cancellation:
    """Complete a record as its row has it: each *not yet* gets a date or a person, each verdict its instant."""
    if not found.ended:
        known_by = _known_by(found, now, policy)
        return structs.replace(found, known_by=known_by, needs_person=None if known_by else _HELD)
    if found.safe_to_refund is SafeToRefund.NOT_YET and not (found.known_by or found.needs_person):
        found = _of_an_old_worker(found, now, policy)
    return structs.replace(found, as_of=found.as_of or found.ended_at)


def _of_an_old_worker(found: Cancellation, now: datetime, policy: Policy) -> Cancellation:
    """Say what the next read will say of what a worker of an earlier version ended; else nobody looks at it."""
    if found.confirm_at and found.ended_at:
        return structs.replace(found, known_by=prospect(found.ended_at, now, None, policy).known_by)
    accepted = found.verdict == Verdict.ACCEPTED
    why = NeedsPerson.ACCEPTED_BUT_OPEN if accepted else NeedsPerson.UNREADABLE
    return structs.replace(found, needs_person=why.value)


def _known_by(found: Cancellation, now: datetime, policy: Policy) -> datetime | None:
    stands_still = found.hold_reason in STAND_STILL
    if found.known_by and found.known_by > now and not stands_still:
        return found.known_by
    return known_by_at_the_latest(
        received_at=found.received_at,
        first_sent_at=found.first_sent_at,
        send_by=found.send_by,
        stands_still=stands_still,
        now=now,
        policy=policy,
    )


# What no crawl settles, and what was never sent and stands still; each has a partial index.
FOR_A_PERSON = (
    UNSETTLED & c.needs_person.is_not(None),
    PENDING
    & c.first_sent_at.is_(None)
    & c.send_by.is_(None)
    & c.connection_id.in_(sa.select(k.id).where(k.hold_reason.in_(STAND_STILL))),
)


def count_for_a_person(db: sa.Connection) -> int:
    """Return how many have ended without proof, and no crawl settles them."""
    which = UNSETTLED & c.needs_person.is_not(None)
    return db.execute(sa.select(sa.func.count()).select_from(cancellations).where(which)).scalar_one()


class FalseVerdicts(msgspec.Struct, frozen=True):
    """How many verdicts were overturned of how many `cancelled` ones; `counted_all`: else there are more of these."""

    contradicted: int
    cancelled: int
    counted_all: bool


def false_verdicts(db: sa.Connection, seconds: float, enough: int = ENOUGH) -> FalseVerdicts:
    """Count the verdicts of the last seconds that a later crawl has overturned, and those that it may overturn.

    Counted connection by connection, as the index is ordered, and no further than `enough`: doctor asks it.
    """
    # As a value: PostgreSQL searches no index for what its clock says, for that may change from row to row.
    since = sa.literal(db.execute(sa.select(now_plus(sa.literal(-seconds, sa.Float())))).scalar_one(), UtcTimestamp())
    contradicted = db.execute(
        sa.select(sa.func.count()).select_from(events).where(CONTRADICTED, events.c.created_at > since)
    ).scalar_one()
    mine = (c.connection_id == k.id) & WATCHED & (c.verdict == Verdict.CANCELLED) & (c.ended_at > since)
    some = sa.select(sa.literal_column("1")).where(mine).correlate(connections).limit(enough + 1).subquery()
    each = sa.select(sa.func.count()).select_from(some).scalar_subquery()
    ids = db.execute(sa.select(k.id).order_by(k.id)).scalars().all()
    cancelled = 0
    for start in range(0, len(ids), CHUNK):
        chunk = sa.select(sa.func.sum(each)).where(k.id >= ids[start], k.id <= ids[start : start + CHUNK][-1])
        cancelled += int(db.execute(chunk).scalar_one() or 0)
        if cancelled > enough:
            return FalseVerdicts(contradicted, cancelled, counted_all=False)
    return FalseVerdicts(contradicted, cancelled, counted_all=True)
