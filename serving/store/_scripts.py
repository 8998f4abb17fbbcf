"""What a Redis server does at once, in Lua. KEYS of all but PUBLISH: the maps of `_packing`, in their order."""

APPEND = """
-- ARGV: events as msgpack, each (person, event, positive, increments, digest of its id or ''); events in a block;
-- events retained; now; ids remembered, and for how long. A character an event: 1 where it was applied.
local people, histories, counters, ids = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local in_block, retain, now = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local most_ids, ids_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local known = {}

-- As Remembered of _packing.py. A person's entries, oldest first, from `first` on, and which digests are among them.
local function remembered(person)
  if not known[person] then
    local packed, found = redis.call('HGET', ids, person) or '', {entries = {}, first = 1, set = {}}
    for at = 1, #packed, 16 do
      if struct.unpack('>i8', packed, at + 8) > now - ids_ms then
        found.entries[#found.entries + 1] = packed:sub(at, at + 15)
        found.set[packed:sub(at, at + 7)] = true
      end
    end
    known[person] = found
  end
  return known[person]
end

local function remember(person, digest)
  local found = remembered(person)
  if found.set[digest] then return false end
  found.set[digest] = true
  found.entries[#found.entries + 1] = digest .. struct.pack('>i8', now)
  if #found.entries - found.first + 1 > most_ids then
    found.set[found.entries[found.first]:sub(1, 8)] = nil
    found.first = found.first + 1
  end
  return true
end

local function block_key(person, block) return person .. struct.pack('>I4', block) end

local function append(person, event)
  local written, first = 0, 0
  local record = redis.call('HGET', people, person)
  if record then written, first = struct.unpack('<i8i8', record) end
  local last = block_key(person, math.floor(written / in_block))
  redis.call('HSET', histories, last, (redis.call('HGET', histories, last) or '') .. event)
  local keep_from = math.max(first, math.floor((written + 1 - retain) / in_block))
  for old = first, keep_from - 1 do redis.call('HDEL', histories, block_key(person, old)) end
  redis.call('HSET', people, person, struct.pack('<i8i8', written + 1, keep_from))
end

-- As _incremented of lmdb_store.py.
local function increment(key, bucket, keep, positive)
  local counter = redis.call('HGET', counters, key) or ''
  local start, stop, events, positives = #counter, #counter, 0, 0
  while start > 0 do
    local found, found_events, found_positives = struct.unpack('<i8i8i8', counter, start - 23)
    if found < bucket then break end
    start = start - 24
    if found == bucket then
      events, positives = found_events, found_positives
      break
    end
    stop = start
  end
  local grown = struct.pack('<i8i8i8', bucket, events + 1, positives + positive)
  counter = counter:sub(1, start) .. grown .. counter:sub(stop + 1)
  local newest, first = struct.unpack('<i8', counter, #counter - 23), 1
  while struct.unpack('<i8', counter, first) <= newest - keep do first = first + 24 end
  redis.call('HSET', counters, key, counter:sub(first))
end

local applied = {}
for place, entry in ipairs(cmsgpack.unpack(ARGV[1])) do
  if entry[5] == '' or remember(entry[1], entry[5]) then
    append(entry[1], entry[2])
    for _, counted in ipairs(entry[4]) do increment(counted[1], counted[2], counted[3], entry[3]) end
    applied[place] = '1'
  else
    applied[place] = '0'
  end
end
for person, found in pairs(known) do
  redis.call('HSET', ids, person, table.concat(found.entries, '', found.first))
end
return table.concat(applied)
"""

READ_HISTORY = """
-- ARGV: person, events in a block. All of the blocks as one string.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return '' end
local written, first = struct.unpack('<i8i8', record)
local packed = {}
for block = first, math.ceil(written / tonumber(ARGV[2])) - 1 do
  packed[#packed + 1] = redis.call('HGET', KEYS[2], ARGV[1] .. struct.pack('>I4', block))
end
return table.concat(packed)
"""

READ_COUNTERS = """
-- ARGV: keys of 8 bytes, one after the other. Two strings, the lengths of the values and the
-- values: far cheaper to parse than a reply a key.
local lengths, values = {}, {}
for first = 1, #ARGV[1], 8000 do
  local keys = {}
  for at = first, math.min(first + 7999, #ARGV[1]), 8 do keys[#keys + 1] = ARGV[1]:sub(at, at + 7) end
  for _, value in ipairs(redis.call('HMGET', KEYS[3], unpack(keys))) do
    values[#values + 1] = value or ''
    lengths[#lengths + 1] = #values[#values]
  end
end
return {table.concat(lengths, ' '), table.concat(values)}
"""

ERASE = """
-- ARGV: person, events in a block, keys of counters, of 8 bytes, one after the other. How many entries were there.
local person, gone = ARGV[1], 0
local record = redis.call('HGET', KEYS[1], person)
if record then
  local written, first = struct.unpack('<i8i8', record)
  for block = first, math.ceil(written / tonumber(ARGV[2])) - 1 do
    redis.call('HDEL', KEYS[2], person .. struct.pack('>I4', block))
  end
end
for _, map in ipairs({KEYS[1], KEYS[4], KEYS[5]}) do gone = gone + redis.call('HDEL', map, person) end
for first = 1, #ARGV[3], 8000 do
  local keys = {}
  for at = first, math.min(first + 7999, #ARGV[3]), 8 do keys[#keys + 1] = ARGV[3]:sub(at, at + 7) end
  gone = gone + redis.call('HDEL', KEYS[3], unpack(keys))
end
return gone
"""

REPLACE = """
-- ARGV: person, events in a block, the record that was found, the new one, the new blocks. Does nothing if the person's
-- history has changed since; whether it did something.
local person = ARGV[1]
if redis.call('HGET', KEYS[1], person) ~= ARGV[3] then return 0 end
local written, first = struct.unpack('<i8i8', ARGV[3])
for block = first, math.ceil(written / tonumber(ARGV[2])) - 1 do
  redis.call('HDEL', KEYS[2], person .. struct.pack('>I4', block))
end
if #ARGV == 4 then
  redis.call('HDEL', KEYS[1], person)
  return 1
end
redis.call('HSET', KEYS[1], person, ARGV[4])
for place = 5, #ARGV do redis.call('HSET', KEYS[2], person .. struct.pack('>I4', place - 5), ARGV[place]) end
return 1
"""

FORGET = """
-- ARGV: person, the ids that were found, those that are left. Does nothing if there are others by now.
if redis.call('HGET', KEYS[5], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[5], ARGV[1]) else redis.call('HSET', KEYS[5], ARGV[1], ARGV[3]) end
return 1
"""

PUBLISH = """
-- ARGV: prefix, prefix of the snapshot, sizes of its maps, what it means. Drops it if the store has been filled.
local live, aside, sizes = ARGV[1], ARGV[2], cmsgpack.unpack(ARGV[3])
local filled = redis.call('EXISTS', live .. 'meaning', live .. 'people') > 0
for name, size in pairs(sizes) do
  if redis.call('HLEN', aside .. name) ~= size then
    return redis.error_reply('the snapshot expired before it was complete')
  end
end
for name, size in pairs(sizes) do
  if filled then
    redis.call('UNLINK', aside .. name)
  elseif size > 0 then
    redis.call('RENAME', aside .. name, live .. name)
    redis.call('PERSIST', live .. name)
  end
end
if filled then return 0 end
redis.call('SET', live .. 'meaning', ARGV[4])
return 1
"""
