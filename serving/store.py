"""The stores that keep histories and counters between requests: LMDB in a directory, Redis by URL.

Both hold what `features.online.MemoryStore` holds and pass `tests/contract/test_stores.py`. A history is a run of
msgpack arrays `[item_id, timestamp, action, value, positive]`, oldest first; a counter is an integer. Ids keep their
type: 1 and "1" are two people.

LMDB is for the processes of one host: nothing to run, reads take microseconds. Redis or Valkey is for several hosts.

    store = open_store(Config(kind="redis", url="redis://127.0.0.1:6379/0"), run_directory, retain=1000)
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit
from uuid import uuid4

import lmdb
import msgpack
import numpy as np
import redis
from pydantic import Field
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import InputError
from features.online import Event, Id, ItemCounts, StateStore, UserState
from features.settings import Settings

T = TypeVar("T")


class Config(Settings):
    """Where the online side keeps histories and counters."""

    kind: Literal["lmdb", "redis"] = "lmdb"
    """`lmdb`: a directory that the processes of this host share. `redis`: a server that several hosts share."""
    path: str = "state"
    """Directory of `lmdb`, relative to the run; on a disk of this host, not on a network file system."""
    url: str = "redis://127.0.0.1:6379/0"
    """Server of `redis`: `redis://[user:password@]host:port/db`, `rediss://…` for TLS, or `unix://path`."""
    prefix: str = "feedline:"
    """What every key of `redis` begins with; two runs on one server need two prefixes."""
    map_size_gb: float = Field(default=16.0, gt=0)
    """The most `lmdb` may hold, GB. The file is sparse: it takes disk as it fills. The same in every process."""
    durable: bool = True
    """`lmdb`: an append waits for the disk. Without, a power cut may damage the store; a killed process cannot."""


def open_store(config: Config, directory: Path, retain: int) -> StateStore:
    """Open the store that `config` names.

    Args:
        config: kind and place.
        directory: what `config.path` is relative to.
        retain: events kept in a history; the oldest go first.

    Raises:
        InputError: the directory cannot be used, or the server does not answer.
    """
    if config.kind == "redis":
        return RedisStore(config.url, prefix=config.prefix, retain=retain)
    return LmdbStore(directory / config.path, retain=retain, map_size_gb=config.map_size_gb, durable=config.durable)


class LmdbStore:
    """A `StateStore` in a directory, shared by the processes of one host.

    Readers take no lock and see whole appends only. `append` and `seed` are one write transaction each; writers wait
    for one another, across processes. A process killed at any moment leaves the state before or after its append.

    Durability: with `durable`, an append returns when it is on disk, which costs two fsyncs.
    Memory: the file is mapped; hot pages are in the page cache once for all processes. With integer ids an event
    takes 40 bytes of disk, a user 35 more, an item 37.

    A process opens a directory once, and after a fork rather than before; its threads may share the store.
    """

    BLOCK = 64
    """Events under one key: an append rewrites fewer than this, and 1,000 events are read with 17 look-ups."""

    def __init__(self, path: Path, *, retain: int = 1000, map_size_gb: float = 16.0, durable: bool = True) -> None:
        self._path, self._retain, self._map_size_gb = path, retain, map_size_gb
        map_size = int(map_size_gb * 2**30)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(str(path), map_size=map_size, max_dbs=4, max_readers=1024, sync=durable)
        except (OSError, lmdb.Error) as error:
            raise InputError(
                f"store.path = {str(path)!r} cannot be opened ({error}); name a writable directory of this host"
            ) from error
        self._env.reader_check()  # A killed reader would keep old pages from being used again.
        names = (b"meta", b"users", b"blocks", b"items")
        self._meta, self._users, self._blocks, self._items = (self._env.open_db(name) for name in names)

    def append(self, events: Sequence[Event]) -> None:
        """Apply events in the given order, in one transaction: all of them or none."""
        with self._write() as txn:
            for event in events:
                self._append_to_user(txn, event)
                key = _binary_key(event.item_id)
                count, positives = _COUNTS.unpack(txn.get(key, _NO_COUNTS, db=self._items))
                txn.put(key, _COUNTS.pack(count + 1, positives + event.positive), db=self._items)

    def user(self, user_id: Id) -> UserState:
        """The state of one person; an unknown one has the empty state."""
        key = _binary_key(user_id)
        with self._env.begin() as txn:
            record = self._record(txn, key)
            blocks = range(record.first_block, -(-record.written // self.BLOCK))
            packed = b"".join(txn.get(_block_key(key, block), b"", db=self._blocks) for block in blocks)
        return UserState(
            history=_unpack_history(user_id, packed, self._retain),
            events=record.events,
            positives=record.positives,
            last_timestamp=record.last_timestamp,
        )

    def items(self, item_ids: Sequence[Id]) -> ItemCounts:
        """Counters of `item_ids`; an unknown item has zeros."""
        with self._env.begin(db=self._items) as txn:
            packed = b"".join([txn.get(_binary_key(item_id), _NO_COUNTS) for item_id in item_ids])
        counts = np.frombuffer(packed, dtype="<i8").astype(np.int64).reshape(-1, 2)
        return ItemCounts(events=counts[:, 0], positives=counts[:, 1])

    def seed(self, users: dict[Id, UserState], items: dict[Id, tuple[int, int]]) -> bool:
        """Fill an empty store in one transaction; of two processes that seed at once the second finds it filled."""
        with self._write() as txn:
            if txn.get(b"seeded", db=self._meta) or txn.stat(self._users)["entries"]:
                return False
            for user_id, state in users.items():
                self._put_user(txn, _binary_key(user_id), state)
            for item_id, counts in items.items():
                txn.put(_binary_key(item_id), _COUNTS.pack(*counts), db=self._items)
            txn.put(b"seeded", b"1", db=self._meta)
        return True

    def close(self) -> None:
        """Release the map and the files."""
        self._env.close()

    def _record(self, txn: lmdb.Transaction, key: bytes) -> "_UserRecord":
        packed = txn.get(key, db=self._users)
        return _UserRecord() if packed is None else _UserRecord(*msgpack.unpackb(packed))

    def _append_to_user(self, txn: lmdb.Transaction, event: Event) -> None:
        key = _binary_key(event.user_id)
        record = self._record(txn, key)
        block_key = _block_key(key, record.written // self.BLOCK)
        block = txn.get(block_key, b"", db=self._blocks)
        txn.put(block_key, b"".join((block, _pack_event(event))), db=self._blocks)
        first_block = max(record.first_block, (record.written + 1 - self._retain) // self.BLOCK)
        for old in range(record.first_block, first_block):
            txn.delete(_block_key(key, old), db=self._blocks)
        record = _UserRecord(
            events=record.events + 1,
            positives=record.positives + event.positive,
            last_timestamp=event.timestamp,
            written=record.written + 1,
            first_block=first_block,
        )
        txn.put(key, _pack(record), db=self._users)

    def _put_user(self, txn: lmdb.Transaction, key: bytes, state: UserState) -> None:
        history = state.history[-self._retain :]
        for block, events in enumerate(_batched(history, self.BLOCK)):
            txn.put(_block_key(key, block), b"".join(map(_pack_event, events)), db=self._blocks)
        record = _UserRecord(state.events, state.positives, state.last_timestamp, written=len(history))
        txn.put(key, _pack(record), db=self._users)

    @contextmanager
    def _write(self) -> Iterator[lmdb.Transaction]:
        """One write transaction; a full map is told in the words of the setting."""
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except (lmdb.MapFullError, lmdb.MapResizedError) as error:
            raise InputError(
                f"store.map_size_gb = {self._map_size_gb:g} is less than the store in {str(self._path)!r} needs; "
                "set more and restart every process that uses it"
            ) from error


class RedisStore:
    """A `StateStore` in a Redis or Valkey server, shared by several hosts.

    Keys, after the prefix: `history:<id>` is a list of packed events, trimmed by every append; `users:events`,
    `users:positives`, `users:last`, `items:events`, `items:positives` are hashes by id; `seeded` marks a snapshot.
    An id is `i1` for the integer 1 and `s1` for the string. They are made for one server, not for a Redis Cluster.

    `append` is MULTI/EXEC: a reader never sees half an event, a killed client leaves none. No command is sent twice,
    so that a lost connection cannot count an event twice; its error surfaces instead.

    Durability is the server's: with `appendonly yes` and `appendfsync everysec` it loses at most a second.
    Memory: all of it in RAM; with integer ids an event takes 29 bytes, a user 300 more, an item 100. The server must
    have `maxmemory-policy noeviction`.
    """

    CHUNK = 500
    """Events or snapshot records in one transaction; an append of more is several."""
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
        self._read_counters = self._client.register_script(_READ_COUNTERS)
        self._publish = self._client.register_script(_PUBLISH)

    def append(self, events: Sequence[Event]) -> None:
        """Apply events in the given order; each is applied whole or not at all."""
        for chunk in _batched(events, self.CHUNK):
            with self._client.pipeline(transaction=True) as pipe:
                for event in chunk:
                    user, item = _text_key(event.user_id), _text_key(event.item_id)
                    pipe.rpush(f"{self._prefix}history:{user}", _pack_event(event))
                    pipe.ltrim(f"{self._prefix}history:{user}", -self._retain, -1)
                    pipe.hincrby(self._prefix + "users:events", user, 1)
                    pipe.hincrby(self._prefix + "users:positives", user, int(event.positive))
                    pipe.hset(self._prefix + "users:last", user, str(event.timestamp))
                    pipe.hincrby(self._prefix + "items:events", item, 1)
                    pipe.hincrby(self._prefix + "items:positives", item, int(event.positive))
                pipe.execute()

    def user(self, user_id: Id) -> UserState:
        """The state of one person; an unknown one has the empty state."""
        user = _text_key(user_id)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.lrange(f"{self._prefix}history:{user}", -self._retain, -1)
            for name in ("users:events", "users:positives", "users:last"):
                pipe.hget(self._prefix + name, user)
            history, events, positives, last_timestamp = pipe.execute()
        return UserState(
            history=_unpack_history(user_id, b"".join(history), self._retain),
            events=int(events or 0),
            positives=int(positives or 0),
            last_timestamp=None if last_timestamp is None else int(last_timestamp),
        )

    def items(self, item_ids: Sequence[Id]) -> ItemCounts:
        """Counters of `item_ids`; an unknown item has zeros."""
        keys = [self._prefix + "items:events", self._prefix + "items:positives"]
        fields = _pack([_text_key(item_id) for item_id in item_ids])
        events, positives = (np.array(text.split(), dtype=np.int64) for text in self._read_counters(keys, [fields]))
        return ItemCounts(events=events, positives=positives)

    def seed(self, users: dict[Id, UserState], items: dict[Id, tuple[int, int]]) -> bool:
        """Fill an empty store: write the snapshot aside, then rename it into place in one script.

        Of two processes that seed at once the first to finish wins. The script holds the server for 7 s a million
        users, so seed before traffic comes.

        Raises:
            redis.ResponseError: it took more than `SEED_SECONDS`; the store is as it was.
        """
        if self._client.exists(self._prefix + "seeded", self._prefix + "users:events"):
            return False
        aside = f"{self._prefix}seeding:{uuid4().hex}:"
        expires = self._client.time()[0] + self.SEED_SECONDS
        with self._client.pipeline(transaction=True) as pipe:
            for chunk in _batched(users.items(), self.CHUNK):
                for user_id, state in chunk:
                    user = _text_key(user_id)
                    if history := [_pack_event(event) for event in state.history[-self._retain :]]:
                        pipe.rpush(f"{aside}history:{user}", *history)
                        pipe.expireat(f"{aside}history:{user}", expires)
                    pipe.hset(aside + "users:events", user, str(state.events))
                    pipe.hset(aside + "users:positives", user, str(state.positives))
                    if state.last_timestamp is not None:
                        pipe.hset(aside + "users:last", user, str(state.last_timestamp))
                for name in ("users:events", "users:positives", "users:last"):
                    pipe.expireat(aside + name, expires)
                pipe.execute()
            for chunk in _batched(items.items(), self.CHUNK):
                for item_id, (events, positives) in chunk:
                    pipe.hset(aside + "items:events", _text_key(item_id), str(events))
                    pipe.hset(aside + "items:positives", _text_key(item_id), str(positives))
                for name in ("items:events", "items:positives"):
                    pipe.expireat(aside + name, expires)
                pipe.execute()
        return bool(self._publish([], [self._prefix, aside, len(users), len(items)]))

    def close(self) -> None:
        """Release the connections."""
        self._client.close()


class _UserRecord(NamedTuple):
    """What `LmdbStore` keeps of a person beside the blocks of the history."""

    events: int = 0
    positives: int = 0
    last_timestamp: int | None = None
    written: int = 0
    """Events ever put into blocks; event n is in block n // BLOCK."""
    first_block: int = 0
    """The first block not yet deleted."""


_COUNTS = struct.Struct("<qq")
"""LMDB's counters of an item: events, positives."""
_NO_COUNTS = _COUNTS.pack(0, 0)

_READ_COUNTERS = """
-- KEYS: hashes; ARGV[1]: fields, as msgpack. One string of numbers a hash: far cheaper to parse than a reply a field.
local fields, texts = cmsgpack.unpack(ARGV[1]), {}
for k, key in ipairs(KEYS) do
  local numbers = {}
  for i, field in ipairs(fields) do numbers[i] = redis.call('HGET', key, field) or '0' end
  texts[k] = table.concat(numbers, ' ')
end
return texts
"""

_PUBLISH = """
-- ARGV: prefix, prefix of the snapshot, its number of users, of items. Drops the snapshot if the store has been filled.
local live, aside = ARGV[1], ARGV[2]
local filled = redis.call('EXISTS', live .. 'seeded', live .. 'users:events') > 0
local users = redis.call('HKEYS', aside .. 'users:events')
if #users ~= tonumber(ARGV[3]) or redis.call('HLEN', aside .. 'items:events') ~= tonumber(ARGV[4]) then
  return redis.error_reply('the snapshot expired before it was complete')
end
local function settle(name)
  if filled then
    redis.call('UNLINK', aside .. name)
  elseif redis.call('EXISTS', aside .. name) == 1 then
    redis.call('RENAME', aside .. name, live .. name)
    redis.call('PERSIST', live .. name)
  end
end
for _, user in ipairs(users) do settle('history:' .. user) end
for _, name in ipairs({'users:events', 'users:positives', 'users:last', 'items:events', 'items:positives'}) do
  settle(name)
end
if filled then return 0 end
redis.call('SET', live .. 'seeded', 1)
return 1
"""


def _pack(value: object) -> bytes:
    return cast(bytes, msgpack.packb(value))


def _pack_event(event: Event) -> bytes:
    return _pack((event.item_id, event.timestamp, event.action, event.value, event.positive))


def _unpack_history(user_id: Id, packed: bytes, retain: int) -> tuple[Event, ...]:
    """The last `retain` events of a run of packed ones."""
    unpacker = msgpack.Unpacker(use_list=False)
    unpacker.feed(packed)
    return tuple([Event(user_id, *fields) for fields in list(unpacker)[-retain:]])


def _binary_key(name: Id) -> bytes:
    """The key of an id in LMDB, whose keys end at 511 bytes: a longer string is known by its digest."""
    if isinstance(name, str):
        text = name.encode()
        return b"s" + text if len(text) <= 256 else b"h" + blake2b(text, digest_size=32).digest()
    return b"i" + struct.pack(">q", _int64(name))


def _block_key(user_key: bytes, block: int) -> bytes:
    return user_key + block.to_bytes(4, "big")


def _text_key(name: Id) -> str:
    """The key of an id in Redis, legible in redis-cli."""
    return f"s{name}" if isinstance(name, str) else f"i{_int64(name)}"


def _int64(name: int) -> int:
    if not -(2**63) <= name < 2**63:
        raise InputError(f"id = {name} is beyond int64; use an int64 or a string")
    return name


def _without_password(url: str) -> str:
    """`url` as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values; the last may be shorter."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
