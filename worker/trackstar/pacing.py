"""Permits to send, shared by all workers: the arithmetic of `cancellation/pace`, run inside Redis by Redis' clock.

One round trip for any number of connections. If Redis is emptied the pace begins anew: at most what was given for the
next tenth of a second is given twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from worker.cancellation.pace import LOOKAHEAD_SECONDS, SHARE, Grant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

# Per connection a hash: `next`, the first free moment in microseconds; `limit`, the server's own word where it is
# lower than ours. It is forgotten when nothing was sent for ten minutes.
_KEPT_MS = 600_000

_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local share, ahead, granted = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local rate, wanted = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local state = redis.call('HMGET', key, 'next', 'limit')
  if state[2] and tonumber(state[2]) < rate then rate = tonumber(state[2]) end
  local step = math.ceil(1000000 / (rate * share))
  local first = math.max(tonumber(state[1] or 0), now)
  local count = 0
  if first <= now + ahead then count = math.min(wanted, math.floor((now + ahead - first) / step) + 1) end
  if count > 0 then
    redis.call('HSET', key, 'next', string.format('%.0f', first + count * step))
    redis.call('PEXPIRE', key, tonumber(ARGV[#ARGV]))
  end
  granted[i] = {count, first - now, step, string.format('%.0f', first + count * step)}
end
return granted
"""

# Only while nobody has been given later permits: theirs would then stand on moments that are free again.
_GIVE_BACK = """
if redis.call('HGET', KEYS[1], 'next') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'next', string.format('%.0f', ARGV[1] - ARGV[2]))
end
"""

_PAUSE = """
local time = redis.call('TIME')
local free = time[1] * 1000000 + time[2] + ARGV[1] * 1000000
if tonumber(redis.call('HGET', KEYS[1], 'next') or 0) < free then
  redis.call('HSET', KEYS[1], 'next', string.format('%.0f', free))
end
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]) + ARGV[1] * 1000)
"""


class Permits(Grant, frozen=True):
    """Permits by this process's monotonic clock, and what Redis knows them by."""

    mark: bytes = b""


class Pacing:
    """The pace of one kind of request, writes or reads, of all connections."""

    def __init__(self, redis: Redis, kind: str, lookahead: float = LOOKAHEAD_SECONDS) -> None:
        self._redis: Any = redis
        self._kind = kind
        self._ahead = round(lookahead * 1_000_000)
        self._reserve = redis.register_script(_RESERVE)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._pause = redis.register_script(_PAUSE)

    def _key(self, connection_id: str) -> str:
        return f"cancellations:pace:{self._kind}:{connection_id}"

    def reserve(self, wants: Mapping[str, tuple[float, int]]) -> dict[str, Permits]:
        """Give each connection up to as many permits as it wants: (requests per second, how many) by id."""
        if not wants:
            return {}
        words = [word for rate, wanted in wants.values() for word in (rate, wanted)]
        asked = time.monotonic()
        answer = self._reserve(keys=[self._key(name) for name in wants], args=[SHARE, self._ahead, *words, _KEPT_MS])
        # Redis looked at its clock somewhere between the two; the middle is right to half a round trip.
        now = (asked + time.monotonic()) / 2
        return {
            name: Permits(now + first / 1e6, step / 1e6, count, mark)
            for name, (count, first, step, mark) in zip(wants, answer, strict=True)
        }

    def give_back(self, connection_id: str, permits: Permits, unused: int) -> None:
        """Return the last permits of a reservation that nobody needed."""
        if unused:
            self._give_back(
                keys=[self._key(connection_id)], args=[permits.mark, round(unused * permits.interval * 1e6)]
            )

    def pause(self, connection_id: str, seconds: float) -> None:
        """Give nobody a permit for so long: the server has said that this connection is too fast."""
        self._pause(keys=[self._key(connection_id)], args=[seconds, _KEPT_MS])

    def lower(self, connection_id: str, limit: float) -> None:
        """Keep to the server's own limit where it is lower than ours, until nothing was sent for ten minutes."""
        self._redis.hset(self._key(connection_id), "limit", limit)
        self._redis.pexpire(self._key(connection_id), _KEPT_MS)
