"""Streams whose ids, or whose group, somebody has set ahead: found and repaired, so that nothing added stays unread.

A stream's ids only grow. After one id far ahead of Redis' clock all later ones are ahead too, and after the highest of
all nothing can be added any more. Knows streams; does not know what stands in them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import ResponseError

from worker.streams import DEAD_LETTERS, EVENTS, GROUP, INBOX, aside_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

AHEAD_MS = 60_000  # above the difference of two servers' clocks, between which a failover may lead

# An inbox is put aside as it is, in one step however long it is, and read to its end from there. Its group is never
# past an entry that nobody has: if it is, all are delivered again, which is harmless.
_REPAIR_INBOX = """
local inbox, aside, group, ahead = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local function parts(id) return string.match(id, '^(%d+)-(%d+)$') end
local function number_less(a, b) if #a ~= #b then return #a < #b end return a < b end
local function less(a, b)
  local a1, a2 = parts(a)
  local b1, b2 = parts(b)
  if a1 ~= b1 then return number_less(a1, b1) end
  return number_less(a2, b2)
end
local function facts(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

if redis.call('XLEN', aside) == 0 then redis.call('DEL', aside) end
local left = redis.call('XLEN', aside)
if redis.call('EXISTS', inbox) == 0 then return {'', left} end
local stream = facts(redis.call('XINFO', 'STREAM', inbox))
local now = tonumber(redis.call('TIME')[1]) * 1000
if tonumber((parts(stream['last-generated-id']))) > now + ahead and left == 0 then
  redis.call('RENAME', inbox, aside)
  redis.call('XGROUP', 'CREATE', inbox, group, '0', 'MKSTREAM')
  pcall(redis.call, 'XGROUP', 'CREATE', aside, group, '0')
  return {'ids_ahead', redis.call('XLEN', aside)}
end
if stream['first-entry'] then
  local first = stream['first-entry'][1]
  for _, each in ipairs(redis.call('XINFO', 'GROUPS', inbox)) do
    local found = facts(each)
    if found.name == group and not less(found['last-delivered-id'], first) then
      local pending = redis.call('XPENDING', inbox, group)
      if pending[1] == 0 or less(first, pending[2]) then
        redis.call('XGROUP', 'SETID', inbox, group, '0')
        return {'group_ahead', left}
      end
    end
  end
end
return {'', left}
"""

# What we tell others stays where its readers look, under ids that they can go on from.
_REPAIR_EVENTS = """
local name, ahead = KEYS[1], tonumber(ARGV[1])
if redis.call('EXISTS', name) == 0 then return '' end
local info, now = redis.call('XINFO', 'STREAM', name), tonumber(redis.call('TIME')[1]) * 1000
local function is_ahead(id) return tonumber(string.match(id, '^%d+')) > now + ahead end
local last = '0-0'
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then last = info[i + 1] end end
if not is_ahead(last) then return '' end
local again, limit = name .. ':repaired', string.format('%.0f', now + ahead)
redis.call('DEL', again)
redis.call('XGROUP', 'CREATE', again, 'none', '0', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', again, 'none')
for _, entry in ipairs(redis.call('XRANGE', name, '-', limit)) do
  if #entry[2] <= 100 then redis.call('XADD', again, entry[1], unpack(entry[2])) end
end
for _, entry in ipairs(redis.call('XRANGE', name, '(' .. limit .. '-18446744073709551615', '+')) do
  local ours = false
  for i = 1, #entry[2], 2 do ours = ours or entry[2][i] == 'event_id' end
  if ours and #entry[2] <= 100 then redis.call('XADD', again, '*', unpack(entry[2])) end
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', name)) do
  local found = {}
  for i = 1, #group, 2 do found[group[i]] = group[i + 1] end
  local place = found['last-delivered-id']
  if is_ahead(place) then place = string.format('%.0f', now - ahead) end
  redis.call('XGROUP', 'CREATE', again, found.name, place)
end
redis.call('RENAME', again, name)
return 'ids_ahead'
"""


class Repair(msgspec.Struct, frozen=True):
    """What was wrong with a stream, and is repaired."""

    stream: str
    problem: str  # ids_ahead | group_ahead


class StreamIds:
    """Looks at the streams of this project and repairs them."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._inbox: Any = redis.register_script(_REPAIR_INBOX)
        self._events: Any = redis.register_script(_REPAIR_EVENTS)
        self.aside: tuple[str, ...] = ()  # inboxes that were put aside, to be read from there

    def repair(self, inboxes: Sequence[str] = (INBOX,)) -> list[Repair]:
        """Repair what is ahead; return what that was."""
        found, aside = {}, []
        for inbox, answer in zip(inboxes, self._look_at(inboxes), strict=True):
            if not isinstance(answer, ResponseError):  # a key of another type there is named by who reads it
                found[inbox] = answer[0]
                aside += [aside_of(inbox)] if answer[1] else []
        self.aside = tuple(aside)
        for name in (EVENTS, DEAD_LETTERS):
            with suppress(ResponseError):  # a key of another type there is named by who writes to it
                found[name] = self._events(keys=[name], args=[AHEAD_MS])
        return [Repair(name, problem.decode()) for name, problem in found.items() if problem]

    def _look_at(self, inboxes: Sequence[str]) -> list[Any]:
        """Run the script for each; for one alone in a trip less, and what that meets is raised."""
        if len(inboxes) == 1:
            return [self._inbox(keys=[inboxes[0], aside_of(inboxes[0])], args=[GROUP, AHEAD_MS])]
        pipeline = self._redis.pipeline(transaction=False)
        for inbox in inboxes:
            self._inbox(keys=[inbox, aside_of(inbox)], args=[GROUP, AHEAD_MS], client=pipeline)
        return list(pipeline.execute(raise_on_error=False))
