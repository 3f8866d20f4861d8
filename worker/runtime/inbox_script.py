"""The script that reads the inboxes where they lie: each entry bounded, each producer its share, at its own rate.

Knows the streams; does not know what an entry holds, nor who waits for it.
"""

from __future__ import annotations

# For each inbox two keys: the stream, and where its producer's rate is kept. Its answer for each: [more, wait in ms,
# id, head, text, ...], or [what Redis refuses]. `more`: 0 nothing, 1 more may be there, 2 some are to be taken alone.
#
# First what is in hand already: delivered by the wait, left by a failed try, or by a reader that is gone. Its counter
# says how many had it. Who had it once is taken in a batch, twice alone, and after the third reader it is set aside.
# Then what is new, few at a time, so that Redis itself need not copy many long ones at once. Each inbox has its part
# of a batch; what the others leave goes to those that have more.
#
# A rate is a moment: the next at which an entry may be read, by Redis' clock; a second's worth may be read at once. A
# moment that nobody wrote by this clock begins anew. Entries that a wait delivered count as well.
TAKE = """
local group, me = ARGV[1], ARGV[2]
local most, most_bytes, longest, kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local idle, woken, inboxes = tonumber(ARGV[7]), ARGV[8] == '1', #KEYS / 2
local share = math.max(1, math.floor(most / inboxes))
local rank = {}
for i = 9 + inboxes, #ARGV do rank[ARGV[i]] = i end
local count, bytes, alone_taken, now = 0, 0, false, nil

local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  return now
end

local function put(out, id, flat, refusal)
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

local function in_hand(this, mine, ...)
  for _, entry in ipairs(redis.call('XPENDING', this.inbox, group, ...)) do
    local id, holder, times = entry[1], entry[2], entry[4]
    local found = (mine or holder ~= me) and redis.call('XRANGE', this.inbox, id, id)[1]
    local alone = found and times == 2
    if this.taken >= share or count >= most or bytes >= most_bytes or (alone and count > 0) then
      this.out[1] = alone and 2 or 1
      return false
    elseif found then
      if woken and mine and times == 1 then
        this.read = this.read + 1
      else
        redis.call('XCLAIM', this.inbox, group, me, 0, id, 'RETRYCOUNT', times + 1, 'JUSTID')
      end
      this.taken = this.taken + 1
      put(this.out, id, found[2], times > 2 and 'kills_its_reader' or '')
      if alone then
        this.out[1], alone_taken = 2, true
        return false
      end
    elseif mine or holder ~= me then
      redis.call('XACK', this.inbox, group, id)
    end
  end
  return true
end

local function read_new(this, limit)
  local step = 1
  while limit > 0 and count < most and bytes < most_bytes do
    local n = math.min(step, limit, most - count)
    local got = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', n, 'STREAMS', this.inbox, '>')
    if not got then return false end
    local long = false
    for _, entry in ipairs(got[1][2]) do
      long = put(this.out, entry[1], entry[2], '') > longest or long
      this.read, this.taken, limit = this.read + 1, this.taken + 1, limit - 1
    end
    step = long and 1 or math.min(step * 2, 8)
  end
  return true
end

local function allowed(this)
  if this.rate == 0 then return most end
  this.step = math.ceil(1000000 / this.rate)
  local free = redis.pcall('GET', this.pace)
  free = type(free) == 'string' and tonumber(free)
  this.last = clock() + this.step + 10000000
  if not (free and free >= 0 and free <= this.last) then free = 0 end
  this.free = math.max(free, clock() - 1000000)
  if this.free > clock() then return 0 end
  return math.floor((clock() - this.free) / this.step) + 1
end

local function charge(this, depleted)
  if this.rate == 0 then return end
  local free = math.min(this.free + this.read * this.step, this.last)
  if this.read > 0 then redis.pcall('SET', this.pace, string.format('%.0f', free), 'PX', 600000) end
  this.out[2] = math.max(depleted and 100 or 0, math.ceil((free - clock()) / 1000))
end

local function take(this)
  local allowance = allowed(this)
  if not in_hand(this, true, '-', '+', most, me) then return charge(this) end
  if idle >= 0 and not in_hand(this, false, 'IDLE', idle, '-', '+', most) then return charge(this) end
  local left = allowance - this.read
  if left <= 0 then return charge(this, true) end
  if not read_new(this, math.min(share - this.taken, left)) then return charge(this) end
  local depleted = this.rate > 0 and this.read >= allowance
  if not depleted then this.out[1] = 1 end
  this.has_more = this.rate == 0
  charge(this, depleted)
end

local all, answer, failed = {}, {}, 0
for i = 1, inboxes do
  local this = {inbox = KEYS[2 * i - 1], pace = KEYS[2 * i], rate = tonumber(ARGV[8 + i])}
  this.out, this.taken, this.read = {0, 0}, 0, 0
  all[i], answer[i] = this, this.out
  if inboxes == 1 then
    take(this)
  elseif not alone_taken then
    local good, problem = pcall(take, this)
    if not good then
      problem = type(problem) == 'table' and problem.err or tostring(problem)
      answer[i], failed = {(string.gsub(problem, '^@?user_script:%s*%d+:%s*-?', ''))}, failed + 1
    end
  end
end
if failed == inboxes then return redis.error_reply(answer[1][1]) end
if inboxes > 1 and not alone_taken then
  for i, this in ipairs(all) do
    if answer[i] == this.out and this.has_more and not read_new(this, most - count) then this.out[1] = 0 end
  end
end
return answer
"""
