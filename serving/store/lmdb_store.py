"""A store in a directory of this host: LMDB, a memory-mapped B+ tree.

Each map of `_packing` is a database of the environment.

    store = LmdbStore(Path("runs/quickstart/state"))
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import polars as pl

from features.errors import InputError, StoreError
from features.online import Counts, Event, Id, Increment, Retention
from features.taste import Taste
from serving.store._packing import (
    BLOCK,
    BUCKET,
    MAPS,
    RECORD,
    Remembered,
    block_key,
    counter_key,
    counter_keys,
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

NO_RECORD = RECORD.pack(0, 0)

EXPIRED_AT_ONCE = 500
"""People who are looked through in one write transaction: appends wait for it."""


class LmdbStore:
    """A `StateStore` in a directory, shared by the processes of one host.

    Readers take no lock and see whole appends only. Whatever writes is one transaction; writers wait for one another,
    across processes. A process killed at any moment leaves the state before or after its append, and so does a full
    disk or a full map.

    Durability: with `durable`, an append returns when it is on disk, which costs two fsyncs.
    Memory: the file is mapped; hot pages are in the page cache once for all processes. With integer ids an event
    takes 30 to 43 bytes of disk, a person 90 more; a counter takes 42 bytes, and 24 for each bucket after the first;
    an event's id takes 16 bytes for as long as it is remembered. The file does not shrink: what is erased is free for
    what comes, and its bytes are there until something has come.

    A process opens a directory once, and after a fork rather than before; its threads may share the store.
    """

    def __init__(
        self, path: Path, keeps: Retention | None = None, *, map_size_gb: float = 16.0, durable: bool = True
    ) -> None:
        self._path, self._keeps, self._map_size_gb = path, keeps or Retention(), map_size_gb
        self.place = f"store.path = {str(path)!r}"
        map_size = int(map_size_gb * 2**30)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(str(path), map_size=map_size, max_dbs=8, max_readers=1024, sync=durable)
            self._env.reader_check()  # A killed reader would keep old pages from being used again.
            self._meta = self._env.open_db(b"meta")
            self._people, self._histories, self._counters, self._tastes, self._ids = (
                self._env.open_db(name.encode()) for name in MAPS
            )
        except (OSError, lmdb.Error) as error:
            raise InputError(
                f"{self.place} cannot be opened ({error}); name a writable directory of this host"
            ) from error

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> np.ndarray:
        """Apply events in the given order, in one transaction: all of them or none."""
        applied, now = np.ones(len(events), dtype=bool), self._keeps.clock()
        remembered: dict[bytes, Remembered] = {}
        with self._write() as txn:
            for place, (event, counted) in enumerate(zip(events, increments, strict=True)):
                user = user_key(event.user_id)
                if event.event_id:
                    if user not in remembered:
                        remembered[user] = Remembered(bytes(txn.get(user, b"", db=self._ids)), self._keeps, now)
                    if not remembered[user].add(event.event_id):
                        applied[place] = False
                        continue
                self._append_to_history(txn, user, event)
                for key, bucket, keep in counted:
                    packed_key = counter_key(key)
                    counter = txn.get(packed_key, b"", db=self._counters)
                    counter = _incremented(counter, bucket, keep, event.positive)
                    txn.put(packed_key, counter, db=self._counters)
            for user, ids in remembered.items():
                txn.put(user, ids.packed(), db=self._ids)
        return applied

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The history of one person."""
        with self._env.begin() as txn:
            packed = self._packed_history(txn, user_key(user_id))
        return self._keeps.told(unpack_events(user_id, packed))

    def taste(self, user_id: Id) -> Taste:
        """What one person has said."""
        with self._env.begin(db=self._tastes) as txn:
            return unpack_taste(txn.get(user_key(user_id)))

    def set_taste(self, user_id: Id, taste: Taste) -> None:
        """Keep this in place of it."""
        with self._write() as txn:
            if taste:
                txn.put(user_key(user_id), pack_taste(taste), db=self._tastes)
            else:
                txn.delete(user_key(user_id), db=self._tastes)

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        with self._env.begin(db=self._counters) as txn:
            found = [txn.get(key, b"") for key in counter_keys(keys)]
        return unpack_counts(b"".join(found), np.array([len(counter) for counter in found], dtype=np.int64))

    def erase(self, user_id: Id, keys: np.ndarray) -> bool:
        """Forget a person and the counters of `keys`, in one transaction."""
        user = user_key(user_id)
        with self._write() as txn:
            gone = [self._delete_history(txn, user)]
            gone += [txn.delete(user, db=table) for table in (self._tastes, self._ids)]
            gone += [txn.delete(key, db=self._counters) for key in counter_keys(keys)]
        return any(gone)

    def expire(self) -> int:
        """Delete what is too old, some people at a time; of how many."""
        touched = set[bytes]()
        oldest, now = self._keeps.oldest_ms(), self._keeps.clock()
        for users in [] if self._keeps.age_ms is None else self._keys(self._people):
            with self._write() as txn:
                for user in users:
                    arrived = unpack_events("", self._packed_history(txn, user))[-self._keeps.events :]
                    kept = [event for event in arrived if event.timestamp >= oldest]
                    if len(kept) < len(arrived):
                        touched.add(user)
                        self._delete_history(txn, user)
                        if kept:
                            txn.cursor(self._histories).putmulti(packed_blocks(user, kept))
                            txn.put(user, RECORD.pack(len(kept), 0), db=self._people)
        for users in self._keys(self._ids):
            with self._write() as txn:
                for user in users:
                    before = bytes(txn.get(user, b"", db=self._ids))
                    after = Remembered(before, self._keeps, now).packed()
                    if len(after) < len(before):
                        touched.add(user)
                        txn.put(user, after, db=self._ids) if after else txn.delete(user, db=self._ids)
        return len(touched)

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame, meaning: str = "") -> bool:
        """Fill an empty store in one transaction; of two processes that seed at once the second finds it filled."""
        retain = self._keeps.events
        with self._write() as txn:
            if txn.get(b"meaning", db=self._meta) is not None or txn.stat(self._people)["entries"]:
                return False
            txn.cursor(self._counters).putmulti(packed_counters(counters), append=True)
            txn.cursor(self._histories).putmulti(packed_histories(histories, retain))
            txn.cursor(self._people).putmulti(packed_people(histories, retain))
            txn.put(b"meaning", meaning.encode(), db=self._meta)
        return True

    def meaning(self) -> str | None:
        """What the snapshot said that its counters count."""
        with self._env.begin(db=self._meta) as txn:
            found = txn.get(b"meaning")
        return None if found is None else found.decode()

    def close(self) -> None:
        """Release the map and the files."""
        self._env.close()

    def _packed_history(self, txn: lmdb.Transaction, user: bytes) -> bytes:
        """All blocks of one person."""
        written, first_block = RECORD.unpack(txn.get(user, NO_RECORD, db=self._people))
        keys = [block_key(user, block) for block in range(first_block, -(-written // BLOCK))]
        return b"".join([txn.get(key, b"", db=self._histories) for key in keys])

    def _append_to_history(self, txn: lmdb.Transaction, user: bytes, event: Event) -> None:
        written, first_block = RECORD.unpack(txn.get(user, NO_RECORD, db=self._people))
        last_key = block_key(user, written // BLOCK)
        block = txn.get(last_key, b"", db=self._histories)
        txn.put(last_key, b"".join((block, pack_event(event))), db=self._histories)
        keep_from = max(first_block, (written + 1 - self._keeps.events) // BLOCK)
        for old in range(first_block, keep_from):
            txn.delete(block_key(user, old), db=self._histories)
        txn.put(user, RECORD.pack(written + 1, keep_from), db=self._people)

    def _delete_history(self, txn: lmdb.Transaction, user: bytes) -> bool:
        """Whether there was one."""
        written, first_block = RECORD.unpack(txn.get(user, NO_RECORD, db=self._people))
        for block in range(first_block, -(-written // BLOCK)):
            txn.delete(block_key(user, block), db=self._histories)
        return txn.delete(user, db=self._people)

    def _keys(self, table: Any) -> Iterator[list[bytes]]:
        """All keys of a map, some at a time; what is read is not held open between them."""
        after = b""
        while True:
            with self._env.begin(db=table) as txn:
                cursor = txn.cursor()
                found = cursor.set_range(after) if after else cursor.first()
                keys = list(islice(cursor.iternext(values=False), EXPIRED_AT_ONCE)) if found else []
            if not keys:
                return
            yield keys
            after = keys[-1] + b"\0"

    @contextmanager
    def _write(self) -> Iterator[lmdb.Transaction]:
        """One write transaction, undone by whatever goes wrong; what is full is told in the words of the setting."""
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except (lmdb.MapFullError, lmdb.MapResizedError) as error:
            raise StoreError(
                f"store.map_size_gb = {self._map_size_gb:g} is less than the store in {str(self._path)!r} needs; "
                "set more and restart every process that uses it"
            ) from error
        except lmdb.Error as error:
            raise StoreError(f"{self.place} cannot be written ({error}); make room on its disk") from error


def _incremented(counter: bytes | memoryview, bucket: int, keep: int, positive: bool) -> bytes:
    """A packed counter with one event more in `bucket`, without the buckets it no longer looks back on."""
    start = end = len(counter)
    events = positives = 0
    while start:  # From the newest bucket on: time is nearly always in order.
        found, *numbers = BUCKET.unpack_from(counter, start - BUCKET.size)
        if found < bucket:
            break
        start -= BUCKET.size
        if found == bucket:
            events, positives = numbers
            break
        end = start
    counter = b"".join((counter[:start], BUCKET.pack(bucket, events + 1, positives + positive), counter[end:]))
    newest = BUCKET.unpack_from(counter, len(counter) - BUCKET.size)[0]
    first = 0
    while BUCKET.unpack_from(counter, first)[0] <= newest - keep:
        first += BUCKET.size
    return counter[first:]
