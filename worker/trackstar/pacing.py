"""Send slots, shared by all workers: the arithmetic of `cancellation/pace`, run inside Redis by Redis' clock.

One round trip for any number of connections. If Redis is emptied the pace begins anew: at most what was reserved for
the next tenth of a second is reserved twice.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from redis import RedisError, ResponseError

from worker.cancellation.answer import Answer, NoReply
from worker.cancellation.pace import (
    LONGEST_PAUSE_SECONDS,
    LOOKAHEAD_SECONDS,
    TARGET_UTILISATION,
    Reservation,
    pause_of_reads,
    pause_of_writes,
)
from worker.inputs.headers import MAX_RATE, MIN_RATE, LimitProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis import Redis

    from worker.inputs.headers import RateLimit, RetryAfter

log = structlog.get_logger()

# Per connection a hash: `next`, the first free moment in microseconds; `limit`, the server's own word, which counts
# where it is lower than the rate that is asked for. It is forgotten when nothing was sent for ten minutes.
_KEPT_MS = 600_000

# What stands in Redis is outside of this process: `read` believes nothing but a number within its limits. A key that
# holds anything else (another type, a text, a moment so far ahead that nobody wrote it by this clock) begins anew by
# itself, and its neighbours never hear of it.
_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function number(text, least, most)
  local value = text and tonumber(text)
  return value and value >= least and value <= most and value
end
local function read(key, furthest)
  local state = redis.pcall('HMGET', key, 'next', 'limit')
  if state.err and not string.find(state.err, 'WRONGTYPE', 1, true) then state = redis.call('HMGET', key, 'next') end
  local free = not state.err and number(state[1], 0, now + furthest)
  local limit = not state.err and number(state[2], tonumber(ARGV[1]), tonumber(ARGV[2]))
  if state.err or (state[1] and not free) or (state[2] and not limit) then
    redis.call('UNLINK', key)
    return 0, false, 1
  end
  return free or 0, limit, 0
end
"""

_RESERVE = (
    _READ
    + """
local utilisation, ahead, longest, kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local granted = {}
for i, key in ipairs(KEYS) do
  local rate, wanted = tonumber(ARGV[2 * i + 5]), tonumber(ARGV[2 * i + 6])
  local step = math.ceil(1000000 / (rate * utilisation))
  local free, limit, reset = read(key, math.max(longest, ahead + step))
  if limit and limit < rate then step = math.ceil(1000000 / (limit * utilisation)) end
  local first = math.max(free, now)
  local count = 0
  if first <= now + ahead then count = math.min(wanted, math.floor((now + ahead - first) / step) + 1) end
  if count > 0 then
    redis.call('HSET', key, 'next', string.format('%.0f', first + count * step))
    redis.call('PEXPIRE', key, kept)
  end
  granted[i] = {count, first - now, step, string.format('%.0f', first + count * step), reset}
end
return granted
"""
)

# Only if `next` is still where this reservation left it: moving it back under a later reservation would issue the same
# slots twice. A key of another type holds no such moment.
_RETURN = """
if redis.pcall('HGET', KEYS[1], 'next') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'next', string.format('%.0f', ARGV[1] - ARGV[2]))
end
"""

_PAUSE = (
    _READ
    + """
local free = now + tonumber(ARGV[3])
local found, _, reset = read(KEYS[1], math.huge)
if found < free then redis.call('HSET', KEYS[1], 'next', string.format('%.0f', free)) end
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[4]))
return reset
"""
)

_CAP = (
    _READ
    + """
local _, _, reset = read(KEYS[1], math.huge)
redis.call('HSET', KEYS[1], 'limit', ARGV[3])
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[4]))
return reset
"""
)
_LIMITS = (MIN_RATE, MAX_RATE)

# A read that would have to wait longer is put off in the ledger instead of holding a thread.
READ_WAIT_SECONDS = 1.0
# Longer waits are cut short when this process ends; shorter ones are slept to their end.
BRIEF_SECONDS = 0.25
CAP_AGAIN_SECONDS = 60.0  # a limit is written again so often: a key that is idle, or a Redis that is emptied, loses it


class SendSlot(msgspec.Struct, frozen=True):
    """The moment at which one request may be sent, by this process's monotonic clock, and its connection's rate."""

    send_at: float
    rate: float
    saturated: bool


class SlotReservation(Reservation, frozen=True):
    """Send slots by this process's monotonic clock."""

    end_token: bytes = b""  # `next` as this reservation has left it, by which unused slots can be returned
    saturated: bool = False  # its connection has more to send than its rate allows

    def slot(self, number: int) -> SendSlot:
        return SendSlot(self.send_at(number), 1 / (self.interval * TARGET_UTILISATION), self.saturated)


# A request may leave so late and still fit the server's second: sending at TARGET_UTILISATION leaves 20 ms of it free.
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
        self._cap = redis.register_script(_CAP)

    def key(self, connection_id: str) -> str:
        """Return where the pace of a connection is kept."""
        return f"cancellations:pace:{self._kind}:{connection_id}"

    def ahead(self, connection_id: str) -> float | None:
        """Return the seconds to the next free send slot (below zero: it has passed); None where nobody can tell."""
        seconds, micros = self._redis.time()
        try:
            free = float(self._redis.hget(self.key(connection_id), "next") or 0)
        except (ResponseError, ValueError):  # a key of another type, or no number
            return None
        return free / 1e6 - seconds - micros / 1e6 if free < float("inf") else None

    def limit(self, connection_id: str) -> float | None:
        """Return the server's own limit (requests per second), where it has named one lately."""
        try:
            found = float(self._redis.hget(self.key(connection_id), "limit") or 0)
        except (ResponseError, ValueError):  # a key of another type, or no number
            return None
        return found if MIN_RATE <= found <= MAX_RATE else None

    def reserve(self, wants: Mapping[str, tuple[float, int]]) -> dict[str, SlotReservation]:
        """Reserve up to as many slots for each connection as it wants: (requests per second, how many) by id."""
        if not wants:
            return {}
        words = [word for rate, wanted in wants.values() for word in (rate, wanted)]
        fixed = (*_LIMITS, TARGET_UTILISATION, self._ahead, round(LONGEST_PAUSE_SECONDS * 1_000_000), _KEPT_MS)
        asked = time.monotonic()
        answer = self._reserve(keys=[self.key(name) for name in wants], args=[*fixed, *words])
        # Redis looked at its clock somewhere between the two; the middle is right to half a round trip.
        now = (asked + time.monotonic()) / 2
        reserved = {}
        for (name, (_, wanted)), (count, first, step, end, reset) in zip(wants.items(), answer, strict=True):
            reserved[name] = SlotReservation(now + first / 1e6, step / 1e6, count, end, first > 0 or count < wanted)
            self._log_reset(name, reset)
        return reserved

    def return_unused(self, connection_id: str, slots: SlotReservation, unused: int) -> None:
        """Return the last slots of a reservation that nobody needed."""
        if unused:
            self._return(keys=[self.key(connection_id)], args=[slots.end_token, round(unused * slots.interval * 1e6)])

    def pause(self, connection_id: str, seconds: float) -> None:
        """Reserve nothing for so long, LONGEST_PAUSE_SECONDS at most: the server has said that it is too fast."""
        ends = [round(seconds * 1_000_000), _KEPT_MS + round(seconds * 1000)]
        self._log_reset(connection_id, self._pause(keys=[self.key(connection_id)], args=[*_LIMITS, *ends]))

    def cap_rate(self, connection_id: str, limit: RateLimit) -> None:
        """Keep to the server's own limit where it is lower than ours, until nothing was sent for ten minutes."""
        self._log_reset(connection_id, self._cap(keys=[self.key(connection_id)], args=[*_LIMITS, limit, _KEPT_MS]))

    def _log_reset(self, connection_id: str, reset: int) -> None:
        if reset:
            log.warning("pace.reset", connection_id=connection_id, key=self.key(connection_id))


class Pace:
    """What an attempt needs of it: to wait for its turn, and to pass on what the server said of the pace."""

    def __init__(
        self,
        redis: Redis,
        writes_per_second: float,
        reads_per_second: float,
        used: Callable[[str], None] = lambda _kind: None,
    ) -> None:
        self.used = used  # is told of each slot that this process takes for itself: write or read
        self.writes = Pacing(redis, "w")
        self._reads = Pacing(redis, "r", READ_WAIT_SECONDS)
        self._default = {"cancel": writes_per_second, "read": reads_per_second}
        self._observed: dict[tuple[str, str], tuple[float, float]] = {}  # what Redis was told last, and when
        self._ignored: set[tuple[str, str, LimitProblem]] = set()
        self._ending = threading.Event()

    def wait_to_write(self, connection_id: str, slot: SendSlot, until: float) -> bool:
        """Wait for the moment of a send slot; False where none comes until then (monotonic), or this process ends.

        A request that is late for its slot, on its way or to a thread, takes another. Only where the connection sends
        all that it may: elsewhere a server's window has room for a straggler.
        """
        send_at, reserved = slot.send_at, True
        while send_at <= until and self._sleep_until(send_at):
            if reserved and (not slot.saturated or time.monotonic() - send_at < LATE_SECONDS):
                return True
            send_at, reserved = self._renewed(connection_id, slot.rate)
        return False

    def end_waiting(self) -> None:
        """Let nobody wait any more for longer than a moment: this process ends."""
        self._ending.set()

    def _sleep_until(self, moment: float) -> bool:
        """Sleep; False where it was, or would be, cut short by the end of this process."""
        early = moment - time.monotonic()
        if early > BRIEF_SECONDS:
            return not self._ending.wait(early)
        time.sleep(max(0.0, early))
        return True

    def _renewed(self, connection_id: str, rate: float) -> tuple[float, bool]:
        """Return the moment of another slot; or, with False, when to ask again: none is reserved so far ahead."""
        try:
            slots = self.writes.reserve({connection_id: (rate, 1)})[connection_id]
        except RedisError as error:
            log.warning("pace.redis_away", error=type(error).__name__)
            return time.monotonic(), True
        if slots.count:
            self.used("write")
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
            self.used("read")
            time.sleep(max(0.0, slots.first - time.monotonic()))
        return slots.count > 0

    def observe(self, kind: str, connection_id: str, answer: Answer) -> None:
        """Obey the server: a 429 pauses this connection for all workers, a limit below ours is kept."""
        if isinstance(answer, NoReply):
            return
        try:
            if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                self._obey(kind, connection_id, answer.retry_after)
            elif isinstance(answer.rate_limit, LimitProblem):
                self._ignore(kind, connection_id, answer.rate_limit)
            elif answer.rate_limit is not None:
                self._cap_rate(kind, connection_id, answer.rate_limit)
        except RedisError as error:
            log.warning("pace.redis_away", error=type(error).__name__)

    def _of(self, kind: str) -> Pacing:
        return self.writes if kind == "cancel" else self._reads

    def _obey(self, kind: str, connection_id: str, retry_after: RetryAfter | None) -> None:
        pause = pause_of_writes if kind == "cancel" else pause_of_reads
        self._of(kind).pause(connection_id, pause(retry_after))

    def _ignore(self, kind: str, connection_id: str, problem: LimitProblem) -> None:
        # Told once for each connection: it comes with every answer.
        if (kind, connection_id, problem) not in self._ignored:
            self._ignored.add((kind, connection_id, problem))
            log.warning("pace.limit_ignored", connection_id=connection_id, kind=kind, problem=problem)

    def _cap_rate(self, kind: str, connection_id: str, limit: RateLimit) -> None:
        """Tell Redis a limit that it was not told lately: it comes with every answer, and Redis may forget it."""
        known, told_at = self._observed.get((kind, connection_id), (None, 0.0))
        if limit != known or time.monotonic() - told_at > CAP_AGAIN_SECONDS:
            self._of(kind).cap_rate(connection_id, limit)
            self._observed[kind, connection_id] = limit, time.monotonic()
