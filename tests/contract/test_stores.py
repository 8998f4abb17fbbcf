"""The contract of `StateStore`, over every implementation.

    python -m pytest tests/contract/test_stores.py

Redis is a real server, started here on a free port; without the program its tests are skipped, and fail in CI.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import InputError, StoreError
from features.online import COUNTER_SCHEMA, Counts, Event, Id, Increment, MemoryStore, StateStore
from serving.store import Config, LmdbStore, RedisStore, open_store

ROOT = Path(__file__).parents[2]
KINDS = ["memory", "lmdb", "redis"]
SHARED_KINDS = ["lmdb", "redis"]
NewPlace = Callable[..., "Place"]


class Place:
    """Somewhere to keep one store: opened again it is the same store, unless it is memory."""

    def __init__(self, kind: str, directory: Path, url: str, *, retain: int, durable: bool) -> None:
        self.kind, self.directory, self.retain = kind, directory, retain
        if kind != "memory":
            self.config = Config.model_validate(
                {"kind": kind, "url": url, "prefix": f"{uuid4().hex}:", "durable": durable}
            )

    def open(self) -> StateStore:
        if self.kind == "memory":
            return MemoryStore(self.retain)
        return open_store(self.config, self.directory, self.retain)


@contextmanager
def redis_server(directory: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Its URL and its process."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        reason = "neither redis-server nor valkey-server is installed (apt-get install redis-server)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(directory)]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(url), "redis-server to answer")
            yield url, server
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def new_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
    """Makes empty places of the kind that the test asks for."""

    def new(kind: str, *, retain: int = 1000, durable: bool = False) -> Place:
        url = request.getfixturevalue("redis_url") if kind == "redis" else ""
        return Place(kind, tmp_path_factory.mktemp("store"), url, retain=retain, durable=durable)

    return new


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, new_place: NewPlace) -> Iterator[StateStore]:
    """An empty store that retains three events."""
    store = new_place(request.param, retain=3).open()
    yield store
    store.close()


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


def test_an_empty_store_knows_nobody(store: StateStore) -> None:
    assert store.history(7) == ()
    assert buckets(store, 0, 2**64 - 1) == [[], []]
    assert buckets(store) == []


def test_known_answer(store: StateStore) -> None:
    events = [event(1, 10 + n, timestamp=100 + n, positive=n == 0) for n in range(5)]
    put(store, events[:2])
    put(store, [])
    put(store, [*events[2:], event(2, 10)])
    assert store.history(1) == tuple(events[2:])
    assert store.history(2) == (event(2, 10),)
    assert totals(store, "user", [1, 2, 3]) == [(5, 1), (1, 0), (0, 0)]
    assert totals(store, "item", [11, 10, 99, 10]) == [(1, 0), (2, 1), (0, 0), (2, 1)]


def test_counters_in_buckets(store: StateStore) -> None:
    """Time runs backwards now and then: an older bucket is put in its place, or not at all once it is out of sight."""

    def count(bucket: int, positive: bool = False) -> list[tuple[int, int, int]]:
        increments = [Increment(5, bucket, 3), Increment(2**64 - 1, bucket // 10, 1)]
        store.append([event(1, 10, positive=positive)], [increments])
        return buckets(store, 5)[0]

    assert count(5) == [(5, 1, 0)]
    assert count(7, positive=True) == [(5, 1, 0), (7, 1, 1)]
    assert count(6) == [(5, 1, 0), (6, 1, 0), (7, 1, 1)]
    assert count(5, positive=True) == [(5, 2, 1), (6, 1, 0), (7, 1, 1)]
    assert count(8) == [(6, 1, 0), (7, 1, 1), (8, 1, 0)]
    assert count(5) == [(6, 1, 0), (7, 1, 1), (8, 1, 0)]
    assert count(-50) == [(6, 1, 0), (7, 1, 1), (8, 1, 0)]
    assert count(10) == [(8, 1, 0), (10, 1, 0)]
    assert count(1000) == [(1000, 1, 0)]
    unknown = 6
    assert buckets(store, 2**64 - 1, unknown, 5, 5) == [[(100, 1, 0)], [], [(1000, 1, 0)], [(1000, 1, 0)]]
    assert len(store.history(1)) == 3


def test_an_event_may_count_for_nothing_or_twice(store: StateStore) -> None:
    store.append([event(1, 10), event(1, 11, positive=True)], [[], [Increment(5, 2, 9)] * 2])
    assert buckets(store, 5) == [[(2, 2, 2)]]
    assert store.history(1) == (event(1, 10), event(1, 11, positive=True))


def test_a_narrower_view_takes_effect_with_the_next_event(store: StateStore) -> None:
    store.append([event(1, 10)] * 4, [[Increment(5, bucket, 100)] for bucket in (1, 2, 50, 90)])
    assert [bucket for bucket, _, _ in buckets(store, 5)[0]] == [1, 2, 50, 90]
    store.append([event(1, 10)], [[Increment(5, 50, 60)]])
    assert buckets(store, 5) == [[(50, 2, 0), (90, 1, 0)]]


def test_thousands_of_keys_at_once(store: StateStore) -> None:
    known = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(3000)]
    assert store.seed({}, snapshot([(key, n, n + 1, 0) for n, key in enumerate(known)]))
    assert buckets(store, *known, 7) == [*([(n, n + 1, 0)] for n in range(3000)), []]
    many = asked(store, known[:1] * 20_000)
    assert many.lengths.sum() == many.events.sum() == 20_000


def test_an_event_comes_back_as_it_was(store: StateStore) -> None:
    events = (
        Event("ö\0x", -(2**63), -1),
        Event("ö\0x", "日本" * 500, 2**62, "a b", -1.5, positive=True),
        Event("ö\0x", "", 0, "", 0.0),
    )
    put(store, events)
    assert store.history("ö\0x") == (events[0], events[2], events[1])
    assert totals(store, "item", [event.item_id for event in events]) == [(1, 0), (1, 1), (1, 0)]


def test_ids_keep_their_type(store: StateStore) -> None:
    ids: list[Id] = [1, "1", "i1", "s1", "", "1\0", "x" * 600, "x" * 601]
    for n, name in enumerate(ids):
        put(store, [event(name, name, n)] * 2)
    assert [store.history(name) for name in ids] == [(event(name, name, n),) * 2 for n, name in enumerate(ids)]


def test_seed_is_taken_once(store: StateStore) -> None:
    history = [event(1, n, n) for n in range(5)]
    rows = [(9, 4, 70, 7), (2**64 - 1, 0, 2**40, 1), (9, -3, 2, 1), (0, 0, 1, 0)]
    assert store.seed({1: history, "new": []}, snapshot(rows))
    assert not store.seed({1: history[:1], 2: history}, snapshot([(9, 4, 1, 1)]))
    assert store.history(1) == tuple(history[2:])
    assert store.history("new") == store.history(2) == ()
    assert buckets(store, 0, 9, 2**64 - 1) == [[(0, 1, 0)], [(-3, 2, 1), (4, 70, 7)], [(0, 2**40, 1)]]
    store.append([event(1, 10, 7, positive=True)], [[Increment(9, 4, 10), Increment(2**64 - 1, 0, 1)]])
    assert store.history(1) == (*history[3:], event(1, 10, 7, positive=True))
    assert buckets(store, 9, 2**64 - 1) == [[(-3, 2, 1), (4, 71, 8)], [(0, 2**40 + 1, 2)]]


def test_a_store_with_events_takes_no_seed(store: StateStore) -> None:
    store.append([event(1, 10)], [[]])
    assert not store.seed({2: [event(2, 10)]}, snapshot([(9, 0, 1, 0)]))
    assert store.history(2) == ()
    assert buckets(store, 9) == [[]]


def test_an_empty_seed_counts(store: StateStore) -> None:
    assert store.seed({}, snapshot())
    assert not store.seed({2: [event(2, 10)]}, snapshot())


IDS: list[Id] = [0, 1, -5, "0", "1", "s"]
KEYS = [0, 1, 255, 256, 2**63, 2**64 - 1]
EVENTS = st.builds(
    Event,
    user_id=st.sampled_from(IDS),
    item_id=st.sampled_from(IDS),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    action=st.text(max_size=3),
    value=st.none() | st.floats(allow_nan=False),
    positive=st.booleans(),
)
INCREMENTS = st.builds(
    Increment,
    key=st.sampled_from(KEYS[:3]) | st.sampled_from(KEYS),
    bucket=st.integers(-3, 12) | st.sampled_from([-(2**52), 2**52]),
    keep=st.integers(1, 6) | st.just(2**40),
)
COUNTED = st.tuples(EVENTS, st.lists(INCREMENTS, max_size=5))


@pytest.mark.parametrize("kind", SHARED_KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    retain=st.integers(1, 5) | st.integers(30, 140),
    batches=st.lists(st.lists(COUNTED, max_size=6), max_size=8),
    repeats=st.sampled_from([1, 1, 40]),
    seeded=st.integers(0, 8),
    keys=st.lists(st.sampled_from([*KEYS, 77]), max_size=12),
)
def test_it_holds_what_memory_holds(
    new_place: NewPlace,
    kind: str,
    retain: int,
    batches: list[list[tuple[Event, list[Increment]]]],
    repeats: int,
    seeded: int,
    keys: list[int],
) -> None:
    """For any stream, and with a snapshot of memory taken anywhere in it; `repeats` fills many blocks."""
    memory = MemoryStore(retain)
    for batch in batches[:seeded]:
        memory.append([event for event, _ in batch] * repeats, [increments for _, increments in batch] * repeats)
    store = new_place(kind, retain=retain).open()
    if any(batches[:seeded]):
        rows = [(key, *row) for key, found in zip(KEYS, buckets(memory, *KEYS), strict=True) for row in found]
        histories = {name: memory.history(name) for name in IDS}
        memory = MemoryStore(retain)  # What arrived out of order is told by time, and seeded so.
        assert all(some.seed(histories, snapshot(rows[::-1])) for some in (memory, store))
    for batch in batches[seeded:]:
        for some in (memory, store):
            some.append([event for event, _ in batch] * repeats, [increments for _, increments in batch] * repeats)
        assert [store.history(name) for name in IDS] == [memory.history(name) for name in IDS]
        assert buckets(store, *KEYS) == buckets(memory, *KEYS)
    assert buckets(store, *keys) == buckets(memory, *keys)
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_it_persists(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, durable=True)
    store = place.open()
    store.seed({1: [event(1, 11, 8)]}, snapshot([(key("item", 10), 0, 3, 0)]))
    put(store, [event(1, 10, 9), event("1", 10, 9)])
    store.close()
    store = place.open()
    assert store.history(1) == (event(1, 11, 8), event(1, 10, 9))
    assert totals(store, "item", [10]) == [(5, 0)]
    assert not store.seed({}, snapshot())
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
@pytest.mark.parametrize(("before", "after"), [(5, 200), (200, 5)])
def test_retain_may_change(new_place: NewPlace, kind: str, before: int, after: int) -> None:
    place = new_place(kind, retain=before)
    events = [event(1, n, n) for n in range(300)]
    for retain, some in ((before, events[:290]), (after, events[290:])):
        place.retain = retain
        store = place.open()
        put(store, some)
        history = store.history(1)
        store.close()
    assert min(before, after) <= len(history) <= after
    assert history == tuple(events[-len(history) :])


# Processes. Each runs this program: what to do, the store's config and directory, and a number.

PROGRAM = """
import os, signal, sys
from pathlib import Path
from zlib import crc32
import polars as pl
from features.online import COUNTER_SCHEMA, Event, Increment
from serving.store import Config, open_store

class Deadly(dict):
    def items(self):
        for n, pair in enumerate(super().items()):
            if n == len(self) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield pair

def key(side, name):
    return crc32(repr((side, name)).encode())

def put(events):
    ours = [[Increment(key("user", e.user_id), 0, 1), Increment(key("item", e.item_id), 0, 1)] for e in events]
    store.append(events, ours)

task, config, directory, retain, number = sys.argv[1:]
number = int(number)
store = open_store(Config.model_validate_json(config), Path(directory), int(retain))
histories = {n: [Event(n, number, 1)] for n in range(2000)}
counters = pl.DataFrame([(n, 0, number, 0) for n in range(2000)], schema=COUNTER_SCHEMA, orient="row")
print("ready", flush=True)
input()
if task == "append":
    for n in range(number):
        put([Event(n % 5, "shared", n), Event("shared", n % 7, n), Event("shared", "shared", n)])
elif task == "append in bulk":
    for n in range(number):
        put([Event("shared", "shared", n)] * 450)
elif task == "seed":
    print(store.seed(histories, counters))
elif task == "die while seeding":
    store.seed(Deadly(histories), counters)
store.close()
"""
USERS: list[Id] = [0, 1, 2, 3, 4, "shared"]
ITEMS: list[Id] = [0, 1, 2, 3, 4, 5, 6, "shared"]


def start(place: Place, task: str, number: int) -> subprocess.Popen[str]:
    """A process that opens the store and begins at `go`."""
    arguments = [task, place.config.model_dump_json(), str(place.directory), str(place.retain), str(number)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def end(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    return process.communicate(timeout=20)[0].strip()


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


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_two_processes_append_and_nothing_is_lost(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, retain=10)
    processes = [start(place, "append", 400) for _ in range(2)]
    go(*processes)
    assert [end(process) for process in processes] == ["", ""]
    store = place.open()
    assert events_of(store, "user", USERS) == [160] * 5 + [1600]
    assert sum(events_of(store, "item", ITEMS)) == 2400
    assert len(store.history("shared")) == 10
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_reader_sees_whole_appends_only(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, retain=10_000)
    store = place.open()
    process = start(place, "append in bulk", 20)
    go(process)
    seen = {0}
    while max(seen) < 20 * 450:
        by_user, by_item = buckets(store, key("user", "shared"), key("item", "shared"))
        assert by_user == by_item
        seen |= {len(store.history("shared")), *(events for _, events, _ in by_user)}
        assert process.poll() in (None, 0)
    assert all(events % 450 == 0 for events in seen)
    end(process)
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_killed_process_leaves_whole_appends(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, retain=10)
    store = place.open()
    for _ in range(2):
        process = start(place, "append", 10**9)
        (before,) = events_of(store, "user", ["shared"])
        go(process)
        wait_until(lambda before=before: events_of(store, "user", ["shared"])[0] > before + 50, "events")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        end(process)
        # LMDB tells readers of a commit that is on the disk; one that a kill came before is told of by the next.
        put(store, [event(0, "shared"), event("shared", 0), event("shared", "shared")])
        by_user, by_item = events_of(store, "user", USERS), events_of(store, "item", ITEMS)
        assert sum(by_user) == sum(by_item)
        assert by_user[-1] == by_item[-1] == 2 * sum(by_user[:-1])
        last = store.history("shared")
        assert [event.item_id == "shared" for event in last] == [False, True] * 5
        put(store, [event(0, "shared"), event("shared", 0), event("shared", "shared")])
        assert events_of(store, "user", ["shared"]) == [by_user[-1] + 2]
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_of_two_that_seed_one_succeeds(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind)
    processes = [start(place, "seed", number) for number in (1, 2)]
    go(*processes)
    taken = [end(process) == "True" for process in processes]
    assert sorted(taken) == [False, True]
    number = 1 + taken.index(True)
    store = place.open()
    assert {store.history(n) for n in range(2000)} == {(Event(n, number, 1),) for n in range(2000)}
    assert buckets(store, *range(2000)) == [[(0, number, 0)]] * 2000
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_process_killed_while_seeding_leaves_an_empty_store(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind)
    process = start(place, "die while seeding", 3)
    go(process)
    end(process)
    assert process.returncode == -signal.SIGKILL
    store = place.open()
    assert [store.history(n) for n in range(2000)] == [()] * 2000
    assert buckets(store, *range(2000)) == [[]] * 2000
    assert store.seed({1: [event(1, 4)]}, snapshot([(5, 0, 1, 0)]))
    assert store.history(1) == (event(1, 4),)
    assert buckets(store, 5, 6) == [[(0, 1, 0)], []]
    store.close()


def test_redis_drops_what_a_killed_seed_left(new_place: NewPlace) -> None:
    place = new_place("redis")
    process = start(place, "die while seeding", 3)
    go(process)
    end(process)
    with redis.Redis.from_url(place.config.url) as client:
        left = list(client.scan_iter(place.config.prefix + "*", count=10_000))
        assert left
        assert all(0 < client.ttl(key) <= RedisStore.SEED_SECONDS for key in left)
        store = place.open()
        assert store.seed({n: [event(n, 1)] for n in range(600)}, snapshot([(1, 0, 600, 0)]))
        store.close()
        kept = set(client.scan_iter(place.config.prefix + "*", count=10_000)) - set(left)
        names = {key.decode().removeprefix(place.config.prefix) for key in kept}
        assert names == {"people", "histories", "counters", "meaning"}
        assert {client.ttl(key) for key in kept} == {-1}


def test_redis_publishes_no_snapshot_that_expired(new_place: NewPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place = new_place("redis")
    store = place.open()
    monkeypatch.setattr(RedisStore, "SEED_SECONDS", 0)
    with pytest.raises(StoreError, match="expired before it was complete"):
        store.seed({1: [event(1, 1)]}, snapshot([(1, 0, 600, 0)]))
    monkeypatch.undo()
    assert store.history(1) == ()
    assert buckets(store, 1) == [[]]
    assert store.seed({1: [event(1, 2)]}, snapshot())
    store.close()


def test_redis_may_forget_scripts_and_connections(redis_url: str) -> None:
    store = RedisStore(redis_url, prefix=f"{uuid4().hex}:")
    with redis.Redis.from_url(redis_url) as client:
        for n in range(3):
            put(store, [event(1, 10)])
            assert totals(store, "item", [10]) == [(n + 1, 0)]
            client.script_flush()
            client.client_kill_filter(_type="normal", skipme=True)
    assert len(store.history(1)) == 3
    store.close()


def test_no_command_is_sent_to_redis_twice(redis_url: str) -> None:
    """A server that pauses for longer than the client waits: a second try would succeed."""
    store = RedisStore(f"{redis_url}?socket_timeout=0.4", prefix=f"{uuid4().hex}:")
    put(store, [event(1, 10)])
    with redis.Redis.from_url(redis_url) as client:
        client.client_pause(700, all=False)
        with pytest.raises(StoreError):
            put(store, [event(1, 10)])
    wait_until(lambda: paused_no_more(redis_url), "the end of the pause")
    assert totals(store, "item", [10]) in ([(1, 0)], [(2, 0)])
    store.close()


def paused_no_more(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.set("awake", 1))


def test_a_redis_that_is_gone_raises(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, server):
        store = RedisStore(url)
        put(store, [event(1, 10)])
        server.kill()
        server.wait()
        with pytest.raises(StoreError):
            put(store, [event(1, 10)])
        with pytest.raises(StoreError):
            store.history(1)
        store.close()


# What people are told.


def test_a_redis_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://me:secret@127.0.0.1:{closed.getsockname()[1]}/0"
        with pytest.raises(
            InputError, match=r"store\.url = 'redis://127\.0\.0\.1:\d+/0'.*start redis-server"
        ) as caught:
            RedisStore(url)
    assert "secret" not in str(caught.value)


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"store\.url = 'http://localhost'"):
        RedisStore("http://localhost")


def test_a_full_map_names_the_setting_and_loses_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "state", map_size_gb=0.0005, durable=False)
    appended = 0

    def fill() -> None:
        nonlocal appended
        while True:
            put(store, [event(appended, appended)])
            appended += 1

    with pytest.raises(StoreError, match=r"store\.map_size_gb = 0\.0005 is less .*set more"):
        fill()
    assert len(store.history(appended - 1)) == 1
    assert store.history(appended) == ()
    assert events_of(store, "item", [appended - 1, appended]) == [1, 0]
    store.close()
    store = LmdbStore(tmp_path / "state", map_size_gb=0.001, durable=False)
    put(store, [event(appended, appended)])
    assert len(store.history(appended)) == 1
    store.close()


def test_a_snapshot_that_fills_the_map_leaves_it_empty(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "state", map_size_gb=0.0005, durable=False)
    with pytest.raises(StoreError, match=r"store\.map_size_gb = 0\.0005 is less .*set more"):
        store.seed({n: [event(n, n)] for n in range(10_000)}, snapshot([(1, 0, 600, 0)]))
    assert store.history(1) == ()
    assert buckets(store, 1) == [[]]
    assert store.seed({1: [event(1, 1)]}, snapshot())
    store.close()


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(InputError, match=r"store\.path = .*state.*writable directory"):
        open_store(Config(), tmp_path, 1000)


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_an_int_beyond_int64_is_refused(new_place: NewPlace, kind: str) -> None:
    store = new_place(kind).open()
    with pytest.raises(InputError, match="use an int64 or a string"):
        store.history(2**63)
    store.close()
