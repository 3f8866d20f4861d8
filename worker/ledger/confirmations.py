"""What is known of an ended cancellation changes here: by a read-back, a second look, a crawl, a person.

The status stays. Knows rows and events; what a read proves, `cancellation.proof` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from worker.cancellation.proof import Confirmation
from worker.cancellation.request import is_record_id
from worker.cancellation.status import PROVEN, UNPROVEN, Evidence, Verdict
from worker.errors import UnknownCancellationError
from worker.inputs.text import printable
from worker.ledger.claims import CLAIM_COLUMNS, ConfirmClaim, confirm_claim
from worker.ledger.dialects import (
    RecordId,
    UtcTimestamp,
    bind_rows,
    built_once_per_dialect,
    rows_parameter,
)
from worker.ledger.documents import SEEN, seen_row, seen_values
from worker.ledger.outbox import KNOWN, NEEDS_PERSON, NewEvent, add_events, known_payload
from worker.ledger.refunds import Proven, proven_by, refund_events
from worker.ledger.schema import cancellations, events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.dml import ReturningUpdate

c = cancellations.c

Found = tuple[ConfirmClaim, Confirmation]

_CONFIRMATION = {
    "id": RecordId,
    "token": sa.Integer(),
    "known": sa.Text(),
    "verdict": sa.Text(),
    "evidence": sa.Text(),
    "as_of": UtcTimestamp(),
    "confirm_at": UtcTimestamp(),
    "known_by": UtcTimestamp(),
    "needs_person": sa.Text(),
    **SEEN,
}


def apply_confirmations(db: sa.Connection, found: Sequence[Found], **told: str) -> set[tuple[str, int]]:
    """Write what was found of ended cancellations, where they are as they were; tell what changed, once.

    Returns ids and tokens of the claims that were still theirs. `told` goes into the events: who it was, and why,
    where a person settles it. Comes last in its transaction, as `refund_events` does.
    """
    current, news, proven = write_confirmations(db, found, **told)
    add_events(db, [*news, *refund_events(db, proven)])
    return current


def write_confirmations(
    db: sa.Connection, found: Sequence[Found], **told: str
) -> tuple[set[tuple[str, int]], list[NewEvent], list[Proven]]:
    """Do the same but for events: return those that the caller writes, and what was proven, which it tells last."""
    if not found:
        return set(), [], []
    rows = db.execute(_confirming(db), bind_rows(_row(*each) for each in found)).all()
    current = {(str(row.id), row.claims): row for row in rows}
    news = [
        (each, row)
        for each in found
        if (row := current.get((each[0].id, each[0].lease.token))) and _kind_of(*each) is not None
    ]
    events_ = [_event(*each, row, told) for each, row in _once(db, news)]
    return set(current), events_, [_proven(*each, row, told) for each, row in news if _turns(*each)]


def _turns(claim: ConfirmClaim, found: Confirmation) -> bool:
    return found.verdict in PROVEN and found.verdict != claim.known.verdict


def _proven(claim: ConfirmClaim, found: Confirmation, row: Any, told: dict[str, str]) -> Proven:
    return proven_by(claim.id, found.verdict, known_payload(row, **told), contradicted=found.contradicted)


@built_once_per_dialect
def _confirming(dialect: str) -> ReturningUpdate[Any]:
    source = rows_parameter(dialect, _CONFIRMATION)
    return (
        sa.update(cancellations)
        .where(
            c.id == source.c.id,
            c.claims == source.c.token,
            c.ended_at.is_not(None),
            c.verdict == source.c.known,  # written twice, it was told the first time
        )
        .values(
            verdict=source.c.verdict,
            evidence=source.c.evidence,
            as_of=sa.func.coalesce(source.c.as_of, c.as_of),
            confirm_at=source.c.confirm_at,
            known_by=source.c.known_by,
            needs_person=source.c.needs_person,
            **seen_values(source),
        )
        .returning(*KNOWN, c.claims)
    )


def _row(claim: ConfirmClaim, found: Confirmation) -> dict[str, object]:
    return {
        **{name: getattr(found, name) for name in _CONFIRMATION if hasattr(found, name)},
        "id": claim.id,
        "token": claim.lease.token,
        "known": claim.verdict,
        **seen_row(found.order),
    }


def _kind_of(claim: ConfirmClaim, found: Confirmation) -> str | None:
    """Return the event that tells of a change; None where nobody need hear of it."""
    known = claim.known
    if found.verdict != known.verdict:
        return "cancellation.contradicted" if found.contradicted else "cancellation.verdict_raised"
    if found.needs_person and not known.needs_person:
        return NEEDS_PERSON
    if found.known_by and known.known_by and found.known_by > known.known_by:
        return "cancellation.known_by_moved"
    return None


def _once(db: sa.Connection, news: Sequence[tuple[Found, Any]]) -> list[tuple[Found, Any]]:
    """Leave out what was told of a generation: crawls may fail and come back many times while an order waits."""
    asked = [claim.id for (claim, found), _ in news if _kind_of(claim, found) == NEEDS_PERSON]
    if not asked:
        return list(news)
    told = sa.select(events.c.cancellation_id, events.c.payload).where(
        events.c.cancellation_id.in_(asked), events.c.type == NEEDS_PERSON
    )
    told_before = {
        (str(row.cancellation_id), msgspec.json.decode(row.payload)["generation"]) for row in db.execute(told)
    }
    return [
        (each, row)
        for each, row in news
        if (each[0].id, each[0].generation) not in told_before or _kind_of(*each) != NEEDS_PERSON
    ]


def _event(claim: ConfirmClaim, found: Confirmation, row: Any, told: dict[str, str]) -> NewEvent:
    return claim.id, _kind_of(claim, found) or "", known_payload(row, **told)


# ---- a person settles it


class NotResolvableError(ValueError):
    """A person cannot settle this cancellation; the text says why, and what to do instead."""


def resolve(db: sa.Connection, record_id: str, verdict: Verdict, *, by: str, note: str) -> None:
    """Settle a cancellation that has ended without proof, because a person looked; `by` and `note` say who and why.

    Raises UnknownCancellationError, or NotResolvableError where it has not ended, or is proven.
    """
    row = db.execute(
        sa.select(*CLAIM_COLUMNS, c.status)
        .where(c.id == record_id if is_record_id(record_id) else sa.false())
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise UnknownCancellationError(f"Nothing in the ledger has the id {record_id}: see `cancel-worker list`.")
    if row.ended_at is None:
        raise NotResolvableError(
            f"Cancellation {record_id} has not ended: it is {row.status}. Withdraw it, or wait: `cancel-worker show`."
        )
    if row.verdict not in UNPROVEN:
        raise NotResolvableError(
            f"Cancellation {record_id} is proven: {row.verdict}, by {row.evidence}. Nothing was changed."
        )
    settled = Confirmation(verdict=verdict, evidence=Evidence.PERSON, as_of=row.claimed_at)
    apply_confirmations(db, [(confirm_claim(row), settled)], by=printable(by), note=printable(note))
