"""Where stores are kept, and words of their tests."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4
from zlib import crc32

import numpy as np
import polars as pl
import pytest

from features.errors import InputError
from features.online import COUNTER_SCHEMA, Counts, Event, Id, Increment, MemoryStore, Retention, StateStore, now_ms
from serving.store import Config, LmdbStore, RedisStore

KINDS = ["memory", "lmdb", "redis"]
SHARED_KINDS = ["lmdb", "redis"]
NewPlace = Callable[..., "Place"]


class Place:
    """Somewhere to keep one store: opened again it is the same store, unless it is memory."""

    def __init__(self, kind: str, directory: Path, url: str, *, durable: bool = False, **keeps: Any) -> None:
        self.kind, self.directory, self.keeps = kind, directory, keeps
        self.clock: Callable[[], int] = now_ms
        if kind != "memory":
            self.config = Config.model_validate(
                {"kind": kind, "url": url, "prefix": f"{uuid4().hex}:", "durable": durable}
            )

    def open(self) -> StateStore:
        keeps = Retention(**self.keeps, clock=self.clock)
        if self.kind == "memory":
            return MemoryStore(keeps=keeps)
        if self.kind == "lmdb":
            return LmdbStore(self.directory / self.config.path, keeps, durable=self.config.durable)
        return RedisStore(self.config.url, keeps, prefix=self.config.prefix)


@contextmanager
def redis_server(directory: Path, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Its URL and its process."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        reason = "neither redis-server nor valkey-server is installed (apt-get install redis-server)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    port = port or free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory)]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(url), "redis-server to answer")
            yield url, server
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def answers(url: str) -> bool:
    try:
        RedisStore(url).close()
    except InputError:
        return False
    return True


def event(user: Id, item: Id, timestamp: int = 0, positive: bool = False) -> Event:
    return Event(user, item, timestamp, "click", 0.5, positive)


def key(side: str, name: Id) -> int:
    """Of the counter of all time of a person or an item; `PROGRAM` below has the same."""
    return crc32(repr((side, name)).encode())


def put(store: StateStore, events: Sequence[Event]) -> None:
    """Append events that count once for their person and once for their item."""
    ours = [[Increment(key("user", e.user_id), 0, 1), Increment(key("item", e.item_id), 0, 1)] for e in events]
    store.append(events, ours)


def asked(store: StateStore, keys: Sequence[int]) -> Counts:
    found = store.counts(np.array(keys, dtype=np.uint64))
    assert found.lengths.shape == (len(keys),)
    for column in (found.buckets, found.events, found.positives):
        assert column.shape == (found.lengths.sum(),)
        assert column.dtype == found.lengths.dtype == np.int64
    return found


def buckets(store: StateStore, *keys: int) -> list[list[tuple[int, int, int]]]:
    """(bucket, events, positives) of each key."""
    found = asked(store, keys)
    rows = list(zip(found.buckets.tolist(), found.events.tolist(), found.positives.tolist(), strict=True))
    ends = np.cumsum(found.lengths).tolist()
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def totals(store: StateStore, side: str, names: Sequence[Id]) -> list[tuple[int, int]]:
    """(events, positives) of people or items, of all time."""
    found = buckets(store, *(key(side, name) for name in names))
    return [rows[0][1:] if rows else (0, 0) for rows in found]


def events_of(store: StateStore, side: str, names: Sequence[Id]) -> list[int]:
    return [events for events, _ in totals(store, side, names)]


def snapshot(rows: Sequence[tuple[int, int, int, int]] = ()) -> pl.DataFrame:
    """Counters to seed: (key, bucket, events, positives)."""
    return pl.DataFrame(rows, schema=COUNTER_SCHEMA, orient="row")
