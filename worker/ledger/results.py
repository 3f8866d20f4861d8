"""What came of claims, written in one transaction for any number.

A result counts only where its claim is still its own; its attempts are kept in any case, for they are evidence.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from worker.cancellation.lifecycle import Transition
from worker.cancellation.outage import is_failure
from worker.cancellation.proof import Confirmation
from worker.cancellation.status import PROVEN
from worker.ledger import holds
from worker.ledger.attempts import WORKER_LOST, AttemptRow, keep_attempts
from worker.ledger.claims import AttemptClaim, ConfirmClaim
from worker.ledger.confirmations import write_confirmations
from worker.ledger.documents import Document, keep_documents
from worker.ledger.outbox import add_leased_events
from worker.ledger.refunds import refund_events
from worker.ledger.schema import cancellations
from worker.ledger.transitions import apply_claimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.ledger.claims import Lease


c = cancellations.c


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the claim of a cancellation: the requests that were made, and the transition that follows."""

    claim: AttemptClaim
    attempts: tuple[AttemptRow, ...]
    transition: Transition


class ConfirmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the claim of an ended cancellation that was read back."""

    claim: ConfirmClaim
    attempts: tuple[AttemptRow, ...]
    confirmation: Confirmation


Result = AttemptResult | ConfirmResult


class CommitSummary(msgspec.Struct, frozen=True):
    """What a batch of results changed."""

    applied: frozenset[str]  # the others were no longer ours
    held: frozenset[str]  # connections that this batch set aside, for their credentials
    resumed: frozenset[str]  # connections that a probe opened again
    trackstar_resumed: bool = False  # a probe showed that Trackstar as a whole is back
    events: tuple[int, ...] = ()  # of cancellations and of refunds, for the caller to publish
    paused: frozenset[str] = frozenset()  # connections that this batch set aside because the server asked for it

    @property
    def changed_holds(self) -> bool:
        return bool(self.held or self.paused or self.resumed or self.trackstar_resumed)


def commit_results(db: sa.Connection, results: Sequence[Result]) -> CommitSummary:
    """Write what came of a batch of claims, in the caller's one transaction."""
    results = _one_of_each_claim(db, results)
    keep_attempts(db, ((r.claim, attempt) for r in results for attempt in r.attempts))
    attempted = [r for r in results if isinstance(r, AttemptResult)]
    applied, ends, proven = apply_claimed(db, [(r.claim.lease, r.transition) for r in attempted])
    confirmed = [(r.claim, r.confirmation) for r in results if isinstance(r, ConfirmResult)]
    current, news, raised = write_confirmations(db, confirmed)
    applied |= current
    # By their tokens: a late answer may stand beside the one of the claim after it, and has an older document.
    keep_documents(db, (_document(r) for r in results if (r.claim.id, r.claim.lease.token) in applied))
    no_access = {r.claim.connection_id for r in attempted if r.transition.hold_connection}
    held = holds.hold(db, no_access, holds.CREDENTIALS, instead_of=holds.OUTAGE)
    ended = _end_holds(db, results, no_access)
    paused = _pause_connections(db, attempted)
    told = add_leased_events(db, [*ends, *news, *refund_events(db, [*proven, *raised])])
    ours = frozenset(record_id for record_id, _ in applied)
    return CommitSummary(ours, held, *ended, tuple(told), paused)


def _document(r: Result) -> Document:
    if isinstance(r, ConfirmResult):
        # What was proven before brings no document anew: somebody may have had it erased.
        is_new = r.claim.verdict not in PROVEN or r.confirmation.verdict != r.claim.verdict
        return Document(r.claim.id, r.confirmation.order if is_new else None)
    return Document(r.claim.id, r.transition.order, r.transition.unused_fields)


def _pause_connections(db: sa.Connection, results: Sequence[AttemptResult]) -> frozenset[str]:
    """Hold the connections whose server asked for a long pause, each for the longest that it asked for."""
    seconds: dict[str, float] = {}
    for r in results:
        if r.transition.pause_connection is not None:
            name = r.claim.connection_id
            seconds[name] = max(seconds.get(name, 0.0), r.transition.pause_connection)
    return holds.pause(db, seconds) if seconds else frozenset()


def _one_of_each_claim(db: sa.Connection, results: Sequence[Result]) -> list[Result]:
    """Keep one result of a claim: a worker that rescued its own claim may have the answer in the same batch.

    Of what was read of an ended cancellation, the one that fits what is known of it now: a read-back and a crawl may
    have told of it at once, and what they go by is not what the row says any more.
    """
    of_claims: dict[Lease, list[Result]] = {}
    for r in results:
        of_claims.setdefault(r.claim.lease, []).append(r)
    several = [found[0].claim.id for found in of_claims.values() if len(found) > 1]
    verdicts = _verdicts(db, several) if several else {}
    return [_the_one(found, verdicts.get(found[0].claim.id)) for found in of_claims.values()]


def _the_one(found: Sequence[Result], verdict: str | None) -> Result:
    def worth(r: Result) -> tuple[bool, bool]:
        if isinstance(r, ConfirmResult):
            return r.claim.verdict == verdict, r.confirmation.verdict != r.claim.verdict
        return all(attempt.reason != WORKER_LOST for attempt in r.attempts), False

    return max(found, key=worth)  # the first of those that are worth the same


def _verdicts(db: sa.Connection, ids: Sequence[str]) -> dict[str, str | None]:
    rows = db.execute(sa.select(c.id, c.verdict).where(c.id.in_(ids)))
    return {str(row.id): row.verdict for row in rows}


def _end_holds(db: sa.Connection, results: Sequence[Result], no_access: set[str]) -> tuple[frozenset[str], bool]:
    """End the holds whose probes were answered: access by any answer but 401, an outage by one that is no failure."""
    ended: set[str] = set()
    all_ended = 0
    for reason in holds.PROBED:
        answered = {r.claim.connection_id for r in results if r.claim.hold_reason == reason and _answers(r, reason)}
        if reason == holds.TRACKSTAR_OUTAGE and answered:
            all_ended += holds.resume_all(db)
        else:
            ended |= holds.resume(db, answered - no_access, {reason})
    return frozenset(ended), all_ended > 0


def _answers(r: Result, reason: str) -> bool:
    answers = [attempt for attempt in r.attempts if attempt.status is not None]
    if reason == holds.CREDENTIALS:
        return any(each.status != HTTPStatus.UNAUTHORIZED for each in answers)
    # A read is answered from Trackstar's own copy, also while the warehouse is down.
    return any(each.kind == "cancel" and not is_failure(each.status) for each in answers)
