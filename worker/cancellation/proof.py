"""What a read proves of an order whose cancellation has ended; by when, or by whom, the rest is known.

A read shows Trackstar's copy. `cancelled` and goods that have left are proof at any age; of an order that shows both,
the goods count. `open` is proof only when the
copy is younger than our last request: when two crawls began after it (one may miss what a warehouse applies late).
Knows no clock, no row, no thread; what is known of crawls, `freshness` says.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from worker.cancellation.answer import Order
from worker.cancellation.freshness import CrawlStatus, broken, crawls_since
from worker.cancellation.outcome import OrderState
from worker.cancellation.status import PROVEN, Evidence, Verdict

if TYPE_CHECKING:
    from worker.cancellation.freshness import Crawls
    from worker.cancellation.outcome import ReadBack
    from worker.cancellation.policy import Policy

ENOUGH_CRAWLS = 2
READ_SECONDS = 60.0  # from the end of a crawl to the record of what it brought
_A_READ = timedelta(seconds=READ_SECONDS)
COPY_SECONDS = 3600.0  # the documented age of a copy whose crawls nobody tells of


class NeedsPerson(StrEnum):
    """Why no crawl settles it: what a person must do, the runbook says for each."""

    CRAWLS_DISABLED = "crawls_disabled"
    CRAWLS_FAILING = "crawls_failing"
    CRAWLS_OVERDUE = "crawls_overdue"
    ORDER_NOT_IN_COPY = "order_not_in_copy"
    ACCEPTED_BUT_OPEN = "accepted_but_open"  # the warehouse may apply it late
    UNREADABLE = "unreadable"
    NO_ACCESS = "no_access"
    CONNECTION_HELD = "connection_held"  # it was never sent, and nobody knows when its connection is open again


# These end when crawls come again, or the connection may be read again.
PASSING = frozenset(
    {NeedsPerson.CRAWLS_DISABLED, NeedsPerson.CRAWLS_FAILING, NeedsPerson.CRAWLS_OVERDUE, NeedsPerson.NO_ACCESS}
)


class Unproven(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an ended cancellation that is looked at again."""

    verdict: Verdict
    evidence: Evidence | None
    ended_at: datetime  # our last request had ended by then
    as_of: datetime | None = None
    known_by: datetime | None = None
    needs_person: NeedsPerson | None = None


class Prospect(msgspec.Struct, frozen=True):
    """When an unproven end is looked at next, and by when it is known, or why a person must settle it."""

    confirm_at: datetime | None
    known_by: datetime | None = None
    needs_person: NeedsPerson | None = None


def prospect(ended_at: datetime, now: datetime, crawls: Crawls | None, policy: Policy) -> Prospect:
    """Say by when an end without proof is known."""
    step = next_read_back(ended_at, now, policy)
    if problem := _problem(crawls, now):
        return Prospect(step, needs_person=NeedsPerson(problem))
    if crawls is None or not crawls.known:
        last = _last_step(ended_at, crawls, policy)
        return Prospect(step or max(now, last), _ahead(last, COPY_SECONDS / 4, now) + _A_READ)
    known_by = _enough_crawls_by(ended_at, now, crawls) + _A_READ
    if is_fresh(ended_at, now, crawls, policy):
        return Prospect(now, known_by)  # whoever reads it now knows it
    return Prospect(min(step or known_by, known_by), known_by)


def foresee(known: Unproven, now: datetime, crawls: Crawls | None, policy: Policy, *, held: bool) -> Prospect:
    """Say anew by when an end without proof is known, where it waits for a crawl; `held`: it cannot be read now."""
    if held and (known.known_by is None or known.known_by <= now):
        return Prospect(None, needs_person=NeedsPerson.NO_ACCESS)
    # Once the copy is fresh only the read is missing, and it was told by when that is done.
    learnt = not is_fresh(known.ended_at, now, crawls, policy)
    return _steady(known, prospect(known.ended_at, now, crawls, policy), now, learnt=learnt)


def _steady(known: Unproven, then: Prospect, now: datetime, *, learnt: bool = True) -> Prospect:
    """Keep the instant that was told where the new one is hardly later, or nothing was `learnt`."""
    told = known.known_by
    if told is None or then.known_by is None or not now < told < then.known_by:
        return then
    if learnt and then.known_by > told + _A_READ:
        return then
    return Prospect(then.confirm_at and min(then.confirm_at, told), told)


def _problem(crawls: Crawls | None, now: datetime) -> str | None:
    """Return why no crawl is to be expected, where Trackstar tells how its crawls are."""
    return None if crawls is None or crawls.status is CrawlStatus.UNKNOWN else broken(crawls, now)


def _last_step(ended_at: datetime, crawls: Crawls | None, policy: Policy) -> datetime:
    """Return when a copy is young enough of whose crawls nobody tells: beyond a crawl, hourly or known."""
    return ended_at + timedelta(seconds=policy.read_back[-1] - COPY_SECONDS) + _copy_age(crawls)


def _copy_age(crawls: Crawls | None) -> timedelta:
    return timedelta(seconds=max(COPY_SECONDS, crawls.frequency or 0.0 if crawls else 0.0))


def _enough_crawls_by(ended_at: datetime, now: datetime, crawls: Crawls) -> datetime:
    end = crawls.end_of_second(ended_at) or crawls.ended_at or crawls.running_since or now
    # One that is late, or the first of all, is waited for a while, and then a while more: until it is overdue.
    return _ahead(end, (crawls.frequency or COPY_SECONDS) / 4, now)


def _ahead(expected: datetime, every: float, now: datetime) -> datetime:
    """Return when something is expected; where that has passed, so many seconds later that it lies ahead.

    Not counted from now, or whatever is looked at every minute would be put off every minute.
    """
    late = (now - expected).total_seconds()
    return expected if late < 0 else expected + timedelta(seconds=(math.floor(late / every) + 1) * every)


def next_read_back(ended_at: datetime, now: datetime, policy: Policy) -> datetime | None:
    """Return when an ended cancellation without proof is read back next, or None when all times are over."""
    for seconds in policy.read_back:
        due = ended_at + timedelta(seconds=seconds)
        if due > now:
            return due
    return None


def is_fresh(ended_at: datetime, now: datetime, crawls: Crawls | None, policy: Policy) -> bool:
    """Whether a copy that is read now is young enough to prove that an order was not cancelled.

    `crawls` is what was known when the read began. Without it the last of the times to read back decides, which is
    beyond the hourly crawl.
    """
    if _is_told(crawls, now):
        return crawls_since(crawls, ended_at) >= ENOUGH_CRAWLS
    return now >= _last_step(ended_at, crawls, policy)


def _is_told(crawls: Crawls | None, now: datetime) -> bool:
    """Whether Trackstar tells when the copy is renewed, or that it is not."""
    return crawls is not None and (crawls.known or _problem(crawls, now) is not None)


class Confirmation(msgspec.Struct, frozen=True, kw_only=True):
    """What a later read-back changes on an ended cancellation. The status stays; the verdict may rise."""

    verdict: Verdict
    evidence: Evidence | None
    as_of: datetime | None = None  # the instant of which the verdict is true
    confirm_at: datetime | None = None
    known_by: datetime | None = None
    needs_person: NeedsPerson | None = None
    order: Order | None = None
    contradicted: bool = False  # Trackstar had said or shown `cancelled`, and the goods left


# A failed read-back is asked again after this long: the copy it asks for changes hourly.
_READ_AGAIN = 60.0
# One that was never asked, or was told to slow down, is due still: it waits for room, not for another copy.
_ASK_SOON = 2.0


def confirm(known: Unproven, read: ReadBack, *, now: datetime, crawls: Crawls | None, policy: Policy) -> Confirmation:
    """Raise a verdict by a later read, or say by when it is known. `crawls` as they were when the read began."""
    if read.shows is OrderState.CANCELLED:
        return _proof(Verdict.CANCELLED, Evidence.READ_BACK, now, read.order)
    if read.shows is OrderState.SHIPPED and _contradicts_or_proves(known, now, crawls):
        contradicted = known.verdict in {Verdict.ACCEPTED, Verdict.CANCELLED}
        return _proof(Verdict.NOT_CANCELLED, Evidence.READ_BACK, now, read.order, contradicted=contradicted)
    if known.verdict in PROVEN:
        return Confirmation(verdict=known.verdict, evidence=known.evidence, as_of=known.as_of)
    if read.shows in {OrderState.LATER, OrderState.NO_ACCESS}:
        return _not_read(known, read, now, crawls, policy)
    if not is_fresh(known.ended_at, now, crawls, policy):
        then = _steady(known, prospect(known.ended_at, now, crawls, policy), now)
        return _unchanged(known, then, now, read.order)
    if read.shows is OrderState.OPEN and known.verdict is Verdict.UNKNOWN:
        return _proof(Verdict.NOT_CANCELLED, Evidence.FRESH_READ_BACK, _open_as_of(now, crawls), read.order)
    return _unchanged(known, Prospect(None, needs_person=_WHY_A_PERSON[read.shows]), now, read.order)


_WHY_A_PERSON = {
    OrderState.OPEN: NeedsPerson.ACCEPTED_BUT_OPEN,
    OrderState.ABSENT: NeedsPerson.ORDER_NOT_IN_COPY,
    OrderState.UNREADABLE: NeedsPerson.UNREADABLE,
}


def _contradicts_or_proves(known: Unproven, now: datetime, crawls: Crawls | None) -> bool:
    """Whether goods that have left say more than is known: a proof falls only to a copy that is younger than it."""
    shown = _shown_as_of(now, crawls)
    return known.verdict is not Verdict.CANCELLED or (shown is not None and shown > known.ended_at)


def _shown_as_of(now: datetime, crawls: Crawls | None) -> datetime | None:
    """Return the instant of which a copy that is read now is true at least; None where nobody knows."""
    began = crawls.began_at if crawls else None
    assumed = now - _copy_age(crawls)
    return began if _is_told(crawls, now) else max(began or assumed, assumed)


def _open_as_of(now: datetime, crawls: Crawls | None) -> datetime | None:
    """Return the instant at which an order was open that reads so now: the last crawl may have missed the rest."""
    told = crawls is not None and _is_told(crawls, now) and crawls.before_began_at
    return told or _shown_as_of(now, crawls)


def _proof(
    verdict: Verdict, evidence: Evidence, as_of: datetime | None, order: Order | None, *, contradicted: bool = False
) -> Confirmation:
    return Confirmation(verdict=verdict, evidence=evidence, as_of=as_of, order=order, contradicted=contradicted)


def _unchanged(known: Unproven, then: Prospect, as_of: datetime | None, order: Order | None = None) -> Confirmation:
    return Confirmation(
        verdict=known.verdict,
        evidence=known.evidence,
        as_of=as_of,
        confirm_at=then.confirm_at,
        known_by=then.known_by,
        needs_person=then.needs_person,
        order=order,
    )


def _not_read(known: Unproven, read: ReadBack, now: datetime, crawls: Crawls | None, policy: Policy) -> Confirmation:
    patience = _READ_AGAIN if read.spends_attempt else _ASK_SOON
    again = now + timedelta(seconds=max(read.retry_after or 0.0, patience))
    if again >= known.ended_at + timedelta(seconds=policy.retry_horizon):
        why = NeedsPerson.NO_ACCESS if read.shows is OrderState.NO_ACCESS else NeedsPerson.UNREADABLE
        return _unchanged(known, Prospect(None, needs_person=why), known.as_of)
    # It is not known before it is asked; a read that failed, or found no room, moves nothing that still lies ahead.
    then = _steady(known, prospect(known.ended_at, again, crawls, policy), again, learnt=False)
    return _unchanged(known, msgspec.structs.replace(then, confirm_at=again), known.as_of)


def known_by_at_the_latest(
    *,
    received_at: datetime,
    first_sent_at: datetime | None,
    send_by: datetime | None,
    stands_still: bool,
    now: datetime,
    policy: Policy,
) -> datetime | None:
    """Return by when a cancellation that has not ended is known at the latest; None where nobody can tell.

    `stands_still`: its connection is held, and nobody knows until when.
    """
    horizon = timedelta(seconds=policy.retry_horizon)
    if send_by is not None:
        end = send_by
    elif first_sent_at is not None:
        end = first_sent_at + horizon
    elif stands_still:
        return None
    else:
        end = max(received_at + horizon, now) + horizon
    return max(end, now) + timedelta(seconds=policy.read_back[-1] + READ_SECONDS)
