"""Counts how recent requests ended, for all workers together, and says who counts as down.

Knows Redis and attempt rows; when a connection is down, `cancellation/breaker` decides.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis import RedisError

from worker.cancellation.breaker import WINDOW_SECONDS, Tally, all_are_down, is_down

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis import Redis

    from worker.ledger.recording import AttemptRow, Record

log = structlog.get_logger()

_PERIOD_SECONDS = 10
_PERIODS = WINDOW_SECONDS // _PERIOD_SECONDS
_LEAST_SECONDS = 1.0  # between two judgements of one worker

# One hash per period counts "connection good" and "connection bad"; Redis' clock says which period it is.
_COUNT = """
local period = math.floor(redis.call('TIME')[1] / tonumber(ARGV[1]))
local key = KEYS[1] .. period
for i = 3, #ARGV, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', key, tonumber(ARGV[1]) * (tonumber(ARGV[2]) + 1))
return period
"""
_KEY = "cancellations:answers:"


class Judgement(msgspec.Struct, frozen=True):
    """Who counts as down."""

    connections: frozenset[str] = frozenset()
    all_of_them: bool = False


class Breaker:
    """The tally that all workers share."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._count = redis.register_script(_COUNT)
        self._judged_at = 0.0

    def note(self, records: Iterable[Record]) -> Judgement:
        """Count the answers of these records. Without Redis nothing is counted: each job's own backoff goes on."""
        counts = Counter(
            f"{record.claim.connection_id} {'bad' if failed else 'good'}"
            for record in records
            for row in record.attempts
            if (failed := is_failure(row)) is not None
        )
        if not counts:
            return Judgement()
        try:
            words = [word for pair in counts.items() for word in pair]
            period = self._count(keys=[_KEY], args=[_PERIOD_SECONDS, _PERIODS, *words])
            failing = any(name.endswith(" bad") for name in counts)
            return self._judge(period) if failing else Judgement()
        except RedisError as error:
            log.warning("breaker.redis_away", error=type(error).__name__)
            return Judgement()

    def forget(self, connection_ids: Sequence[str] | None = None) -> None:
        """Begin anew with these connections (or all): they answer again, whatever their last half minute was."""
        try:
            for key in self._redis.scan_iter(match=f"{_KEY}*"):
                if connection_ids is None:
                    self._redis.delete(key)
                else:
                    self._redis.hdel(key, *(f"{name} bad" for name in connection_ids))
        except RedisError as error:
            log.warning("breaker.redis_away", error=type(error).__name__)

    def _judge(self, period: int) -> Judgement:
        if time.monotonic() - self._judged_at < _LEAST_SECONDS:
            return Judgement()
        self._judged_at = time.monotonic()
        tallies = self._tallies(period)
        return Judgement(
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


_NEVER_SENT = {"worker_lost", "read_paced"}


def is_failure(row: AttemptRow) -> bool | None:
    """Whether a request shows that its connection is down; None where it says nothing of that."""
    if row.status is None:
        return None if row.reason in _NEVER_SENT else True
    if row.status in {401, 429}:
        return None
    return row.status >= 500 and row.status != 501  # noqa: PLR2004 - 501 is an answer, and a final one
