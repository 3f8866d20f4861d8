"""How entries are read from the inbox: bounded before they leave Redis, and those of lost readers taken over.

An entry may be of any length, and a reply that is too long kills who reads it. So the wait for an entry gets no reply
at all, and a script reads it where it lies. Knows the stream; does not know what an entry holds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis import ResponseError
from redis.exceptions import NoScriptError

from worker.inputs.entries import FIELDS, KEPT_BYTES, MAX_BATCH_BYTES, MAX_ENTRY_BYTES, Entry, read_entries
from worker.streams import GROUP, INBOX, forget_readers, wait_unread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

BATCH = 500
BLOCK_MS = 2_000  # an idle intake asks this often; a new entry wakes it at once
# An entry that its reader has not settled for this long is taken over: its reader is dead or cut off.
TAKE_OVER_AFTER_MS = 5_000
TAKE_OVER_EVERY_SECONDS = 2.0

# First what is in hand already: delivered by the wait, left by a failed try, or by a reader that is gone. Its counter
# says how many had it. Who had it once is taken in a batch, twice alone, and after the third reader it is set aside.
# Then what is new, few at a time, so that Redis itself need not copy many long ones at once.
_TAKE = """
local inbox, group, me = KEYS[1], ARGV[1], ARGV[2]
local most, most_bytes, longest, kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local idle, woken = tonumber(ARGV[7]), ARGV[8] == '1'
local rank = {}
for i = 9, #ARGV do rank[ARGV[i]] = i end
local out, count, bytes = {0}, 0, 0

local function put(id, flat, refusal)
  local size, field, text = 0, '', nil
  for i = 1, #flat, 2 do
    size = size + #flat[i] + #flat[i + 1]
    local this = rank[flat[i]]
    if this and (field == '' or this < rank[field]) then field, text = flat[i], flat[i + 1] end
  end
  if size > longest and refusal == '' then refusal = 'too_large' end
  if not text then
    local parts, length = {}, 0
    for i = 1, #flat, 2 do
      parts[#parts + 1] = flat[i] .. ': ' .. flat[i + 1]
      length = length + #parts[#parts]
      if length > longest then break end
    end
    text = table.concat(parts, '\\n')
  end
  local head = field
  if refusal ~= '' then head, text = field .. ' ' .. refusal .. ' ' .. size, string.sub(text, 1, kept) end
  out[#out + 1], out[#out + 2], out[#out + 3] = id, head, text
  count, bytes = count + 1, bytes + #text
  return size
end

local function in_hand(mine, ...)
  for _, entry in ipairs(redis.call('XPENDING', inbox, group, ...)) do
    local id, holder, times = entry[1], entry[2], entry[4]
    local found = (mine or holder ~= me) and redis.call('XRANGE', inbox, id, id)[1]
    local alone = found and times == 2
    if count >= most or bytes >= most_bytes or (alone and count > 0) then
      out[1] = alone and 2 or 1
      return false
    elseif found then
      if not (woken and mine and times == 1) then
        redis.call('XCLAIM', inbox, group, me, 0, id, 'RETRYCOUNT', times + 1, 'JUSTID')
      end
      put(id, found[2], times > 2 and 'kills_its_reader' or '')
      if alone then
        out[1] = 2
        return false
      end
    elseif mine or holder ~= me then
      redis.call('XACK', inbox, group, id)
    end
  end
  return true
end

if not in_hand(true, '-', '+', most, me) then return out end
if idle >= 0 and not in_hand(false, 'IDLE', idle, '-', '+', most) then return out end
local step = 1
while count < most and bytes < most_bytes do
  local n = math.min(step, most - count)
  local got = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', n, 'STREAMS', inbox, '>')
  if not got then return out end
  local long = false
  for _, entry in ipairs(got[1][2]) do long = put(entry[1], entry[2], '') > longest or long end
  step = long and 1 or math.min(step * 2, 8)
end
out[1] = 1
return out
"""


class InboxReader:
    """Reads one stream for one reader of the group; what it returns is settled or released by the caller."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis: Any = redis
        self._name = name
        self._take = redis.register_script(_TAKE)
        self._wait = ("XREADGROUP", "GROUP", GROUP, name, "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", INBOX, ">")
        self._looked_at = -TAKE_OVER_EVERY_SECONDS
        self._held: dict[tuple[bytes, bytes, int], float] = {}  # by other readers, and since when we know
        self._more = True  # than was taken last: then there is nothing to wait for
        self.suspects = False  # whether there are entries in hand that are to be taken one by one

    def next(self) -> list[Entry]:
        """Return the next batch, waiting a short while for an entry where there is none."""
        idle = self._idle()
        if self._more or idle >= 0:
            entries = self.take(INBOX, idle=idle)
            if not entries:
                forget_readers(self._redis)
            return entries
        return self._waited()

    def _waited(self) -> list[Entry]:
        """Wait for an entry, a short while, and read what came: one round trip."""
        self._more = True  # where this fails
        then = ("EVALSHA", self._take.sha, 1, INBOX, *self._args(-1, woken=True))
        try:
            return self._read(wait_unread(self._redis, *self._wait, then=then))
        except NoScriptError:
            return self.take(INBOX)

    def take(self, stream: str, *, idle: int = -1) -> list[Entry]:
        """Take one batch of a stream without waiting; `idle` ms after which others' entries are taken over, or -1."""
        self._more = True  # where this fails
        return self._read(self._take(keys=[stream], args=self._args(idle)))

    def _args(self, idle: int, *, woken: bool = False) -> list[str | int]:
        sizes = (BATCH, MAX_BATCH_BYTES, MAX_ENTRY_BYTES, KEPT_BYTES)
        return [GROUP, self._name, *sizes, idle, int(woken), *FIELDS]

    def _read(self, answer: Sequence[Any]) -> list[Entry]:
        more, *found = answer
        self._more, self.suspects = more > 0, more > 1
        return read_entries(found)

    def _idle(self) -> int:
        if time.monotonic() - self._looked_at < TAKE_OVER_EVERY_SECONDS:
            return -1
        self._looked_at = time.monotonic()
        return 0 if self._somebody_is_stuck() else TAKE_OVER_AFTER_MS

    def _somebody_is_stuck(self) -> bool:
        """Whether another reader holds an entry as it did 5 s ago by our own clock: Redis' may have been set back."""
        now = time.monotonic()
        rows = self._redis.xpending_range(INBOX, GROUP, "-", "+", BATCH)
        held = {(row["message_id"], row["consumer"], row["times_delivered"]) for row in rows}
        self._held = {each: self._held.get(each, now) for each in held if each[1] != self._name.encode()}
        return any(now - since > TAKE_OVER_AFTER_MS / 1000 for since in self._held.values())

    def settle(self, stream: str, entries: Sequence[Entry]) -> None:
        """Acknowledge and delete: for what is in the ledger."""
        ids = [entry.id for entry in entries]
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.xack(stream, GROUP, *ids)
        pipeline.xdel(stream, *ids)
        pipeline.execute()

    def release(self, stream: str, entries: Sequence[Entry]) -> None:
        """Note that these did their reader no harm: it could not store them."""
        ids = [entry.id for entry in entries]
        self._redis.xclaim(stream, GROUP, self._name, 0, ids, retrycount=0, justid=True)

    def make_group(self) -> None:
        """Make the stream and its group where they are lacking."""
        try:
            self._redis.xgroup_create(INBOX, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
