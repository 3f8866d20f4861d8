"""The Celery list as a second inbox: whatever a producer puts there is moved into the stream, atomically.

Celery itself pops a message and only then notes that it has it, so a worker that is killed between the two, or a Redis
that is full, would lose a good job. Here a message is on the list, or in the stream. Knows Redis; what a message may
be, the intake judges, as it judges every job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import RedisError

from worker.runtime.loop import Loop
from worker.streams import CELERY_FIELD, CELERY_LIST, INBOX, UNACKED_FIELD

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

# XADD comes first: a Redis that is full refuses it, and then nothing has been taken off.
_MOVE = """
local inbox, unacked, index = KEYS[1], KEYS[2], KEYS[3]
local limit, field, unacked_field, list_name, age = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local moved = 0
for i = 4, #KEYS do
  while moved < limit do
    local message = redis.call('LINDEX', KEYS[i], -1)
    if not message then break end
    redis.call('XADD', inbox, '*', field, message)
    redis.call('RPOP', KEYS[i])
    moved = moved + 1
  end
end
local before = tonumber(redis.call('TIME')[1]) - age
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', before, 'LIMIT', 0, limit)) do
  local kept = redis.call('HGET', unacked, tag)
  local read, parts = pcall(cjson.decode, kept or '')
  if read and type(parts) == 'table' and parts[3] == list_name then
    redis.call('XADD', inbox, '*', unacked_field, kept)
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
    moved = moved + 1
  end
end
return moved
"""


class CeleryInbox:
    """One thread that moves the messages of Celery producers into the inbox."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._move = redis.register_script(_MOVE)
        self.loop = Loop("celery_inbox", self._tick, expected=(RedisError,))

    def stop(self) -> None:
        self.loop.stop(BLOCK_SECONDS + 5)

    def _tick(self) -> float:
        self._wait()
        while self.move() >= BATCH and self.loop.running:
            pass
        return 0.0

    def _wait(self) -> bool:
        """Wait for a message, a short while; return whether one arrived."""
        return self._redis.blmove(CELERY_LIST, ARRIVED, BLOCK_SECONDS, src="RIGHT", dest="LEFT") is not None

    def move(self) -> int:
        """Move one batch into the stream; return how many messages that were."""
        keys = [INBOX, UNACKED, UNACKED_INDEX, ARRIVED, CELERY_LIST, *PRIORITY_LISTS]
        return int(self._move(keys=keys, args=[BATCH, CELERY_FIELD, UNACKED_FIELD, CELERY_LIST, UNACKED_SECONDS]))
