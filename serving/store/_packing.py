"""The bytes that LMDB and Redis keep: five maps, the same in both.

| map | key | value |
|---|---|---|
| `people` | id of a person | `RECORD`: events ever written, first block not yet deleted |
| `histories` | id, number of the block (4 bytes, big-endian) | `BLOCK` events as they arrived, each a msgpack array |
| `tastes` | id of a person who has said something | their lists, msgpack |
| `ids` | id of a person whose events have ids | an `ID` for each event that is remembered, the last one last |
| `counters` | the counter's key (8 bytes, big-endian) | a `BUCKET` for each bucket, ascending |

Ids keep their type: 1 and "1" are two people. A history is in blocks so that an append rewrites a part of it only.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from hashlib import blake2b
from itertools import islice
from typing import TypeVar, cast

import msgpack
import numpy as np
import polars as pl

from features.errors import InputError
from features.online import COUNTER_SCHEMA, Counts, Event, Id, Retention
from features.taste import NOTHING, Taste

T = TypeVar("T")

MAPS = ("people", "histories", "counters", "tastes", "ids")
BLOCK = 32
"""Events under one key: an append rewrites fewer than this, and 1,000 events are read with 33 look-ups."""
RECORD = struct.Struct("<qq")
"""Of a person: how many events were ever put into blocks (event n is in block n // BLOCK); the first block kept."""
BUCKET = struct.Struct("<qqq")
"""Of a counter: bucket, events, positives."""
ID = struct.Struct(">8sq")
"""Of an event with an id: the digest of that, when it was applied (Unix time, ms)."""


def pack(value: object) -> bytes:
    """`value` as the msgpack that Redis's scripts can read: it has no type for bytes, they travel as text does."""
    return cast(bytes, msgpack.packb(value, use_bin_type=False))


def pack_event(event: Event) -> bytes:
    """An event of a history; whose it is, the key says."""
    return pack((event.item_id, event.timestamp, event.action, event.value, event.positive))


def unpack_events(user_id: Id, packed: bytes) -> list[Event]:
    """A run of packed events."""
    unpacker = msgpack.Unpacker(use_list=False)
    unpacker.feed(packed)
    return [Event(user_id, *fields) for fields in unpacker]


def pack_taste(taste: Taste) -> bytes:
    """What a person has said."""
    return pack(astuple(taste))


def unpack_taste(packed: bytes | None) -> Taste:
    """The same back; nothing said where nothing is kept."""
    return NOTHING if packed is None else Taste(*msgpack.unpackb(packed, use_list=False))


def digest(event_id: str) -> bytes:
    """What is remembered of an event's id: two of a person are taken for one once in 2⁶⁴."""
    return blake2b(event_id.encode(), digest_size=8).digest()


class Remembered:
    """The ids of one person's events, as `features.online.Retention` keeps them."""

    def __init__(self, packed: bytes, keeps: Retention, now: int) -> None:
        self._keeps, self._now = keeps, now
        self._at = {name: at for name, at in ID.iter_unpack(packed) if at > now - keeps.ids_ms}

    def add(self, event_id: str) -> bool:
        """Remember an id; whether it was not."""
        name = digest(event_id)
        if name in self._at:
            return False
        self._at[name] = self._now
        if len(self._at) > self._keeps.ids:
            del self._at[next(iter(self._at))]
        return True

    def packed(self) -> bytes:
        """What is to be kept."""
        return b"".join([ID.pack(*pair) for pair in self._at.items()])


def user_key(user_id: Id) -> bytes:
    """The key of a person; LMDB's keys end at 511 bytes, so a long string is known by its digest."""
    if isinstance(user_id, str):
        text = user_id.encode()
        return b"s" + text if len(text) <= 256 else b"h" + blake2b(text, digest_size=32).digest()
    if not -(2**63) <= user_id < 2**63:
        raise InputError(f"id = {user_id} is beyond int64; use an int64 or a string")
    return b"i" + struct.pack(">q", user_id)


def block_key(user: bytes, block: int) -> bytes:
    """The key of a block of a person's history."""
    return user + block.to_bytes(4, "big")


def counter_key(key: int) -> bytes:
    """The key of a counter; bytes sort as the numbers do."""
    return key.to_bytes(8, "big")


def counter_keys(keys: np.ndarray) -> list[bytes]:
    """The same for many, uint64 [K]."""
    return keys.astype(">u8").view("V8").tolist()


def unpack_counts(packed: bytes, lengths: np.ndarray) -> Counts:
    """Counters from their values, one after the other, and the number of bytes of each, int64 [K]."""
    buckets, events, positives = np.frombuffer(packed, dtype="<i8").reshape(-1, 3).T.astype(np.int64, order="C")
    return Counts(lengths // BUCKET.size, buckets, events, positives)


def packed_counters(counters: pl.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """The map `counters` of a snapshot, in the order of the keys."""
    rows = counters.select(COUNTER_SCHEMA.names()).sort("key", "bucket")
    keys, lengths = np.unique(rows["key"].to_numpy(), return_counts=True)
    packed = rows.select("bucket", "events", "positives").to_numpy().astype("<i8", order="C").tobytes()
    sizes = lengths * BUCKET.size
    ends = np.cumsum(sizes)
    for key, start, end in zip(counter_keys(keys), (ends - sizes).tolist(), ends.tolist(), strict=True):
        yield key, packed[start:end]


def packed_people(histories: Mapping[Id, Sequence[Event]], retain: int) -> Iterator[tuple[bytes, bytes]]:
    """The map `people` of a snapshot."""
    for user_id, history in histories.items():
        if history:
            yield user_key(user_id), RECORD.pack(min(len(history), retain), 0)


def packed_histories(histories: Mapping[Id, Sequence[Event]], retain: int) -> Iterator[tuple[bytes, bytes]]:
    """The map `histories` of a snapshot."""
    for user_id, history in histories.items():
        yield from packed_blocks(user_key(user_id), history[-retain:])


def packed_blocks(user: bytes, history: Sequence[Event]) -> Iterator[tuple[bytes, bytes]]:
    """The blocks of one history, whose record is `RECORD.pack(len(history), 0)`."""
    for block, events in enumerate(batched(history, BLOCK)):
        yield block_key(user, block), b"".join(map(pack_event, events))


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values; the last may be shorter."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
