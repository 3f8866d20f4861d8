"""What Redis says of the inboxes, and what workers say of themselves there: one script, once a poll of each worker.

It writes as a worker must be able to write, so a Redis that is full, a replica, or a right that is missing is noticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from worker.streams import INBOX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

# A hash: by worker, the second at which it said so, and its problems as a JSON list. Who says nothing for KEPT_SECONDS
# is gone.
VITALS = "cancellations:vitals"
KEPT_SECONDS = 60

_LOOK = """
local time = redis.call('TIME')
local now = tonumber(time[1])
local told = redis.call('HGETALL', KEYS[1])
for i = 1, #told, 2 do
  if now - (tonumber(string.match(told[i + 1], '^%d+')) or 0) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], told[i])
  end
end
redis.call('HSET', KEYS[1], ARGV[1], time[1] .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], 2000 * tonumber(ARGV[3]))
if ARGV[1] == '' then redis.call('HDEL', KEYS[1], '') end
local looks = {}
for i = 2, #KEYS do
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  local first, last = '', '0-0'
  if kind == 'stream' then
    local entries = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)
    if entries[1] then first = entries[1][1] end
    local about = redis.call('XINFO', 'STREAM', KEYS[i])
    for j = 1, #about, 2 do if about[j] == 'last-generated-id' then last = about[j + 1] end end
  end
  looks[i - 1] = {kind, first, last, time[1]}
end
return looks
"""

LAST_MS = 2**64 - 1  # of a stream's ids: behind it nothing can be added


class InboxLook(msgspec.Struct, frozen=True):
    """An inbox at one moment: its type, its first entry (what is settled is deleted), its last id, Redis' clock."""

    kind: str
    first: str
    last_ms: int
    now: int
    stream: str = INBOX

    @property
    def ahead_seconds(self) -> float:
        """How far the last id lies ahead of Redis' clock."""
        return self.last_ms / 1000 - self.now

    def problem(self) -> str | None:
        """Say why nothing can be added or read, if so."""
        if self.kind not in {"stream", "none"}:
            return (
                f"The key {self.stream} is a {self.kind} and no stream, so no job can be put there: look at it, and "
                f"`RENAME {self.stream} {self.stream}:wrong`"
            )
        if self.last_ms >= LAST_MS:
            return f"The stream {self.stream} has given out its last id, so no job can be put there"
        return None


class Transport:
    """The script, by one client."""

    def __init__(self, redis: Redis) -> None:
        self._look: Any = redis.register_script(_LOOK)

    def look_at(self, inboxes: Sequence[str], worker: str = "", problems: Sequence[str] = ()) -> list[InboxLook]:
        """Look at inboxes, and leave word of this worker's problems; without a name, only try to write."""
        said = msgspec.json.encode(problems).decode()
        answer = self._look(keys=[VITALS, *inboxes], args=[worker, said, KEPT_SECONDS])
        return [
            InboxLook(kind.decode(), first.decode(), int(last.partition(b"-")[0]), int(now), stream)
            for stream, (kind, first, last, now) in zip(inboxes, answer, strict=True)
        ]


def what_workers_say(redis: Any) -> dict[str, list[str]]:
    """Return the problems of each worker that has said something lately."""
    told = redis.hgetall(VITALS)
    now = int(redis.time()[0])
    return {
        worker.decode(): msgspec.json.decode(said.partition(b" ")[2], type=list[str])
        for worker, said in told.items()
        if now - int(said.partition(b" ")[0]) <= KEPT_SECONDS
    }
