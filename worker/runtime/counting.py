"""Which series move by what a worker has recorded. Knows results and metrics; is called once for each batch."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from worker.cancellation.status import FINAL, PROVEN, Status
from worker.ledger.attempts import WORKER_LOST
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.runtime.attempt import TOO_LATE
from worker.telemetry.metrics import priority_label, word_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from worker.cancellation.lifecycle import Transition
    from worker.ledger.claims import AttemptClaim
    from worker.ledger.deadlines import Lapsed
    from worker.ledger.results import CommitSummary, Result
    from worker.telemetry.metrics import Metrics


def count_recorded(metrics: Metrics, results: Sequence[Result], summary: CommitSummary) -> None:
    """Count what was just committed; a result that was no longer ours counts for nothing but its holds."""
    applied = [result for result in results if result.claim.id in summary.applied]
    ended: Counter[tuple[str, ...]] = Counter()
    for result in applied:
        if isinstance(result, ConfirmResult):
            _confirmed(metrics, result)
        else:
            _attempted(metrics, result)
            if result.transition.status in FINAL:
                ended[_labels_of(result.transition)] += 1
    _ended(metrics, ended)
    count_held(metrics, "credentials", len(summary.held))
    count_held(metrics, "rate_limited", len(summary.paused))


def count_expired(metrics: Metrics, ended: Iterable[tuple[Lapsed, Transition]]) -> None:
    """Count what ended unsent, because its time was over."""
    found = list(ended)
    for row, transition in found:
        seconds = (row.now - (row.requested_at or row.now)).total_seconds()
        metrics.of(metrics.end_to_end, priority_label(row.priority), transition.status).observe(max(0.0, seconds))
    _ended(metrics, Counter(_labels_of(transition) for _, transition in found))


def count_held(metrics: Metrics, reason: str, count: int) -> None:
    """Count holds that began."""
    if count:
        metrics.of(metrics.holds, reason).inc(count)


def _attempted(metrics: Metrics, result: AttemptResult) -> None:
    claim, transition = result.claim, result.transition
    priority = priority_label(claim.priority)
    row = result.attempts[0] if result.attempts else None
    if row is None:
        if transition.reason == TOO_LATE:
            metrics.interrupted.inc()
    elif row.reason == WORKER_LOST:
        metrics.rescued.inc()
    elif claim.state.received_at and _is_first(claim):
        waited = (row.started_at - claim.state.received_at).total_seconds()
        metrics.of(metrics.start, priority).observe(max(0.0, waited))
    if transition.status in FINAL and transition.as_of:
        if claim.requested_at:
            seconds = (transition.as_of - claim.requested_at).total_seconds()
            metrics.of(metrics.end_to_end, priority, transition.status).observe(max(0.0, seconds))
        if claim.state.in_doubt and transition.verdict in PROVEN:
            seconds = (transition.as_of - claim.state.first_sent_at).total_seconds()
            metrics.of(metrics.proof, word_label(transition.evidence)).observe(max(0.0, seconds))


def _is_first(claim: AttemptClaim) -> bool:
    """Whether the first request of a cancellation follows from this claim.

    `first_sent_at` is set by a claim, and taken back where that was given back unsent. The two instants are of one
    statement; PostgreSQL's clock goes on within it.
    """
    state = claim.state
    since = claim.claimed_at - state.first_sent_at
    return claim.generation == 1 and state.attempts == 0 and since < timedelta(seconds=1)


def _confirmed(metrics: Metrics, result: ConfirmResult) -> None:
    known, found = result.claim.known, result.confirmation
    if found.verdict == known.verdict:
        return
    labels = (known.verdict, found.verdict, word_label(found.evidence))
    metrics.of(metrics.contradictions if found.contradicted else metrics.raised, *labels).inc()
    if found.verdict in PROVEN:
        seconds = (result.claim.claimed_at - known.ended_at).total_seconds()
        metrics.of(metrics.proof, word_label(found.evidence)).observe(max(0.0, seconds))


def _labels_of(transition: Transition) -> tuple[str, ...]:
    words = (transition.status, transition.verdict, transition.evidence, transition.reason)
    return tuple(word_label(each) for each in words)


def _ended(metrics: Metrics, ended: Counter[tuple[str, ...]]) -> None:
    for labels, count in ended.items():
        metrics.of(metrics.ended, *labels).inc(count)
        if labels[0] == Status.EXPIRED:
            metrics.send_by_missed.inc(count)
