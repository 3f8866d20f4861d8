"""The Celery list as a second inbox: whatever a producer puts there is moved into the stream, atomically.

Celery itself pops a message and only then notes that it has it, so a worker that is killed between the two, or a Redis
that is full, would lose a good job. Here a message is on the list, or in the stream. Knows Redis; what a message may
be, the intake judges, as it judges every job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import RedisError

from worker.inputs.entries import CELERY, MAX_BATCH_BYTES, MAX_ENTRY_BYTES
from worker.inputs.entries import UNACKED as UNACKED_FIELD
from worker.runtime.loop import Loop
from worker.runtime.refusals import Refusals
from worker.streams import CELERY_LIST, INBOX, wait_unread
from worker.telemetry.health import Vitals

if TYPE_CHECKING:
    from redis import Redis

BATCH = 500
BLOCK_SECONDS = 2  # an idle list is asked this often; a new message is moved at once
UNACKED_SECONDS = 60  # a Celery worker that took a message so long ago and did not acknowledge it is dead

# Messages that were waited for stand here for an instant, and wait here for the next worker if this one dies then.
ARRIVED = f"{CELERY_LIST}:arrived"
# kombu keeps a list for each step of priority, and what was taken and not acknowledged in a hash with an index.
PRIORITY_LISTS = tuple(f"{CELERY_LIST}\x06\x16{step}" for step in (3, 6, 9))
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"

# XADD comes first: a Redis that is full refuses it, and then nothing has been taken off. What is too long is moved
# too: the intake's script shortens it. Nobody decodes it to see whose it is: the name of its list is its end.
_MOVE = """
local inbox, unacked, index = KEYS[1], KEYS[2], KEYS[3]
local limit, most_bytes, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local field, unacked_field, list_name, age = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local moved, bytes = 0, 0

local function add(name, message)
  redis.call('XADD', inbox, '*', name, message)
  moved, bytes = moved + 1, bytes + #message
end
local function full() return moved >= limit or bytes >= most_bytes end
local function is_ours(message)
  if #message > longest then return string.match(string.sub(message, -400), '"' .. list_name .. '"%s*%]%s*$') end
  local read, parts = pcall(cjson.decode, message)
  return read and type(parts) == 'table' and parts[3] == list_name
end

for i = 4, #KEYS do
  while not full() do
    local message = redis.call('LINDEX', KEYS[i], -1)
    if not message then break end
    add(field, message)
    redis.call('RPOP', KEYS[i])
  end
end
local before = tonumber(redis.call('TIME')[1]) - age
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', before, 'LIMIT', 0, limit)) do
  local message = redis.call('HGET', unacked, tag)
  if message and not full() and is_ours(message) then
    add(unacked_field, message)
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
  end
end
return {moved, full() and 1 or 0}
"""

KEYS = {INBOX: "stream", UNACKED: "hash", UNACKED_INDEX: "zset"} | dict.fromkeys(
    (ARRIVED, CELERY_LIST, *PRIORITY_LISTS), "list"
)


class CeleryInbox:
    """One thread that moves the messages of Celery producers into the inbox."""

    def __init__(self, redis: Redis, vitals: Vitals | None = None) -> None:
        self._redis: Any = redis
        self._move = redis.register_script(_MOVE)
        self._refusals = Refusals(redis, "The Celery list", KEYS, vitals or Vitals())
        self._full = False  # whether the last batch left something behind
        self.loop = Loop("celery_inbox", self._tick, expected=(RedisError,))

    def stop(self) -> None:
        self.loop.stop(BLOCK_SECONDS + 5)

    def _tick(self) -> float:
        try:
            if not self._full:
                self._wait()
            self.move()
        except RedisError as error:
            self._refusals.note(error)
            raise
        self._refusals.over()
        return 0.0

    def _wait(self) -> None:
        """Wait for a message, a short while."""
        wait_unread(self._redis, "BLMOVE", CELERY_LIST, ARRIVED, "RIGHT", "LEFT", BLOCK_SECONDS)

    def move(self) -> int:
        """Move one batch into the stream; return how many messages that were."""
        sizes = (BATCH, MAX_BATCH_BYTES, MAX_ENTRY_BYTES)
        names = (CELERY, UNACKED_FIELD, CELERY_LIST, UNACKED_SECONDS)
        moved, full = self._move(keys=list(KEYS), args=[*sizes, *names])
        self._full = bool(full)
        return int(moved)
