"""A store in a Redis or Valkey server that several hosts share.

Each map of `_packing` is a hash; what must happen at once is a Lua script.

    store = RedisStore("redis://127.0.0.1:6379/0", prefix="feedline:", retain=1000)
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import polars as pl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import InputError
from features.online import Counts, Event, Id, Increment
from serving.store._packing import (
    BLOCK,
    MAPS,
    batched,
    counter_key,
    pack,
    pack_event,
    packed_counters,
    packed_histories,
    packed_people,
    unpack_counts,
    unpack_history,
    user_key,
)


class RedisStore:
    """A `StateStore` in a Redis or Valkey server, shared by several hosts.

    Keys, after the prefix: `people`, `histories` and `counters` are hashes, the maps of `_packing`; `filled` marks a
    snapshot. One hash holds all counters, so that a snapshot of any size is published by renaming three keys, and a
    counter costs no key of its own. They are made for one server, not for a Redis Cluster.

    `append` is one script for up to `CHUNK` events: a reader never sees half an event, a killed client leaves none.
    No command is sent twice, so that a lost connection cannot count an event twice; its error surfaces instead.
    Scripts compute with floats: numbers of buckets are exact within ±2**53.

    Durability is the server's: with `appendonly yes` and `appendfsync everysec` it loses at most a second.
    Memory: all of it in RAM; with integer ids an event takes 29 to 33 bytes, a person 180 more; a counter takes 90
    bytes, and 26 for each bucket after the first. The server must have `maxmemory-policy noeviction`.
    """

    CHUNK = 500
    """Events or snapshot records in one script; an append of more is several."""
    SEED_SECONDS = 3600
    """How long a snapshot may take; what a killed process wrote of one expires then."""

    def __init__(self, url: str, *, prefix: str = "feedline:", retain: int = 1000) -> None:
        self._prefix, self._retain = prefix, retain
        never_again = Retry(NoBackoff(), 0)
        try:
            self._client = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=10, retry=never_again)
            self._client.ping()
        except (ValueError, redis.RedisError) as error:
            raise InputError(
                f"store.url = {_without_password(url)!r} cannot be used ({error}); start redis-server there or "
                "correct store.url"
            ) from error
        self._maps = [prefix + name for name in MAPS]
        self._append, self._read_history, self._read_counters, self._publish = (
            self._client.register_script(script) for script in (_APPEND, _READ_HISTORY, _READ_COUNTERS, _PUBLISH)
        )

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> None:
        """Apply events in the given order; each is applied whole or not at all."""
        for chunk in batched(zip(events, increments, strict=True), self.CHUNK):
            packed = [
                (
                    user_key(event.user_id),
                    pack_event(event),
                    int(event.positive),
                    [(counter_key(key), bucket, keep) for key, bucket, keep in counted],
                )
                for event, counted in chunk
            ]
            self._append(self._maps, [pack(packed), BLOCK, self._retain])

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The last events of one person, oldest first."""
        return unpack_history(user_id, self._read_history(self._maps, [user_key(user_id), BLOCK]), self._retain)

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        lengths, packed = self._read_counters(self._maps, [keys.astype(">u8").tobytes()])
        return unpack_counts(packed, np.array(lengths.split(), dtype=np.int64))

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame) -> bool:
        """Fill an empty store: write the snapshot aside, then rename it into place in one script.

        Of two processes that seed at once the first to finish wins.

        Raises:
            redis.ResponseError: it took more than `SEED_SECONDS`; the store is as it was.
        """
        if self._client.exists(self._prefix + "filled", self._prefix + "people"):
            return False
        aside = f"{self._prefix}seeding:{uuid4().hex}:"
        expires = self._client.time()[0] + self.SEED_SECONDS
        snapshot = {
            "counters": packed_counters(counters),
            "histories": packed_histories(histories, self._retain),
            "people": packed_people(histories, self._retain),
        }
        sizes = dict.fromkeys(snapshot, 0)
        with self._client.pipeline(transaction=True) as pipe:
            for name, pairs in snapshot.items():
                for chunk in batched(pairs, self.CHUNK):
                    pipe.hset(aside + name, mapping=dict(chunk))
                    pipe.expireat(aside + name, expires)
                    pipe.execute()
                    sizes[name] += len(chunk)
        return bool(self._publish([], [self._prefix, aside, pack(sizes)]))

    def close(self) -> None:
        """Release the connections."""
        self._client.close()


_APPEND = """
-- KEYS: people, histories, counters.
-- ARGV: events as msgpack, each (person, event, positive, increments); events in a block; events retained.
local people, histories, counters = KEYS[1], KEYS[2], KEYS[3]
local in_block, retain = tonumber(ARGV[2]), tonumber(ARGV[3])

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

for _, entry in ipairs(cmsgpack.unpack(ARGV[1])) do
  append(entry[1], entry[2])
  for _, counted in ipairs(entry[4]) do increment(counted[1], counted[2], counted[3], entry[3]) end
end
"""

_READ_HISTORY = """
-- KEYS: people, histories, …; ARGV: person, events in a block. All of the blocks as one string.
local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return '' end
local written, first = struct.unpack('<i8i8', record)
local packed = {}
for block = first, math.ceil(written / tonumber(ARGV[2])) - 1 do
  packed[#packed + 1] = redis.call('HGET', KEYS[2], ARGV[1] .. struct.pack('>I4', block))
end
return table.concat(packed)
"""

_READ_COUNTERS = """
-- KEYS: …, …, counters; ARGV: keys of 8 bytes, one after the other. Two strings, the lengths of the values and the
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

_PUBLISH = """
-- ARGV: prefix, prefix of the snapshot, sizes of its maps. Drops the snapshot if the store has been filled.
local live, aside, sizes = ARGV[1], ARGV[2], cmsgpack.unpack(ARGV[3])
local filled = redis.call('EXISTS', live .. 'filled', live .. 'people') > 0
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
redis.call('SET', live .. 'filled', 1)
return 1
"""


def _without_password(url: str) -> str:
    """`url` as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
