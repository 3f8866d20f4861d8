"""One attempt from start to finish, as a pipeline of verbs: call, understand, read back, decide, record.

Knows a claim and how to reach Trackstar; does not know the ledger, Celery, or who waits for the result.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog

from worker.cancellation.answer import Answer, NoReply
from worker.cancellation.lifecycle import Policy, confirm, decide, must_read
from worker.cancellation.outcome import Kind, Outcome, Reading, Sight, classify, classify_read
from worker.ledger.credentials import CredentialsError
from worker.ledger.recording import AttemptRow, Record
from worker.trackstar.client import TrackstarClient
from worker.trackstar.pacing import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.ledger.claims import Claim


log = structlog.get_logger()

# Documented: up to 100 ids in one list read, and none with a comma.
MAX_IDS_PER_READ = 100


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt of this process shares."""

    trackstar: TrackstarClient
    unseal: Callable[[str], str]  # sealed access token to plain; raises CredentialsError
    policy: Policy
    pace: Pace
    start_within: float  # seconds after the claim; a later start could outlive the lease


class LedgerClock(msgspec.Struct, frozen=True):
    """The ledger's time, carried on by this process' monotonic clock: a worker's own clock is never asked."""

    at: datetime
    monotonic: float

    def now(self) -> datetime:
        return self.at + timedelta(seconds=self.elapsed())

    def elapsed(self) -> float:
        return time.monotonic() - self.monotonic


def attempt(claim: Claim, clock: LedgerClock, tools: Tools) -> Record:
    """Make the requests of one claim and decide what follows.

    Nothing is sent where this process was paused for so long that another may soon hold the claim.
    """
    if clock.elapsed() > tools.start_within:
        return _too_late(claim, clock, tools)
    rows: list[AttemptRow] = []
    token = _token(claim, tools)
    if token is None:
        outcome = Outcome(kind=Kind.NO_ACCESS, reason="no_access_token")
    elif claim.state.awaits_read:
        outcome = claim.state.remembered_refusal
    else:
        outcome = _cancel(claim, clock, tools, token, rows)
    reading = None
    if token is not None and must_read(claim.state, outcome):
        reading = _read_back(claim, clock, tools, token, rows)
    move = decide(claim.state, outcome, reading, now=clock.now(), jitter=random.random(), policy=tools.policy)
    return Record(claim=claim, attempts=tuple(rows), move=move)


_TOO_LATE = "started_too_late"


def _too_late(claim: Claim, clock: LedgerClock, tools: Tools) -> Record:
    """Give a claim back unused: nothing was sent, so nothing is in doubt that was not before."""
    log.warning("cancellation.started_too_late", id=claim.fence.id, seconds=round(clock.elapsed(), 1))
    outcome, reading = Outcome(kind=Kind.SLOW_DOWN, reason=_TOO_LATE, retry_after=0.0), None
    if claim.state.awaits_read:
        outcome = claim.state.remembered_refusal
        reading = Reading(sight=Sight.LATER, reason=_TOO_LATE, spends_attempt=False)
    move = decide(claim.state, outcome, reading, now=clock.now(), jitter=random.random(), policy=tools.policy)
    return Record(claim=claim, attempts=(), move=move)


def rescue(claim: Claim, policy: Policy) -> Record:
    """Decide about a claim whose worker was lost: its request may have landed."""
    outcome = (
        claim.state.remembered_refusal
        if claim.state.awaits_read
        else Outcome(kind=Kind.IN_DOUBT, reason="worker_lost")
    )
    reading = Reading(sight=Sight.LATER, reason="worker_lost") if claim.state.awaits_read else None
    move = decide(claim.state, outcome, reading, now=claim.claimed_at, jitter=random.random(), policy=policy)
    row = AttemptRow(
        kind="read" if claim.state.awaits_read else "cancel",
        started_at=claim.state.first_sent_at,
        reason="worker_lost",
    )
    return Record(claim=claim, attempts=(row,), move=move)


def look_up(claims: Sequence[Claim], clock: LedgerClock, tools: Tools) -> list[Record]:
    """Read orders of one connection whose refusal is known and unread, in one request, and decide about each."""
    if clock.elapsed() > tools.start_within:
        return [_too_late(claim, clock, tools) for claim in claims]
    began, started = clock.now(), time.monotonic()
    token = _token(claims[0], tools)
    answer = _ask(claims, token, tools) if token else None
    took, now = _milliseconds(started), clock.now()
    records = []
    for claim in claims:
        reading = _seen(answer, claim) if token else None
        outcome = claim.state.remembered_refusal if token else Outcome(kind=Kind.NO_ACCESS, reason="no_access_token")
        move = decide(claim.state, outcome, reading, now=now, jitter=random.random(), policy=tools.policy)
        rows = (_row("read", began, took, answer, reading.reason),) if answer and reading else ()
        records.append(Record(claim=claim, attempts=rows, move=move))
    return records


def read_back(claims: Sequence[Claim], clock: LedgerClock, tools: Tools) -> list[Record]:
    """Look again at ended cancellations of one connection without proof, in one request where their ids allow."""
    began, started = clock.now(), time.monotonic()
    token = _token(claims[0], tools)
    answer = _ask(claims, token, tools) if token else None
    took, now = _milliseconds(started), clock.now()
    return [_confirmed(claim, answer, began, took, now, tools.policy) for claim in claims]


def _ask(claims: Sequence[Claim], token: str, tools: Tools) -> Answer | None:
    """Ask for these orders of one connection at once; None when its pace leaves no room for a read now."""
    connection_id, ids = claims[0].connection_id, [claim.order_id for claim in claims]
    if not tools.pace.wait_to_read(connection_id):
        return None
    if len(ids) == 1:
        answer = tools.trackstar.read_order(ids[0], access_token=token)
    else:
        answer = tools.trackstar.read_orders(ids, access_token=token)
    tools.pace.hear("read", connection_id, answer)
    return answer


_NO_ROOM = Reading(sight=Sight.LATER, reason="read_paced", spends_attempt=False)


def _seen(answer: Answer | None, claim: Claim) -> Reading:
    return classify_read(answer, claim.order_id) if answer else _NO_ROOM


def _token(claim: Claim, tools: Tools) -> str | None:
    try:
        return tools.unseal(claim.sealed_token) if claim.sealed_token else None
    except CredentialsError as error:
        log.error("connection.token_unreadable", connection_id=claim.connection_id, problem=str(error))  # noqa: TRY400
        return None


def batches_of_reads(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Group claims into requests: by connection, up to 100; an id with a comma is asked for alone."""
    batches: dict[str, list[list[Claim]]] = {}
    alone: list[list[Claim]] = []
    for claim in claims:
        if "," in claim.order_id:
            alone.append([claim])
            continue
        groups = batches.setdefault(claim.connection_id, [[]])
        if len(groups[-1]) == MAX_IDS_PER_READ:
            groups.append([])
        groups[-1].append(claim)
    return [*alone, *(group for groups in batches.values() for group in groups)]


def _confirmed(
    claim: Claim, answer: Answer | None, began: datetime, took: int, now: datetime, policy: Policy
) -> Record:
    reading = _seen(answer, claim)
    if claim.state.verdict is None or claim.ended_at is None:
        raise ValueError(f"cancellation {claim.fence.id} has not ended, so it has nothing to confirm")
    found = confirm(claim.state.verdict, claim.state.evidence, claim.ended_at, reading, now=now, policy=policy)
    rows = (_row("read", began, took, answer, reading.reason),) if answer else ()
    return Record(claim=claim, attempts=rows, confirmation=found)


def _cancel(claim: Claim, clock: LedgerClock, tools: Tools, token: str, rows: list[AttemptRow]) -> Outcome:
    began, started = clock.now(), time.monotonic()
    answer = tools.trackstar.cancel(claim.order_id, access_token=token, idempotency_key=claim.idempotency_key)
    outcome = classify(answer, claim.order_id)
    rows.append(_row("cancel", began, _milliseconds(started), answer, outcome.reason))
    tools.pace.hear("cancel", claim.connection_id, answer)
    return outcome


def _read_back(claim: Claim, clock: LedgerClock, tools: Tools, token: str, rows: list[AttemptRow]) -> Reading:
    began, started = clock.now(), time.monotonic()
    answer = _ask([claim], token, tools)
    reading = _seen(answer, claim)
    if answer:
        rows.append(_row("read", began, _milliseconds(started), answer, reading.reason))
    return reading


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
