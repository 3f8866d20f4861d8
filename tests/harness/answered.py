"""What a worker records of an answer, without a worker: a cancel that was accepted and proven."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.cancellation.answer import Order
from worker.cancellation.lifecycle import Transition
from worker.cancellation.status import Evidence, Status, Verdict
from worker.ledger.attempts import AttemptRow
from worker.ledger.results import AttemptResult

if TYPE_CHECKING:
    from worker.ledger.claims import AttemptClaim


def cancelled(claim: AttemptClaim) -> AttemptResult:
    row = AttemptRow(kind="cancel", started_at=claim.claimed_at, reason="accepted", status=200)
    transition = Transition(
        status=Status.SUCCEEDED,
        attempts=1,
        reason="accepted",
        verdict=Verdict.CANCELLED,
        evidence=Evidence.RESPONSE,
        as_of=claim.claimed_at,
        order=Order(id=claim.order_id, status="cancelled", shipped=False, document="{}"),
    )
    return AttemptResult(claim=claim, attempts=(row,), transition=transition)
