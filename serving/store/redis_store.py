"""A store in a Redis or Valkey server that several hosts share.

Each map of `_packing` is a hash; what must happen at once is a Lua script, see `_scripts`.

    store = RedisStore("redis://127.0.0.1:6379/0", prefix="feedline:")
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import polars as pl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import InputError, StoreError
from features.online import Counts, Event, Id, Increment, Retention
from features.taste import Taste
from serving.store import _scripts
from serving.store._packing import (
    BLOCK,
    MAPS,
    RECORD,
    Remembered,
    batched,
    counter_key,
    digest,
    pack,
    pack_event,
    pack_taste,
    packed_blocks,
    packed_counters,
    packed_histories,
    packed_people,
    unpack_counts,
    unpack_events,
    unpack_taste,
    user_key,
)


class RedisStore:
    """A `StateStore` in a Redis or Valkey server, shared by several hosts.

    Keys, after the prefix: the maps of `_packing` are hashes; `meaning` marks a snapshot. One hash holds all counters,
    so that a snapshot of any size is published by renaming three keys, and a counter costs no key of its own. They
    are made for one server, not for a Redis Cluster.

    `append` is one script for up to `CHUNK` events: a reader never sees half an event, a killed client leaves none.
    No command is sent twice, so that a lost connection cannot count an event twice; a `StoreError` surfaces instead,
    and what has ids may be sent again. Scripts compute with floats: numbers of buckets are exact within ±2**53.

    A server that is gone costs one call `timeout_s`; those of the next `PAUSE_S` fail at once. Then it is tried again.

    Durability is the server's: with `appendonly yes` and `appendfsync everysec` it loses at most a second.
    Memory: all of it in RAM; with integer ids an event takes 29 to 33 bytes, a person 180 more; a counter takes 90
    bytes, and 26 for each bucket after the first. The server must have `maxmemory-policy noeviction`.
    """

    CHUNK = 500
    """Events or snapshot records in one script; an append of more is several."""
    SEED_SECONDS = 3600
    """How long a snapshot may take; what a killed process wrote of one expires then."""
    PAUSE_S = 0.5

    def __init__(
        self, url: str, keeps: Retention | None = None, *, prefix: str = "feedline:", timeout_s: float = 1.0
    ) -> None:
        self._prefix, self._keeps = prefix, keeps or Retention()
        self.place = f"store.url = {_without_password(url)!r} with store.prefix = {prefix!r}"
        never_again = Retry(NoBackoff(), 0)
        try:
            self._client = redis.Redis.from_url(
                url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s, retry=never_again
            )
            self._client.ping()
        except (ValueError, redis.RedisError) as error:
            raise InputError(
                f"store.url = {_without_password(url)!r} cannot be used ({error}); start redis-server there or "
                "correct store.url"
            ) from error
        self._maps = [prefix + name for name in MAPS]
        self._people, self._histories, self._counters, self._tastes, self._ids = self._maps
        script = self._client.register_script
        self._append, self._erase = script(_scripts.APPEND), script(_scripts.ERASE)
        self._read_history, self._read_counters = script(_scripts.READ_HISTORY), script(_scripts.READ_COUNTERS)
        self._replace, self._forget = script(_scripts.REPLACE), script(_scripts.FORGET)
        self._publish = script(_scripts.PUBLISH)
        self._gone_until = 0.0

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> np.ndarray:
        """Apply events in the given order; each is applied whole or not at all."""
        applied = bytearray()
        keeps, now = self._keeps, self._keeps.clock()
        for chunk in batched(zip(events, increments, strict=True), self.CHUNK):
            packed = [
                (
                    user_key(event.user_id),
                    pack_event(event),
                    int(event.positive),
                    [(counter_key(key), bucket, keep) for key, bucket, keep in counted],
                    digest(event.event_id) if event.event_id else b"",
                )
                for event, counted in chunk
            ]
            with self._call():
                applied += self._append(self._maps, [pack(packed), BLOCK, keeps.events, now, keeps.ids, keeps.ids_ms])
        return np.frombuffer(applied, dtype=np.uint8) == ord("1")

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The history of one person."""
        with self._call():
            packed = self._read_history(self._maps, [user_key(user_id), BLOCK])
        return self._keeps.told(unpack_events(user_id, packed))

    def taste(self, user_id: Id) -> Taste:
        """What one person has said."""
        key: Any = user_key(user_id)
        with self._call():
            found: Any = self._client.hget(self._tastes, key)
        return unpack_taste(found)

    def set_taste(self, user_id: Id, taste: Taste) -> None:
        """Keep this in place of it."""
        key: Any = user_key(user_id)
        packed: Any = pack_taste(taste)
        with self._call():
            if taste:
                self._client.hset(self._tastes, key, packed)
            else:
                self._client.hdel(self._tastes, key)

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        with self._call():
            lengths, packed = self._read_counters(self._maps, [keys.astype(">u8").tobytes()])
        return unpack_counts(packed, np.array(lengths.split(), dtype=np.int64))

    def erase(self, user_id: Id, keys: np.ndarray) -> bool:
        """Forget a person and the counters of `keys`, in one script."""
        with self._call():
            return bool(self._erase(self._maps, [user_key(user_id), BLOCK, keys.astype(">u8").tobytes()]))

    def expire(self) -> int:
        """Delete what is too old, person by person; whoever does something meanwhile is left for the next time."""
        keeps, oldest, now, touched = self._keeps, self._keeps.oldest_ms(), self._keeps.clock(), set[bytes]()
        for user, record in [] if keeps.age_ms is None else self._all(self._people):
            with self._call():
                packed = self._read_history(self._maps, [user, BLOCK])
            arrived = unpack_events("", packed)[-keeps.events :]
            kept = [event for event in arrived if event.timestamp >= oldest]
            if len(kept) < len(arrived):
                blocks = [block for _, block in packed_blocks(user, kept)]
                with self._call():
                    done = self._replace(self._maps, [user, BLOCK, record, RECORD.pack(len(kept), 0), *blocks])
                if done:
                    touched.add(user)
        for user, before in self._all(self._ids):
            after = Remembered(before, keeps, now).packed()
            if len(after) < len(before):
                with self._call():
                    done = self._forget(self._maps, [user, before, after])
                if done:
                    touched.add(user)
        return len(touched)

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame, meaning: str = "") -> bool:
        """Fill an empty store: write the snapshot aside, then rename it into place in one script.

        Of two processes that seed at once the first to finish wins.

        Raises:
            StoreError: it took more than `SEED_SECONDS`; the store is as it was.
        """
        retain = self._keeps.events
        with self._call():
            if self._client.exists(self._prefix + "meaning", self._people):
                return False
            aside = f"{self._prefix}seeding:{uuid4().hex}:"
            expires = self._client.time()[0] + self.SEED_SECONDS
            snapshot = {
                "counters": packed_counters(counters),
                "histories": packed_histories(histories, retain),
                "people": packed_people(histories, retain),
            }
            sizes = dict.fromkeys(snapshot, 0)
            with self._client.pipeline(transaction=True) as pipe:
                for name, pairs in snapshot.items():
                    for chunk in batched(pairs, self.CHUNK):
                        pipe.hset(aside + name, mapping=dict(chunk))
                        pipe.expireat(aside + name, expires)
                        pipe.execute()
                        sizes[name] += len(chunk)
            return bool(self._publish([], [self._prefix, aside, pack(sizes), meaning]))

    def meaning(self) -> str | None:
        """What the snapshot said that its counters count."""
        with self._call():
            found = self._client.get(self._prefix + "meaning")
        return found.decode() if isinstance(found, bytes) else None

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    def _all(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Every entry of a map."""
        with self._call():
            yield from self._client.hscan_iter(table, count=self.CHUNK)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """What goes wrong in a call of the server, in the words of the setting."""
        if time.monotonic() < self._gone_until:
            raise StoreError(f"{self.place} did not answer just now; it is tried again in {self.PAUSE_S:g} s")
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._gone_until = time.monotonic() + self.PAUSE_S
            raise StoreError(f"{self.place} does not answer ({error}); start redis-server there") from error
        except redis.OutOfMemoryError as error:
            raise StoreError(f"{self.place} is full ({error}); raise maxmemory of the server") from error
        except redis.RedisError as error:
            raise StoreError(f"{self.place} refuses ({error}); see the server's log") from error


def _without_password(url: str) -> str:
    """`url` as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
