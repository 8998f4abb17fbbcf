"""A store in a directory of this host: LMDB, a memory-mapped B+ tree.

Each map of `_packing` is a database of the environment.

    store = LmdbStore(Path("runs/quickstart/state"), retain=1000)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import polars as pl

from features.errors import InputError
from features.online import Counts, Event, Id, Increment
from serving.store._packing import (
    BLOCK,
    BUCKET,
    MAPS,
    RECORD,
    block_key,
    counter_key,
    counter_keys,
    pack_event,
    packed_counters,
    packed_histories,
    packed_people,
    unpack_counts,
    unpack_history,
    user_key,
)

NO_RECORD = RECORD.pack(0, 0)


class LmdbStore:
    """A `StateStore` in a directory, shared by the processes of one host.

    Readers take no lock and see whole appends only. `append` and `seed` are one write transaction each; writers wait
    for one another, across processes. A process killed at any moment leaves the state before or after its append.

    Durability: with `durable`, an append returns when it is on disk, which costs two fsyncs.
    Memory: the file is mapped; hot pages are in the page cache once for all processes. With integer ids an event
    takes 30 to 43 bytes of disk, a person 90 more; a counter takes 42 bytes, and 24 for each bucket after the first.

    A process opens a directory once, and after a fork rather than before; its threads may share the store.
    """

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
        self._meta = self._env.open_db(b"meta")
        self._people, self._histories, self._counters = (self._env.open_db(name.encode()) for name in MAPS)

    def append(self, events: Sequence[Event], increments: Sequence[Sequence[Increment]]) -> None:
        """Apply events in the given order, in one transaction: all of them or none."""
        with self._write() as txn:
            for event, counted in zip(events, increments, strict=True):
                self._append_to_history(txn, event)
                for key, bucket, keep in counted:
                    packed_key = counter_key(key)
                    counter = txn.get(packed_key, b"", db=self._counters)
                    counter = _incremented(counter, bucket, keep, event.positive)
                    txn.put(packed_key, counter, db=self._counters)

    def history(self, user_id: Id) -> tuple[Event, ...]:
        """The last events of one person, oldest first."""
        key = user_key(user_id)
        with self._env.begin() as txn:
            written, first_block = RECORD.unpack(txn.get(key, NO_RECORD, db=self._people))
            keys = [block_key(key, block) for block in range(first_block, -(-written // BLOCK))]
            packed = b"".join([txn.get(key, b"", db=self._histories) for key in keys])
        return unpack_history(user_id, packed, self._retain)

    def counts(self, keys: np.ndarray) -> Counts:
        """The counters of `keys`."""
        with self._env.begin(db=self._counters) as txn:
            found = [txn.get(key, b"") for key in counter_keys(keys)]
        return unpack_counts(b"".join(found), np.array([len(counter) for counter in found], dtype=np.int64))

    def seed(self, histories: Mapping[Id, Sequence[Event]], counters: pl.DataFrame) -> bool:
        """Fill an empty store in one transaction; of two processes that seed at once the second finds it filled."""
        with self._write() as txn:
            if txn.get(b"filled", db=self._meta) or txn.stat(self._people)["entries"]:
                return False
            txn.cursor(self._counters).putmulti(packed_counters(counters), append=True)
            txn.cursor(self._histories).putmulti(packed_histories(histories, self._retain))
            txn.cursor(self._people).putmulti(packed_people(histories, self._retain))
            txn.put(b"filled", b"1", db=self._meta)
        return True

    def close(self) -> None:
        """Release the map and the files."""
        self._env.close()

    def _append_to_history(self, txn: lmdb.Transaction, event: Event) -> None:
        key = user_key(event.user_id)
        written, first_block = RECORD.unpack(txn.get(key, NO_RECORD, db=self._people))
        last_key = block_key(key, written // BLOCK)
        block = txn.get(last_key, b"", db=self._histories)
        txn.put(last_key, b"".join((block, pack_event(event))), db=self._histories)
        keep_from = max(first_block, (written + 1 - self._retain) // BLOCK)
        for old in range(first_block, keep_from):
            txn.delete(block_key(key, old), db=self._histories)
        txn.put(key, RECORD.pack(written + 1, keep_from), db=self._people)

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
