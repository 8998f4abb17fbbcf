"""Stores that several processes share, and that processes die over."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from features.online import Event, Id
from tests.contract.stores.places import (
    SHARED_KINDS,
    NewPlace,
    Place,
    buckets,
    event,
    events_of,
    key,
    put,
    snapshot,
    wait_until,
)

ROOT = Path(__file__).parents[3]

# Processes. Each runs this program: what to do, the store's config and directory, and a number.

PROGRAM = """
import os, signal, sys
from pathlib import Path
from zlib import crc32
import polars as pl
from features.errors import StoreError
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
elif task == "append with ids":
    for n in range(number):
        put([Event("shared", n % 7, n, event_id=f"{n}:{m}") for m in range(3)])
elif task == "fill the disk":
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, resource.RLIM_INFINITY))
    try:
        for n in range(10**6):
            put([Event("shared", n, n)] * 50)
    except StoreError as error:
        print(n, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    put([Event("shared", n, n)] * 50)
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
    arguments = [
        task,
        place.config.model_dump_json(),
        str(place.directory),
        str(place.keeps.get("events", 1000)),
        str(number),
    ]
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


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_two_processes_append_and_nothing_is_lost(new_place: NewPlace, kind: str) -> None:
    place = new_place(kind, events=10)
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
    place = new_place(kind, events=10_000)
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
    place = new_place(kind, events=10)
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


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_what_is_sent_again_after_a_kill_is_applied_once(new_place: NewPlace, kind: str) -> None:
    """And what two send at the same time."""
    place, batches = new_place(kind), 150
    store = place.open()
    killed = start(place, "append with ids", 10**6)
    go(killed)
    wait_until(lambda: events_of(store, "user", ["shared"])[0] > 30, "events")
    killed.send_signal(signal.SIGKILL)
    end(killed)
    put(store, [event("shared", 0)])  # LMDB tells of a commit that a kill came before with the next one.
    before = events_of(store, "user", ["shared"])[0]
    assert before % 3 == 1
    both = [start(place, "append with ids", batches) for _ in range(2)]
    go(*both)
    assert [end(process) for process in both] == ["", ""]
    assert events_of(store, "user", ["shared"]) == [max(before, 3 * batches + 1)]
    assert len(store.history("shared")) == max(before, 3 * batches + 1)
    store.close()


def test_a_full_disk_is_told_and_leaves_the_store_as_it_was(new_place: NewPlace) -> None:
    place = new_place("lmdb", events=10**6)
    process = start(place, "fill the disk", 300_000)
    go(process)
    printed = end(process)
    assert process.returncode == 0, printed
    appended, _, told = printed.partition(" ")
    assert re.fullmatch(r"store\.path = .* cannot be written \(.*\); make room on its disk", told)
    store = place.open()
    assert events_of(store, "user", ["shared"]) == [50 * (int(appended) + 1)]
    assert len(store.history("shared")) == 50 * (int(appended) + 1)
    store.close()
