"""Counts how recent requests ended, for all workers together, and holds the connections that are down.

Has a thread of its own, so that a Redis that is silent delays no record. Knows Redis and holds; when a connection
counts as down, `cancellation.outage` says.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import msgspec
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.outage import WINDOW_SECONDS, Tally, all_are_down, is_down, is_failure
from worker.ledger import holds
from worker.ledger.attempts import WORKER_LOST
from worker.runtime.loop import NEVER, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from redis import Redis
    from sqlalchemy import Engine

    from worker.ledger.results import CommitSummary, Result

MAX_WAITING = 1_000  # groups of results; what is beyond that is not counted
MIN_SECONDS = 1.0  # between two evaluations of one worker

_PERIOD_SECONDS = 10
_PERIODS = WINDOW_SECONDS // _PERIOD_SECONDS
# One hash per period counts "connection good" and "connection bad"; Redis' clock says which period it is.
_COUNT = """
local period = math.floor(redis.call('TIME')[1] / tonumber(ARGV[1]))
local key = KEYS[1] .. period
for i = 3, #ARGV, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', key, tonumber(ARGV[1]) * (tonumber(ARGV[2]) + 1))
return period
"""
_KEY = "cancellations:answers:"


class OutageDecision(msgspec.Struct, frozen=True):
    """Who counts as down."""

    connections: frozenset[str] = frozenset()
    all_of_them: bool = False


class AnswerTally:
    """The count of recent answers that all workers share. Raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._count = redis.register_script(_COUNT)
        self._evaluated_at = 0.0

    def count(self, results: Iterable[Result]) -> OutageDecision:
        """Count the answers among these results, and say who is down now."""
        counts = Counter(
            f"{result.claim.connection_id} {'bad' if failed else 'good'}"
            for result in results
            for row in result.attempts
            if row.reason != WORKER_LOST and (failed := is_failure(row.status)) is not None
        )
        if not counts:
            return OutageDecision()
        words = [word for pair in counts.items() for word in pair]
        period = self._count(keys=[_KEY], args=[_PERIOD_SECONDS, _PERIODS, *words])
        failing = any(name.endswith(" bad") for name in counts)
        return self._evaluate(period) if failing else OutageDecision()

    def reset(self, connection_ids: Collection[str] | None = None) -> None:
        """Begin anew with these connections (or all): they answer again, whatever their last half minute was."""
        for key in self._redis.scan_iter(match=f"{_KEY}*"):
            if connection_ids is None:
                self._redis.delete(key)
            else:
                self._redis.hdel(key, *(f"{name} bad" for name in connection_ids))

    def _evaluate(self, period: int) -> OutageDecision:
        if time.monotonic() - self._evaluated_at < MIN_SECONDS:
            return OutageDecision()
        self._evaluated_at = time.monotonic()
        tallies = self._tallies(period)
        return OutageDecision(
            frozenset(name for name, tally in tallies.items() if is_down(tally)), all_of_them=all_are_down(tallies)
        )

    def _tallies(self, period: int) -> dict[str, Tally]:
        pipeline = self._redis.pipeline(transaction=False)
        for number in range(period - _PERIODS + 1, period + 1):
            pipeline.hgetall(f"{_KEY}{number}")
        counts: Counter[str] = Counter()
        for found in pipeline.execute():
            counts.update({name.decode(): int(count) for name, count in found.items()})
        names = {name.rpartition(" ")[0] for name in counts}
        return {name: Tally(good=counts[f"{name} good"], bad=counts[f"{name} bad"]) for name in names}


class Outages:
    """One thread that counts what was answered, and holds who is down."""

    def __init__(self, redis: Redis, ledger: Engine, on_held: Callable[[frozenset[str] | int], None]) -> None:
        self._tally = AnswerTally(redis)
        self._ledger = ledger
        self._on_held = on_held
        self._waiting: deque[tuple[list[Result], CommitSummary]] = deque(maxlen=MAX_WAITING)
        # Without Redis nothing is counted: each job's own backoff goes on.
        self.loop = Loop("outages", self._tick, expected=(RedisError, SQLAlchemyError))

    def put(self, results: list[Result], summary: CommitSummary) -> None:
        """Count these, which were just recorded; returns at once."""
        self._waiting.append((results, summary))
        self.loop.wake()

    def _tick(self) -> float:
        while self._waiting:
            self._evaluate_results(*self._waiting.popleft())
        return NEVER

    def _evaluate_results(self, results: list[Result], summary: CommitSummary) -> None:
        if summary.trackstar_resumed:
            self._tally.reset()
        elif summary.resumed:
            self._tally.reset(sorted(summary.resumed))
        decision = self._tally.count(results)
        if not decision.connections and not decision.all_of_them:
            return
        with self._ledger.begin() as db:
            held = holds.hold_all(db) if decision.all_of_them else holds.hold(db, decision.connections, holds.OUTAGE)
        self._on_held(held)
