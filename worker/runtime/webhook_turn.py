"""One turn of webhooks, in one transaction: what was answered is kept, endpoints are taken, what is next is chosen.

Knows leases, and what is told of an endpoint. How many tries each may have, `webhook_shares` knows, and what follows
from an answer, `cancellation.delivery`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog

from worker.cancellation.delivery import GONE, RECOVERED_FROM, Rules, Standing, Tried
from worker.cancellation.event import Event
from worker.ledger import audit, deliveries, delivery_notes, endpoints, queries
from worker.ledger.audit import Action, Kind
from worker.ledger.deliveries import Due, Lane
from worker.ledger.delivery_notes import Note, Turn
from worker.ledger.told import read_told
from worker.ledger.vault import CredentialsError, Place, of_endpoint
from worker.runtime.webhook_shares import Limits, Running, Shares
from worker.telemetry.sentry import alert

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection

log = structlog.get_logger()

LEASE_SECONDS = 45.0  # of an endpoint; far above the time of a try
UNREADABLE_SECONDS = 60.0  # until a secret is looked at again that cannot be read


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent now."""

    due: Due
    url: str
    event: Event
    keys: Sequence[str]  # the secrets that sign


class Means(Limits, frozen=True, kw_only=True):
    """What is the same in every turn of one worker."""

    owner: str
    rules: Rules
    decrypt: Callable[[str, Place], str]  # a secret, kept there; raises CredentialsError
    dice: Callable[[], float]
    left_alone: dict[str, float] = msgspec.field(default_factory=dict)  # endpoints, until when (monotonic): they asked


class WebhookTurn:
    """One turn; `after` is to be called, and `has_news` told, when it is committed."""

    def __init__(self, db: Connection, means: Means, held: Collection[str], busy: Sequence[Running]) -> None:
        self.after: list[Callable[[], object]] = []
        self.has_news = self.has_more = False
        self._db = db
        self._means = means
        self._busy = busy
        self._lanes = {each.id: each for each in deliveries.mine(db, means.owner, held)} if held else {}
        self._before = {each.id: each.standing for each in self._lanes.values()}
        self._gaps: dict[str, float] = {}
        self._paused: set[str] = set()
        self._chosen: list[Chosen] = []

    @property
    def kept(self) -> set[str]:
        """Endpoints of this turn whose leases go on."""
        sent_to = {each.due.endpoint_id for each in self._busy} | {each.due.endpoint_id for each in self._chosen}
        return sent_to & self._lanes.keys()

    # ---- what was answered

    def keep(self, done: Iterable[tuple[Running, Tried]]) -> None:
        """Keep what became of tries."""
        notes = []
        for running, tried in done:
            note = self._note(running, tried)
            notes.append(note)
            if not note.delivered and note.wait is None:
                self.after.append(partial(_alert_set_aside, note))
            self._means.took.pop(running.due.endpoint_id, None)
            if tried.delivered:
                self._means.took[running.due.endpoint_id] = tried.seconds
            if lane := self._lanes.get(running.due.endpoint_id):
                self._stand(lane, running, tried)
        delivery_notes.note(self._db, notes)

    def _note(self, running: Running, tried: Tried) -> Note:
        rules, dice = self._means.rules, self._means.dice()
        return Note(
            due=running.due,
            at=running.at,
            duration_ms=round(tried.seconds * 1000),
            status=tried.status,
            reason=tried.reason,
            delivered=tried.delivered,
            wait=None if tried.delivered else rules.wait(running.due.tries + 1, tried, dice),
        )

    def _stand(self, lane: Lane, running: Running, tried: Tried) -> None:
        rules = self._means.rules
        if tried.delivered:
            if lane.standing.failures >= RECOVERED_FROM:
                delivery_notes.bring_forward(self._db, lane.id)
            lane.standing = Standing()
            self._gaps.pop(lane.id, None)
        elif tried.status == GONE:
            self._remove(lane)
            return
        else:
            lane.standing = rules.after_failure(lane.standing, running.at)
            self._gaps[lane.id] = rules.gap(lane.standing, tried)
            if (level := rules.level(lane.standing)) is not None:
                self._tell(lane, level)
        self._leave_alone(lane, tried)

    def _leave_alone(self, lane: Lane, tried: Tried) -> None:
        """Keep to the longest pause that the receiver has asked for, whatever its other answers of that time say."""
        until, now = self._means.left_alone, time.monotonic()
        if tried.asked_wait:
            until[lane.id] = max(until.get(lane.id, 0.0), now + tried.asked_wait)
        if (rest := until.get(lane.id, 0.0) - now) > 0:
            self._gaps[lane.id] = max(self._gaps.get(lane.id, 0.0), rest)
        else:
            until.pop(lane.id, None)

    def _tell(self, lane: Lane, level: int) -> None:
        lane.standing = msgspec.structs.replace(lane.standing, told=level)
        self.has_news = True
        if level >= endpoints.ALL and lane.active:
            self._paused.add(lane.id)
            self.after.append(partial(_alert_paused, lane))
        else:
            self.after.append(partial(_alert_failing, lane, level))
        endpoints.announce_level(self._db, lane.id, level, lane.standing.failures)

    def _remove(self, lane: Lane) -> None:
        by = audit.acting(f"worker {self._means.owner}", "the receiver answered 410: it is gone")
        with audit.recorded(self._db, by, Action.REMOVE, Kind.ENDPOINT, [lane.id]):
            endpoints.remove(self._db, lane.id)
        del self._lanes[lane.id]
        self.has_news = True
        self.after.append(partial(_alert_removed, lane))

    # ---- what is next

    def choose(self, *, looks: bool) -> list[Chosen]:
        """Choose what is sent now; `looks`: also of endpoints that nobody holds."""
        if looks and len(self._busy) < self._means.concurrency:
            for lane in deliveries.take(self._db, self._means.owner, LEASE_SECONDS, self._means.took):
                self._lanes[lane.id], self._before[lane.id] = lane, lane.standing
        shares = Shares(self._lanes, self._busy, self._means)
        may = [each for each in self._lanes.values() if self._is_open(each) and shares.room(each) > 0]
        now = queries.now(self._db) if any(each.old_secret for each in may) else None
        keys = {each.id: found for each in may if (found := self._keys(each, now))}
        lanes = [each for each in may if each.id in keys]
        told, self.has_more = deliveries.fan_out(self._db, lanes)
        due = shares.share(lanes, deliveries.choose(self._db, lanes, shares.most(lanes)))
        events = {each.number: each.event for each in told}
        if missing := sorted({each.number for each in due} - events.keys()):
            events |= {each.number: each.event for each in read_told(self._db, missing)}
        if gone := [each for each in due if each.number not in events]:  # by retention
            delivery_notes.drop(self._db, gone)
        self._chosen = [
            Chosen(due=each, url=self._lanes[each.endpoint_id].url, event=event, keys=keys[each.endpoint_id])
            for each in due
            if (event := events.get(each.number))
        ]
        return self._chosen

    def _is_open(self, lane: Lane) -> bool:
        return lane.active and lane.id not in self._gaps and lane.id not in self._paused

    def _keys(self, lane: Lane, now: datetime | None) -> list[str]:
        """Return the secrets that sign; none where the one cannot be read, and then nothing is sent for a while.

        `now` is None where no endpoint has an old one.
        """
        try:
            keys = [self._means.decrypt(lane.secret, of_endpoint(lane.id))]
        except CredentialsError as error:
            log.error("endpoint.secret_unreadable", endpoint_id=lane.id, problem=str(error))  # noqa: TRY400
            self._gaps[lane.id] = UNREADABLE_SECONDS
            return []
        if now and lane.old_secret and lane.old_secret_until and now < lane.old_secret_until:
            with suppress(CredentialsError):
                keys.append(self._means.decrypt(lane.old_secret, of_endpoint(lane.id)))
        return keys

    # ---- the end

    def leave(self, *, renew: bool) -> None:
        """Keep how endpoints stand, and end the leases of those that have nothing to do."""
        kept, owner = self.kept, self._means.owner
        moved = {each for each in self._lanes if self._lanes[each].standing != self._before[each]}
        changed = (moved | self._gaps.keys()) & self._lanes.keys()
        turns = [
            Turn(
                id=each,
                standing=self._lanes[each].standing,
                gap=self._gaps.get(each),
                keep=each in kept,
                pause=each in self._paused,
            )
            for each in sorted(changed)
        ]
        delivery_notes.leave(self._db, owner, turns, LEASE_SECONDS)
        if idle := self._lanes.keys() - kept - changed:
            delivery_notes.release(self._db, owner, idle)
        if renew:
            delivery_notes.renew(self._db, owner, LEASE_SECONDS)


def _alert_failing(lane: Lane, level: int) -> None:
    alert("endpoint.failing", endpoint_id=lane.id, percent=level, failures=lane.standing.failures)


def _alert_paused(lane: Lane) -> None:
    alert("endpoint.paused", endpoint_id=lane.id, failures=lane.standing.failures)


def _alert_removed(lane: Lane) -> None:
    alert("endpoint.removed", endpoint_id=lane.id)


def _alert_set_aside(note: Note) -> None:
    alert(
        "endpoint.event_set_aside",
        endpoint_id=note.due.endpoint_id,
        event_number=note.due.number,
        reason=note.reason,
    )
