"""Counts how recent requests ended, for all workers together, and holds the connections that are down.

Has a thread of its own, so that a Redis that is silent delays no record. Knows Redis and holds; when a connection
counts as down, `cancellation.outage` says.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.cancellation.outage import WINDOW_SECONDS, Tally, all_are_down, is_down, is_failure
from worker.inputs.tally import name_of_count, read_count
from worker.ledger import holds
from worker.ledger.attempts import WORKER_LOST
from worker.runtime.loop import NEVER, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from redis import Redis
    from sqlalchemy import Engine

    from worker.ledger.results import CommitSummary, Result

log = structlog.get_logger()

MAX_WAITING = 1_000  # groups of results; what is beyond that is not counted
MIN_SECONDS = 1.0  # between two evaluations of one worker

_PERIOD_SECONDS = 10
_MAX_TOLD = 10  # names in the log of one reset
_PERIODS = WINDOW_SECONDS // _PERIOD_SECONDS
_MAX_COUNT = 1_000_000  # answers of one connection in a period; more, nobody has sent
_MAX_FIELDS = 50_000  # of a period: beyond, it is not read but begun anew
# One hash per period counts "connection good" and "connection bad"; Redis' clock says which period it is. A field or a
# key that holds anything else than such counts begins anew by itself. Returns the period, and the fields that did.
_COUNT = """
local period = math.floor(redis.call('TIME')[1] / tonumber(ARGV[1]))
local key = KEYS[1] .. period
local reset = {}
for i = 4, #ARGV, 2 do
  local count = redis.pcall('HINCRBY', key, ARGV[i], ARGV[i + 1])
  if type(count) == 'table' and string.find(count.err, 'WRONGTYPE', 1, true) then
    redis.call('UNLINK', key)
    reset[#reset + 1] = ''
    redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1])
  elseif type(count) == 'table' or count < tonumber(ARGV[i + 1]) or count > tonumber(ARGV[3]) then
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
    reset[#reset + 1] = ARGV[i]
  end
end
redis.call('EXPIRE', key, tonumber(ARGV[1]) * (tonumber(ARGV[2]) + 1))
return {period, reset}
"""
# What a period holds: its fields, or nothing and 1 where it was no count of ours and is removed.
_FIND = """
local found = {}
for i, key in ipairs(KEYS) do
  local fields = redis.pcall('HLEN', key)
  if type(fields) == 'table' and not string.find(fields.err, 'WRONGTYPE', 1, true) then
    fields = redis.call('HLEN', key)
  end
  if type(fields) == 'table' or fields > tonumber(ARGV[1]) then
    redis.call('UNLINK', key)
    found[i] = {1, {}}
  else
    found[i] = {0, redis.call('HGETALL', key)}
  end
end
return found
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
        self._find = redis.register_script(_FIND)
        self._evaluated_at = 0.0

    def count(self, results: Iterable[Result]) -> OutageDecision:
        """Count what cancels were answered among these results, and say who is down now.

        A read says nothing of it: it is answered from Trackstar's own copy.
        """
        counts = Counter(
            f"{result.claim.connection_id} {'bad' if failed else 'good'}"
            for result in results
            for row in result.attempts
            if row.kind == "cancel" and row.reason != WORKER_LOST and (failed := is_failure(row.status)) is not None
        )
        if not counts:
            return OutageDecision()
        words = [word for pair in counts.items() for word in pair]
        period, reset = self._count(keys=[_KEY], args=[_PERIOD_SECONDS, _PERIODS, _MAX_COUNT, *words])
        if reset:
            _log_reset(f"{_KEY}{period}", reset)
        failing = any(name.endswith(" bad") for name in counts)
        return self._evaluate(period) if failing else OutageDecision()

    def reset(self, connection_ids: Collection[str] | None = None) -> None:
        """Begin anew with these connections (or all): they answer again, whatever their last half minute was."""
        keys = self._keys(self._redis.time()[0] // _PERIOD_SECONDS)
        if connection_ids is None:
            self._redis.unlink(*keys)
            return
        self._tallies(keys)  # removes what is no count of ours
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hdel(key, *(f"{name} bad" for name in connection_ids))
        pipeline.execute()

    def _evaluate(self, period: int) -> OutageDecision:
        if time.monotonic() - self._evaluated_at < MIN_SECONDS:
            return OutageDecision()
        self._evaluated_at = time.monotonic()
        tallies = self._tallies(self._keys(period))
        return OutageDecision(
            frozenset(name for name, tally in tallies.items() if is_down(tally)), all_of_them=all_are_down(tallies)
        )

    def _reset(self, key: str, fields: Sequence[bytes], *, removed: int) -> None:
        if fields:
            self._redis.hdel(key, *fields)
        if fields or removed:
            _log_reset(key, fields)

    @staticmethod
    def _keys(period: int) -> list[str]:
        return [f"{_KEY}{number}" for number in range(period - _PERIODS + 1, period + 1)]

    def _tallies(self, keys: Sequence[str]) -> dict[str, Tally]:
        counts: Counter[tuple[str, str]] = Counter()
        for key, (removed, words) in zip(keys, self._find(keys=keys, args=[_MAX_FIELDS]), strict=True):
            found = dict(zip(words[::2], words[1::2], strict=True))
            read = {field: read_count(field, found[field], _MAX_COUNT) for field in found}
            counts.update({each[:2]: each[2] for each in read.values() if each})
            self._reset(key, [field for field, each in read.items() if not each], removed=removed)
        return {name: Tally(good=counts[name, "good"], bad=counts[name, "bad"]) for name, _ in counts}


def _log_reset(key: str, fields: Collection[bytes]) -> None:
    names: list[str | None] = [*sorted({name for field in fields if (name := name_of_count(field))})]
    for name in names[:_MAX_TOLD] or [None]:
        log.warning("tally.reset", key=key, connection_id=name)


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
            results, summary = self._waiting.popleft()
            try:
                self._begin_anew(summary)
            except RedisError:
                self._waiting.appendleft((results, summary))  # else what was before the hold would begin it again
                raise
            self._hold_who_is_down(results)
        return NEVER

    def _begin_anew(self, summary: CommitSummary) -> None:
        if summary.trackstar_resumed:
            self._tally.reset()
        elif summary.resumed:
            self._tally.reset(sorted(summary.resumed))

    def _hold_who_is_down(self, results: list[Result]) -> None:
        decision = self._tally.count(results)
        if not decision.connections and not decision.all_of_them:
            return
        with self._ledger.begin() as db:
            held = holds.hold_all(db) if decision.all_of_them else holds.hold(db, decision.connections, holds.OUTAGE)
        self._on_held(held)
