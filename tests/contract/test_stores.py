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
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.online import Event, Id, MemoryStore, StateStore, UserState
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
            return MemoryStore(retain=self.retain)
        return open_store(self.config, self.directory, self.retain)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        reason = "neither redis-server nor valkey-server is installed (apt-get install redis-server)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path_factory.mktemp("redis"))]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(url), "redis-server to answer")
            yield url
        finally:
            server.terminate()


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


def counts(store: StateStore, items: list[Id]) -> list[tuple[int, int]]:
    found = store.items(items)
    assert found.events.dtype == found.positives.dtype == "int64"
    return list(zip(found.events.tolist(), found.positives.tolist(), strict=True))


def test_an_empty_store_knows_nobody(store: StateStore) -> None:
    assert store.user(7) == UserState()
    assert counts(store, [7, "seven"]) == [(0, 0), (0, 0)]
    assert counts(store, []) == []


def test_known_answer(store: StateStore) -> None:
    events = [event(1, 10 + n, timestamp=100 + n, positive=n == 0) for n in range(5)]
    store.append(events[:2])
    store.append([])
    store.append([*events[2:], event(2, 10)])
    assert store.user(1) == UserState(history=tuple(events[2:]), events=5, positives=1, last_timestamp=104)
    assert store.user(2) == UserState(history=(event(2, 10),), events=1, positives=0, last_timestamp=0)
    assert counts(store, [11, 10, 99, 10]) == [(1, 0), (2, 1), (0, 0), (2, 1)]


def test_an_event_comes_back_as_it_was(store: StateStore) -> None:
    events = (
        Event("ö\0x", -(2**63), -1),
        Event("ö\0x", "日本" * 500, 2**62, "a b", -1.5, positive=True),
        Event("ö\0x", "", 0, "", 0.0),
    )
    store.append(events)
    assert store.user("ö\0x").history == events
    assert counts(store, [event.item_id for event in events]) == [(1, 0), (1, 1), (1, 0)]


def test_ids_keep_their_type(store: StateStore) -> None:
    ids: list[Id] = [1, "1", "i1", "s1", "", "1\0", "x" * 600, "x" * 601]
    for n, name in enumerate(ids, start=1):
        store.append([event(name, name)] * n)
    assert [store.user(name).events for name in ids] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [store.user(name).history[0] for name in ids] == [event(name, name) for name in ids]
    assert counts(store, ids) == [(n, 0) for n in range(1, 9)]


def test_seed_is_taken_once(store: StateStore) -> None:
    state = UserState(history=(event(1, 10, 5), event(1, "x", 6)), events=40, positives=9, last_timestamp=6)
    assert store.seed({1: state, "new": UserState()}, {10: (70, 7), "x": (2, 1)})
    assert not store.seed({1: UserState(events=1)}, {10: (1, 1)})
    assert store.user(1) == state
    assert store.user("new") == UserState()
    store.append([event(1, 10, 7, positive=True), event(1, 11, 8)])
    last = (event(1, "x", 6), event(1, 10, 7, positive=True), event(1, 11, 8))
    assert store.user(1) == UserState(history=last, events=42, positives=10, last_timestamp=8)
    assert counts(store, [10, "x", 11]) == [(71, 8), (2, 1), (1, 0)]


def test_a_store_with_events_takes_no_seed(store: StateStore) -> None:
    store.append([event(1, 10)])
    assert not store.seed({2: UserState(events=5)}, {})
    assert store.user(2) == UserState()


def test_an_empty_seed_counts(store: StateStore) -> None:
    assert store.seed({}, {})
    assert not store.seed({2: UserState(events=5)}, {})


IDS = st.sampled_from([0, 1, -5, "0", "1", "s"])
EVENTS = st.builds(
    Event,
    user_id=IDS,
    item_id=IDS,
    timestamp=st.integers(-(2**63), 2**63 - 1),
    action=st.text(max_size=3),
    value=st.none() | st.floats(allow_nan=False),
    positive=st.booleans(),
)


@pytest.mark.parametrize("kind", SHARED_KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    retain=st.integers(1, 5) | st.integers(60, 140),
    batches=st.lists(st.lists(EVENTS, max_size=4), max_size=8),
    repeats=st.sampled_from([1, 1, 40]),
    seeded=st.integers(0, 8),
)
def test_it_holds_what_memory_holds(
    new_place: NewPlace, kind: str, retain: int, batches: list[list[Event]], repeats: int, seeded: int
) -> None:
    """For any stream, and with a snapshot of memory taken anywhere in it; `repeats` fills many blocks."""
    memory = MemoryStore(retain=retain)
    ids: list[Id] = [0, 1, -5, "0", "1", "s"]
    for batch in batches[:seeded]:
        memory.append(batch * repeats)
    store = new_place(kind, retain=retain).open()
    if any(batches[:seeded]):
        users = {name: memory.user(name) for name in ids}
        assert store.seed(users, dict(zip(ids, counts(memory, ids), strict=True)))
    for batch in batches[seeded:]:
        memory.append(batch * repeats)
        store.append(batch * repeats)
        assert [store.user(name) for name in ids] == [memory.user(name) for name in ids]
        assert counts(store, ids) == counts(memory, ids)
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_it_persists(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, durable=True)
    store = place.open()
    store.seed({1: UserState(events=3)}, {10: (3, 0)})
    store.append([event(1, 10, 9), event("1", 10, 9)])
    store.close()
    store = place.open()
    assert store.user(1) == UserState(history=(event(1, 10, 9),), events=4, positives=0, last_timestamp=9)
    assert counts(store, [10]) == [(5, 0)]
    assert not store.seed({}, {})
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
@pytest.mark.parametrize(("before", "after"), [(5, 200), (200, 5)])
def test_retain_may_change(new_place: NewPlace, kind: str, before: int, after: int) -> None:
    place = new_place(kind, retain=before)
    events = [event(1, n, n) for n in range(300)]
    for retain, some in ((before, events[:290]), (after, events[290:])):
        place.retain = retain
        store = place.open()
        store.append(some)
        state = store.user(1)
        store.close()
    kept = len(state.history)
    assert min(before, after) <= kept <= after
    assert state == UserState(tuple(events[-kept:]), 300, 0, 299)


# Processes. Each runs this program: what to do, the store's config and directory, and a number.

PROGRAM = """
import os, signal, sys
from pathlib import Path
from features.online import Event, UserState
from serving.store import Config, open_store

class Deadly(dict):
    def items(self):
        for n, pair in enumerate(super().items()):
            if n == len(self) - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield pair

task, config, directory, retain, number = sys.argv[1:]
number = int(number)
store = open_store(Config.model_validate_json(config), Path(directory), int(retain))
print("ready", flush=True)
input()
if task == "append":
    for n in range(number):
        store.append([Event(n % 5, "shared", n), Event("shared", n % 7, n), Event("shared", "shared", n)])
elif task == "append in bulk":
    for n in range(number):
        store.append([Event("shared", "shared", n)] * 450)
elif task == "seed":
    print(store.seed({n: UserState(events=number) for n in range(2000)}, {10: (number, 0)}))
elif task == "die while seeding":
    store.seed(Deadly({n: UserState((Event(n, 1, 1),), events=number) for n in range(2000)}), {10: (number, 0)})
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
    assert [store.user(name).events for name in USERS] == [160] * 5 + [1600]
    assert sum(store.items(ITEMS).events) == 2400
    assert len(store.user("shared").history) == 10
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_reader_sees_whole_appends_only(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, retain=10_000)
    store = place.open()
    process = start(place, "append in bulk", 20)
    go(process)
    seen = {0}
    while max(seen) < 20 * 450:
        state = store.user("shared")
        assert state.events == len(state.history)
        seen |= {state.events, *store.items(["shared"]).events.tolist()}
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
        before = store.user("shared").events
        go(process)
        wait_until(lambda before=before: store.user("shared").events > before + 50, "events")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        end(process)
        by_user = [store.user(name).events for name in USERS]
        by_item = store.items(ITEMS).events.tolist()
        assert sum(by_user) == sum(by_item)
        assert by_user[-1] == by_item[-1] == 2 * sum(by_user[:-1])
        last = store.user("shared").history
        assert [event.item_id == "shared" for event in last] == [False, True] * 5
        store.append([event(0, "shared"), event("shared", 0), event("shared", "shared")])
        assert store.user("shared").events == by_user[-1] + 2
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
    assert {store.user(n).events for n in range(2000)} == {number}
    assert counts(store, [10]) == [(number, 0)]
    store.close()


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_a_process_killed_while_seeding_leaves_an_empty_store(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind)
    process = start(place, "die while seeding", 3)
    go(process)
    end(process)
    assert process.returncode == -signal.SIGKILL
    store = place.open()
    assert [store.user(n) for n in range(2000)] == [UserState()] * 2000
    assert store.seed({1: UserState(events=4)}, {})
    assert store.user(1) == UserState(events=4)
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
        assert store.seed({n: UserState((event(n, 1),)) for n in range(600)}, {1: (600, 0)})
        store.close()
        kept = set(client.scan_iter(place.config.prefix + "*", count=10_000)) - set(left)
        assert len(kept) == 600 + 5  # Histories; two of the users' hashes, two of the items', the mark.
        assert {client.ttl(key) for key in kept} == {-1}


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
            store.append([event(appended, appended)])
            appended += 1

    with pytest.raises(InputError, match=r"store\.map_size_gb = 0\.0005 is less .*set more"):
        fill()
    assert store.user(appended - 1).events == 1
    assert store.user(appended) == UserState()
    store.close()
    store = LmdbStore(tmp_path / "state", map_size_gb=0.001, durable=False)
    store.append([event(appended, appended)])
    assert store.user(appended).events == 1
    store.close()


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(InputError, match=r"store\.path = .*state.*writable directory"):
        open_store(Config(), tmp_path, 1000)


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_an_int_beyond_int64_is_refused(new_place: NewPlace, kind: str) -> None:
    store = new_place(kind).open()
    with pytest.raises(InputError, match="use an int64 or a string"):
        store.user(2**63)
    store.close()
