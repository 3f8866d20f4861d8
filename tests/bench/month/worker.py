"""The worker's part of a simulated month: when it sends, reads, asks and looks. What follows from that, its rules say.

When is the production's own: of the loop that follows crawls, and of the second look. Knows no truth.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from bench.month.world import HOUR, Order, Shop, Timeline, at, seconds_of
from worker.cancellation.freshness import Crawls, broken, forecast, needs_forcing, observe
from worker.cancellation.lifecycle import NOT_FOUND_YET, Moment, State, Transition, decide, expire, must_read
from worker.cancellation.outcome import OrderState, Outcome, classify, classify_read, judge_order
from worker.cancellation.policy import Policy
from worker.cancellation.proof import (
    PASSING,
    Confirmation,
    NeedsPerson,
    Unproven,
    confirm,
    foresee,
    known_by_at_the_latest,
)
from worker.cancellation.status import FINAL, Evidence, Status, Verdict
from worker.ledger.freshness import FIRST_LOOK_SECONDS
from worker.runtime.freshness import ASK_SECONDS, FORCE_SECONDS, REFUSED_SECONDS
from worker.runtime.second_look import OVERLAP, all_known_to

if TYPE_CHECKING:
    from datetime import datetime

    from worker.cancellation import answer as words

POLICY = Policy()
_TO_A_THREAD = 1.0  # from what is due to the request that leaves
_WATCHED = {Verdict.ACCEPTED, Verdict.CANCELLED, Verdict.UNKNOWN}


class Row:
    """One cancellation."""

    def __init__(self, order: Order, received: float, send_by: float | None) -> None:
        self.order = order
        self.received = received
        self.send_by = send_by
        self.status = Status.PENDING
        self.state: State | None = None
        self.verdict: Verdict | None = None
        self.evidence: Evidence | None = None
        self.ended: float | None = None
        self.as_of: datetime | None = None
        self.confirm_at: float | None = None
        self.run_at: float | None = None
        self.known_by: datetime | None = None
        self.needs_person: NeedsPerson | None = None
        self.was_absent = False  # younger than the copy when it came in
        self.news: list[tuple[float, str]] = []  # what was told, and when
        self.said: list[tuple[float, Verdict | None]] = []  # which verdict stood from when on

    @property
    def unsettled(self) -> bool:
        return self.known_by is not None or self.needs_person is not None

    @property
    def known(self) -> Unproven:
        assert self.verdict is not None
        assert self.ended is not None
        return Unproven(
            verdict=self.verdict,
            evidence=self.evidence,
            ended_at=at(self.ended),
            as_of=self.as_of,
            known_by=self.known_by,
            needs_person=self.needs_person,
        )


class Worker:
    """All workers together, as far as one connection is concerned."""

    def __init__(self, shop: Shop, timeline: Timeline, trackstar: Any, told: Any) -> None:
        self.shop = shop
        self.timeline = timeline
        self.trackstar = trackstar
        self.told = told  # what is checked after each change of a row
        self.rows: dict[str, Row] = {}
        self.waiting: set[Row] = set()  # for a crawl or a person
        self.crawls: Crawls | None = None
        self.counts = {"polls": 0, "forced": 0, "reads": 0, "looks": 0}
        self._force_after = self._ask_at = -1.0
        self._look_at: float | None = None
        self._looked_to: datetime | None = None
        self._watch_until = 0.0
        self._asked = False
        shop.on_schedule = self._something_changed

    @property
    def now(self) -> datetime:
        return at(self.timeline.now)

    # -- jobs

    def receive(self, order: Order, send_by: float | None) -> None:
        row = self.rows[order.id] = Row(order, self.timeline.now, send_by)
        self.timeline.put(self.timeline.now + _TO_A_THREAD, lambda: self._send(row))

    def _send_at(self, row: Row, when: float) -> None:
        row.run_at = when
        self.timeline.put(when + _TO_A_THREAD, lambda: row.run_at == when and self._send(row))

    def _send(self, row: Row) -> None:
        row.run_at = None
        came = at(row.received)
        state = row.state or State(
            attempts=0,
            first_sent_at=self.now,
            received_at=came,
            send_by=None if row.send_by is None else at(row.send_by),
        )
        if row.send_by is not None and row.send_by <= self.timeline.now:
            self._apply(row, state, expire(state, self._moment()))
            return
        if state.awaits_read:
            self._answered(row, state, state.remembered_refusal)
            return
        took, said = self.trackstar.cancel(row.order)
        outcome = classify(said, row.order.id)
        self.timeline.put(self.timeline.now + took, lambda: self._answered(row, state, outcome))

    def _answered(self, row: Row, state: State, outcome: Outcome) -> None:
        read = classify_read(self._read(row.order), row.order.id) if must_read(state, outcome) else None
        self._apply(row, state, decide(state, outcome, read, self._moment()))

    def _moment(self) -> Moment:
        return Moment(now=self.now, policy=POLICY, crawls=self._crawls_now(), jitter=0.5)

    def _crawls_now(self) -> Crawls | None:
        """Return what is known of crawls; the questions that brought nothing new were not asked one by one."""
        if self.crawls is None or self.timeline.now > self._watch_until:
            return self.crawls
        return msgspec.structs.replace(self.crawls, seen_at=self.now)

    def _read(self, order: Order) -> words.Answer:
        self.counts["reads"] += 1
        return self.trackstar.read(order)

    def _apply(self, row: Row, state: State, to: Transition) -> None:
        row.was_absent |= to.reason == NOT_FOUND_YET
        row.status = to.status
        row.verdict, row.evidence, row.as_of = to.verdict, to.evidence, to.as_of
        row.known_by, row.needs_person = to.known_by, to.needs_person
        row.state = msgspec.structs.replace(
            state,
            attempts=to.attempts,
            verdict=to.verdict,
            evidence=to.evidence,
            reason=to.reason,
            message=to.message,
        )
        if to.run_at is not None:
            self._send_at(row, seconds_of(to.run_at))
        if to.status in FINAL:
            row.ended = self.timeline.now + 0.1
            if row.verdict in _WATCHED:
                self._watch_until = max(self._watch_until, row.ended + POLICY.watch)
        self._read_at(row, None if to.confirm_at is None else seconds_of(to.confirm_at))

    def _read_at(self, row: Row, confirm_at: float | None) -> None:
        row.confirm_at = confirm_at
        if confirm_at is not None:
            self.timeline.put(confirm_at + _TO_A_THREAD, lambda: row.confirm_at == confirm_at and self._confirm(row))
        (self.waiting.add if row.unsettled else self.waiting.discard)(row)
        self.told(row)
        if self.waiting or self._is_watched():
            self._ask_soon()

    # -- what has ended

    def _confirm(self, row: Row) -> None:
        row.confirm_at = None
        crawls = self._crawls_now()
        read = classify_read(self._read(row.order), row.order.id)
        self._confirmed(row, confirm(row.known, read, now=self.now, crawls=crawls, policy=POLICY))

    def _confirmed(self, row: Row, found: Confirmation) -> None:
        if found.verdict != row.verdict:
            row.news.append((self.timeline.now, "contradicted" if found.contradicted else "raised"))
        row.verdict, row.evidence, row.as_of = found.verdict, found.evidence, found.as_of or row.as_of
        row.known_by, row.needs_person = found.known_by, found.needs_person
        self._read_at(row, None if found.confirm_at is None else seconds_of(found.confirm_at))

    # -- crawls, as `runtime.freshness` follows them

    def _is_watched(self) -> bool:
        return bool(self.waiting) or self._watch_until > self.timeline.now

    def _something_changed(self) -> None:
        if self._is_watched():
            self._ask_soon()

    def _ask_soon(self, after: float = 0.0) -> None:
        """Ask at the next of the moments at which all workers together ask."""
        when = (math.floor((self.timeline.now + after) / ASK_SECONDS) + 1) * ASK_SECONDS
        if self._ask_at <= self.timeline.now or when < self._ask_at:
            self._ask_at = when
            self.timeline.put(when, lambda: self._ask_at == when and self._ask())

    def _ask(self) -> None:
        self._ask_at = -1.0
        if not self._is_watched():
            return
        self.counts["polls"] += 1
        before, now = self.crawls, self.now
        self._looked_to = self._looked_to or now - timedelta(seconds=FIRST_LOOK_SECONDS)
        self.crawls = crawls = observe(before, self.shop.schedule(), now)
        self._follow(before, crawls, now)
        if self._look_at is not None and self._look_at <= self.timeline.now:
            self._look()
        self._force(crawls, now)
        self._asked = True
        if any(row.known_by for row in self.waiting):
            self._ask_soon()
        elif self._look_at is not None:
            self._ask_soon(self._look_at - self.timeline.now)
        elif self.waiting:
            self._ask_soon(HOUR / 4)  # what is with a person moves only with the crawls

    def _follow(self, before: Crawls | None, crawls: Crawls | None, now: datetime) -> None:
        completed = crawls is not None and crawls.began_at != (before.began_at if before else None)
        if completed:
            self._after_a_crawl()
        elif self._look_at is None and not (crawls and crawls.known):
            self._look_at = self.timeline.now
        problem, was = broken(crawls, now), broken(before, before.seen_at) if before else None
        overtaken = any(row.known_by is not None and row.known_by <= now for row in self.waiting)
        passing = not problem and any(row.needs_person in PASSING for row in self.waiting)
        if completed or problem != was or overtaken or passing or forecast(before) != forecast(crawls):
            self._revise(crawls, now)

    def _after_a_crawl(self) -> None:
        self._look_at = self.timeline.now
        for row in sorted(self.waiting, key=lambda each: each.order.id):
            if row.known_by is None and row.needs_person not in PASSING:
                continue
            if row.ended is not None:
                self._read_at(row, self.timeline.now)
            elif row.run_at is not None and row.run_at > self.timeline.now:
                self._send_at(row, self.timeline.now)

    def _revise(self, crawls: Crawls | None, now: datetime) -> None:
        for row in sorted(self.waiting, key=lambda each: each.order.id):
            if row.ended is None or (row.known_by is None and row.needs_person not in PASSING):
                continue
            then = foresee(row.known, now, crawls, POLICY, held=False)
            if (then.known_by, then.needs_person) != (row.known_by, row.needs_person):
                row.known_by, row.needs_person = then.known_by, then.needs_person
                again = None if then.confirm_at is None else seconds_of(then.confirm_at)
                self._read_at(row, row.confirm_at or again)

    def _force(self, crawls: Crawls | None, now: datetime) -> None:
        waits = any(row.known_by for row in self.waiting)
        if waits and self._asked and self._force_after <= self.timeline.now and needs_forcing(crawls, now):
            self.counts["forced"] += 1
            took = self.shop.force()
            self._force_after = self.timeline.now + (FORCE_SECONDS if took else REFUSED_SECONDS)

    # -- the second look

    def _look(self) -> None:
        crawls = self.crawls
        looked_to = self._looked_to or self.now
        changed, pages = self.shop.changed_since(seconds_of(looked_to - OVERLAP))
        self.counts["looks"] += pages
        for order in changed:
            row = self.rows.get(order.id)
            if row is None or row.ended is None or row.verdict not in _WATCHED:
                continue
            read = judge_order(self.trackstar.shown(order))
            if read.shows is not OrderState.OPEN:
                found = confirm(row.known, read, now=self.now, crawls=crawls, policy=POLICY)
                if found.verdict != row.verdict:
                    self._confirmed(row, found)
        known = crawls is not None and crawls.known
        self._looked_to = max(looked_to, all_known_to(looked_to, crawls, self.now))
        self._look_at = None if known else self.timeline.now + HOUR

    # -- what is promised at any instant

    def has_a_date(self, row: Row) -> bool:
        """Whether all that is not known yet of this one has a date to come, or a person."""
        if row.verdict in {Verdict.CANCELLED, Verdict.NOT_CANCELLED} or row.needs_person:
            return True
        # What was to be known just now is told anew with the next question.
        if row.known_by is not None or row.status in FINAL:
            return row.known_by is not None and row.known_by + timedelta(seconds=ASK_SECONDS) >= self.now
        latest = known_by_at_the_latest(
            received_at=at(row.received),
            first_sent_at=row.state.first_sent_at if row.state else None,
            send_by=None if row.send_by is None else at(row.send_by),
            stands_still=False,
            now=self.now,
            policy=POLICY,
        )
        return latest is not None
