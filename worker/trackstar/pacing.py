"""Send slots, shared by all workers: the arithmetic of `cancellation/pace`, run inside Redis by Redis' clock.

One round trip for any number of connections. If Redis is emptied the pace begins anew: at most what was reserved for
the next tenth of a second is reserved twice.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis import RedisError, ResponseError

from worker.cancellation.answer import Answer, NoReply
from worker.cancellation.pace import LOOKAHEAD_SECONDS, TARGET_UTILISATION, Reservation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

log = structlog.get_logger()

# Per connection a hash: `next`, the first free moment in microseconds; `limit`, the server's own word where it is
# lower than ours. It is forgotten when nothing was sent for ten minutes.
_KEPT_MS = 600_000
MIN_PAUSE_SECONDS = 1.0  # after a 429 without a `retry-after`: the window of the documented limit

_RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local utilisation, ahead, granted = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local rate, wanted = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local state = redis.call('HMGET', key, 'next', 'limit')
  if state[2] and tonumber(state[2]) < rate then rate = tonumber(state[2]) end
  local step = math.ceil(1000000 / (rate * utilisation))
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

# Only if `next` is still where this reservation left it: moving it back under a later reservation would issue the same
# slots twice.
_RETURN = """
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


_MAX_RENEWALS = 100  # beyond that the machine, not the pace, is what is wrong
# A read that would have to wait longer is put off in the ledger instead of holding a thread.
READ_WAIT_SECONDS = 1.0


class SendSlot(msgspec.Struct, frozen=True):
    """The moment at which one request may be sent, by this process's monotonic clock, and its connection's rate."""

    send_at: float
    rate: float
    saturated: bool


class SlotReservation(Reservation, frozen=True):
    """Send slots by this process's monotonic clock."""

    end_token: bytes = b""  # what Redis knows their end by
    saturated: bool = False  # others stand before or behind them: this connection sends all that it may

    def slot(self, number: int) -> SendSlot:
        return SendSlot(self.send_at(number), 1 / (self.interval * TARGET_UTILISATION), self.saturated)


# A request that is this late says nothing of a server's window: just below what TARGET_UTILISATION leaves of a second.
LATE_SECONDS = 0.015


class Pacing:
    """The pace of one kind of request, writes or reads, of all connections."""

    def __init__(self, redis: Redis, kind: str, lookahead: float = LOOKAHEAD_SECONDS) -> None:
        self._redis: Any = redis
        self._kind = kind
        self._ahead = round(lookahead * 1_000_000)
        self._reserve = redis.register_script(_RESERVE)
        self._return = redis.register_script(_RETURN)
        self._pause = redis.register_script(_PAUSE)

    def key(self, connection_id: str) -> str:
        """Return where the pace of a connection is kept."""
        return self._key(connection_id)

    def _key(self, connection_id: str) -> str:
        return f"cancellations:pace:{self._kind}:{connection_id}"

    def ahead(self, connection_id: str) -> float | None:
        """Return the seconds to the next free send slot (below zero: it has passed); None where nobody can tell."""
        seconds, micros = self._redis.time()
        try:
            free = float(self._redis.hget(self._key(connection_id), "next") or 0)
        except (ResponseError, ValueError):  # a key of another type, or no number
            return None
        return free / 1e6 - seconds - micros / 1e6 if free < float("inf") else None

    def reserve(self, wants: Mapping[str, tuple[float, int]]) -> dict[str, SlotReservation]:
        """Reserve up to as many slots for each connection as it wants: (requests per second, how many) by id."""
        if not wants:
            return {}
        words = [word for rate, wanted in wants.values() for word in (rate, wanted)]
        asked = time.monotonic()
        answer = self._reserve(
            keys=[self._key(name) for name in wants], args=[TARGET_UTILISATION, self._ahead, *words, _KEPT_MS]
        )
        # Redis looked at its clock somewhere between the two; the middle is right to half a round trip.
        now = (asked + time.monotonic()) / 2
        return {
            name: SlotReservation(now + first / 1e6, step / 1e6, count, end_token, first > 0 or count < wanted)
            for (name, (_, wanted)), (count, first, step, end_token) in zip(wants.items(), answer, strict=True)
        }

    def return_unused(self, connection_id: str, slots: SlotReservation, unused: int) -> None:
        """Return the last slots of a reservation that nobody needed."""
        if unused:
            self._return(keys=[self._key(connection_id)], args=[slots.end_token, round(unused * slots.interval * 1e6)])

    def pause(self, connection_id: str, seconds: float) -> None:
        """Reserve nothing for so long: the server has said that this connection is too fast."""
        self._pause(keys=[self._key(connection_id)], args=[seconds, _KEPT_MS])

    def cap_rate(self, connection_id: str, limit: float) -> None:
        """Keep to the server's own limit where it is lower than ours, until nothing was sent for ten minutes."""
        self._redis.hset(self._key(connection_id), "limit", limit)
        self._redis.pexpire(self._key(connection_id), _KEPT_MS)


class Pace:
    """What an attempt needs of it: to wait for its turn to read, and to pass on what the server said of the pace."""

    def __init__(self, redis: Redis, writes_per_second: float, reads_per_second: float) -> None:
        self.writes = Pacing(redis, "w")
        self._reads = Pacing(redis, "r", READ_WAIT_SECONDS)
        self._default = {"cancel": writes_per_second, "read": reads_per_second}
        self._observed: dict[tuple[str, str], float] = {}

    def wait_to_write(self, connection_id: str, slot: SendSlot) -> None:
        """Wait for the moment of a send slot. A request that is late for it, on its way or to a thread, takes another.

        Only where the connection sends all that it may: elsewhere a server's window has room for a straggler.
        """
        send_at, reserved = slot.send_at, True
        for _ in range(_MAX_RENEWALS):
            if (early := send_at - time.monotonic()) > 0:
                time.sleep(early)
            if reserved and (not slot.saturated or time.monotonic() - send_at < LATE_SECONDS):
                return
            send_at, reserved = self._renewed(connection_id, slot.rate)

    def _renewed(self, connection_id: str, rate: float) -> tuple[float, bool]:
        """Return the moment of another slot; or, with False, when to ask again: none is reserved so far ahead."""
        try:
            slots = self.writes.reserve({connection_id: (rate, 1)})[connection_id]
        except RedisError as error:
            log.warning("pace.redis_away", error=type(error).__name__)
            return time.monotonic(), True
        if slots.count:
            return slots.first, True
        return max(slots.first - LOOKAHEAD_SECONDS, time.monotonic() + LATE_SECONDS), False

    def wait_to_read(self, connection_id: str) -> bool:
        """Wait for a slot to read; False when none is free soon. Without Redis nothing is known, so it may read."""
        try:
            slots = self._reads.reserve({connection_id: (self._default["read"], 1)})[connection_id]
        except RedisError as error:
            log.warning("pace.redis_away", error=type(error).__name__)
            return True
        if slots.count:
            time.sleep(max(0.0, slots.first - time.monotonic()))
        return slots.count > 0

    def observe(self, kind: str, connection_id: str, answer: Answer) -> None:
        """Obey the server: a 429 pauses this connection for all workers, a limit below ours is kept."""
        if isinstance(answer, NoReply):
            return
        pacing = self.writes if kind == "cancel" else self._reads
        try:
            if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                pacing.pause(connection_id, max(answer.retry_after or 0.0, MIN_PAUSE_SECONDS))
            elif answer.rate_limit is not None and self._changes_limit(kind, connection_id, answer.rate_limit):
                pacing.cap_rate(connection_id, answer.rate_limit)
                self._observed[kind, connection_id] = answer.rate_limit
        except RedisError as error:
            log.warning("pace.redis_away", error=type(error).__name__)

    def _changes_limit(self, kind: str, connection_id: str, limit: float) -> bool:
        known = self._observed.get((kind, connection_id), self._default[kind])
        return limit != known and min(limit, known) < self._default[kind]
