"""One attempt from start to finish, as a pipeline of verbs: call, classify, read back, decide.

Knows a claim and how to reach Trackstar; does not know how the ledger is asked, Celery, threads, or who waits for the
result.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
import structlog

from worker.cancellation import proof
from worker.cancellation.answer import MAX_ITEMS, Answer, NoReply
from worker.cancellation.freshness import Crawls
from worker.cancellation.lifecycle import Moment, Transition, decide, must_read
from worker.cancellation.outcome import Kind, OrderState, Outcome, ReadBack, classify, classify_read
from worker.cancellation.policy import Policy
from worker.inputs.headers import RetryAfter
from worker.inputs.ids import may_change_form
from worker.ledger.attempts import WORKER_LOST, AttemptRow
from worker.ledger.claims import AttemptClaim, Claim, ConfirmClaim, RefusalClaim, SendClaim
from worker.ledger.results import AttemptResult, ConfirmResult
from worker.ledger.vault import CredentialsError, Place, of_connection
from worker.trackstar.client import TrackstarClient
from worker.trackstar.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger()

# Documented: up to 100 ids in one list read, and none with a comma.
MAX_IDS_PER_READ = MAX_ITEMS

AnyClaim = TypeVar("AnyClaim", bound=Claim)


class AttemptContext(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt of this process shares."""

    trackstar: TrackstarClient
    decrypt: Callable[[str, Place], str]  # an access token, kept there; raises CredentialsError
    policy: Policy
    pace: Pace
    start_within: float  # seconds after the claim; a later start could outlive the lease
    lease_seconds: float = 0.0  # for so long nobody else takes a claim
    crawls: Callable[[str], Crawls | None] = lambda _connection_id: None  # what is known of a connection's crawls
    jitter: Callable[[], float] = random.random  # uniform in [0, 1)

    def decide(
        self, claim: AttemptClaim, outcome: Outcome, read: ReadBack | None, now: datetime, crawls: Crawls | None
    ) -> Transition:
        at = Moment(now=now, policy=self.policy, crawls=crawls, jitter=self.jitter())
        return decide(claim.state, outcome, read, at)


class LedgerClock(msgspec.Struct, frozen=True):
    """The ledger's time, carried on by this process' monotonic clock: a worker's own clock is never asked."""

    at: datetime
    monotonic: float

    def now(self) -> datetime:
        return self.at + timedelta(seconds=self.elapsed())

    def elapsed(self) -> float:
        return time.monotonic() - self.monotonic


def attempt(claim: SendClaim, clock: LedgerClock, context: AttemptContext) -> AttemptResult:
    """Send one cancel, read the order back where its answer asks for it, and decide what follows.

    Nothing is sent where this process was paused for so long that another may soon hold the claim.
    """
    if clock.elapsed() > context.start_within:
        return give_back(claim, clock, context)
    crawls = context.crawls(claim.connection_id)  # before it is sent: a crawl that ends meanwhile has not seen it
    token = _token(claim, context)
    if token is None:
        transition = context.decide(claim, _NO_TOKEN, None, clock.now(), crawls)
        return AttemptResult(claim=claim, attempts=(), transition=transition)
    outcome, rows = _cancel(claim, token, clock, context)
    read = None
    if must_read(claim.state, outcome):
        ((found, read_rows),) = _read([claim], clock, context)
        read, rows = found or _NOT_READ, rows + read_rows
    transition = context.decide(claim, outcome, read, clock.now(), crawls)
    return AttemptResult(claim=claim, attempts=rows, transition=transition)


def read_refused(claims: Sequence[RefusalClaim], clock: LedgerClock, context: AttemptContext) -> list[AttemptResult]:
    """Read back orders of one connection whose refusal is known and unread, in one request, and decide about each."""
    if clock.elapsed() > context.start_within:
        return [give_back(claim, clock, context) for claim in claims]
    crawls = context.crawls(claims[0].connection_id)
    reads = _read(claims, clock, context)
    now = clock.now()
    return [
        AttemptResult(
            claim=claim,
            attempts=rows,
            transition=context.decide(claim, claim.state.remembered_refusal if read else _NO_TOKEN, read, now, crawls),
        )
        for claim, (read, rows) in zip(claims, reads, strict=True)
    ]


def confirm(claims: Sequence[ConfirmClaim], clock: LedgerClock, context: AttemptContext) -> list[ConfirmResult]:
    """Read back ended cancellations of one connection without proof, in one request, and decide about each."""
    crawls = context.crawls(claims[0].connection_id)  # before the read: one that ends meanwhile proves nothing of it
    reads = _read(claims, clock, context)
    now = clock.now()
    return [
        ConfirmResult(
            claim=claim,
            attempts=rows,
            confirmation=proof.confirm(
                claim.known, read or _NO_TOKEN_TO_READ, now=now, crawls=crawls, policy=context.policy
            ),
        )
        for claim, (read, rows) in zip(claims, reads, strict=True)
    ]


def rescue(claim: AttemptClaim, context: AttemptContext) -> AttemptResult:
    """Decide about a claim whose worker was lost: its request may have landed."""
    if isinstance(claim, RefusalClaim):
        kind: Literal["cancel", "read"] = "read"
        outcome, read = claim.state.remembered_refusal, ReadBack(shows=OrderState.LATER, reason=WORKER_LOST)
    else:
        kind = "cancel"
        outcome, read = Outcome(kind=Kind.IN_DOUBT, reason=WORKER_LOST), None
    row = AttemptRow(kind=kind, started_at=_began(claim, context), reason=WORKER_LOST)
    transition = context.decide(claim, outcome, read, claim.claimed_at, context.crawls(claim.connection_id))
    return AttemptResult(claim=claim, attempts=(row,), transition=transition)


def _began(claim: AttemptClaim, context: AttemptContext) -> datetime:
    """Return when a lost attempt began: the first one's time is known; of others, the last moment that it can be."""
    first = claim.state.first_sent_at
    return max(first, claim.claimed_at - timedelta(seconds=context.lease_seconds)) if claim.state.attempts else first


_NO_TOKEN = Outcome(kind=Kind.NO_ACCESS, reason="no_access_token")
TOO_LATE = "started_too_late"  # nothing was sent


def give_back(claim: AttemptClaim, clock: LedgerClock, context: AttemptContext) -> AttemptResult:
    """Give a claim back unused: nothing was sent, so nothing is in doubt that was not before."""
    log.warning("cancellation.started_too_late", **claim.named, seconds=round(clock.elapsed(), 1))
    outcome, read = Outcome(kind=Kind.SLOW_DOWN, reason=TOO_LATE, retry_after=RetryAfter(0.0)), None
    if isinstance(claim, RefusalClaim):
        outcome = claim.state.remembered_refusal
        read = ReadBack(shows=OrderState.LATER, reason=TOO_LATE, spends_attempt=False)
    transition = context.decide(claim, outcome, read, clock.now(), context.crawls(claim.connection_id))
    return AttemptResult(claim=claim, attempts=(), transition=transition)


def _cancel(
    claim: SendClaim, token: str, clock: LedgerClock, context: AttemptContext
) -> tuple[Outcome, tuple[AttemptRow, ...]]:
    began, started = clock.now(), time.monotonic()
    answer = context.trackstar.cancel(claim.order_id, access_token=token, idempotency_key=claim.request_key)
    outcome = classify(answer, claim.order_id)
    context.pace.observe("cancel", claim.connection_id, answer)
    return outcome, (_row("cancel", began, _milliseconds(started), answer, outcome.reason),)


# Not asked: its connection's pace left no room for a read, or there is no token to ask with.
_NOT_READ = ReadBack(shows=OrderState.LATER, reason="read_paced", spends_attempt=False)
_NO_TOKEN_TO_READ = ReadBack(shows=OrderState.NO_ACCESS, reason="no_access_token")


def _read(
    claims: Sequence[Claim], clock: LedgerClock, context: AttemptContext
) -> list[tuple[ReadBack | None, tuple[AttemptRow, ...]]]:
    """Read the orders of these claims of one connection in one request; None for each where there is no token."""
    began, started = clock.now(), time.monotonic()
    token = _token(claims[0], context)
    if token is None:
        return [(None, ()) for _ in claims]
    answer = _fetch_orders(claims, token, context)
    if answer is None:
        return [(_NOT_READ, ()) for _ in claims]
    took = _milliseconds(started)
    reads = [classify_read(answer, claim.order_id) for claim in claims]
    return [(read, (_row("read", began, took, answer, read.reason),)) for read in reads]


def _fetch_orders(claims: Sequence[Claim], token: str, context: AttemptContext) -> Answer | None:
    """Ask Trackstar for these orders; None when the pace of their connection leaves no room for a read now."""
    connection_id, ids = claims[0].connection_id, [claim.order_id for claim in claims]
    if not context.pace.wait_to_read(connection_id):
        return None
    if len(ids) == 1:
        answer = context.trackstar.read_order(ids[0], access_token=token)
    else:
        answer = context.trackstar.read_orders(ids, access_token=token)
    context.pace.observe("read", connection_id, answer)
    return answer


def _token(claim: Claim, context: AttemptContext) -> str | None:
    try:
        place = of_connection(claim.connection_id)
        return context.decrypt(claim.encrypted_token, place) if claim.encrypted_token else None
    except CredentialsError as error:
        log.error("connection.token_unreadable", connection_id=claim.connection_id, problem=str(error))  # noqa: TRY400
        return None


def batches_of_reads(claims: Sequence[AnyClaim]) -> list[list[AnyClaim]]:
    """Group claims into requests: by connection, up to 100; an id that a list could not tell is asked for alone."""
    batches: dict[str, list[list[AnyClaim]]] = {}
    alone: list[list[AnyClaim]] = []
    for claim in claims:
        if "," in claim.order_id or may_change_form(claim.order_id):
            alone.append([claim])
            continue
        groups = batches.setdefault(claim.connection_id, [[]])
        if len(groups[-1]) == MAX_IDS_PER_READ:
            groups.append([])
        groups[-1].append(claim)
    return [*alone, *(group for groups in batches.values() for group in groups)]


def _row(kind: Literal["cancel", "read"], began: datetime, took: int, answer: Answer, reason: str) -> AttemptRow:
    if isinstance(answer, NoReply):
        return AttemptRow(kind=kind, started_at=began, reason=reason, duration_ms=took, error=answer.detail)
    return AttemptRow(
        kind=kind,
        started_at=began,
        reason=reason,
        duration_ms=took,
        status=answer.status,
        origin=answer.origin,
        error=answer.message,
        request_id=answer.request_id,
        replayed=answer.replayed,
        retry_after=answer.retry_after,
    )


def _milliseconds(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
