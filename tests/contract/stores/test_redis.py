"""What is Redis's own: a server that expires, forgets, pauses, goes and comes back."""

import signal
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import redis

from features.errors import StoreError
from features.online import Event
from serving.store import RedisStore
from tests.contract.stores.places import (
    NewPlace,
    buckets,
    event,
    free_port,
    put,
    redis_server,
    snapshot,
    totals,
    wait_until,
)
from tests.contract.stores.test_processes import end, go, start


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
    time.sleep(RedisStore.PAUSE_S)
    assert totals(store, "item", [10]) in ([(1, 0)], [(2, 0)])
    store.close()


def paused_no_more(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.set("awake", 1))


def test_a_redis_that_is_gone_is_told_of_at_once_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port) as (url, server):
        store = RedisStore(url, timeout_s=0.3)
        put(store, [event(1, 10)])
        server.kill()
        server.wait()
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreError, match=r"store\.url = .*(start redis-server there|tried again in 0.5 s)"):
                store.history(1)
            with pytest.raises(StoreError):
                put(store, [event(1, 10)])
        assert time.monotonic() - started < 0.5
    with redis_server(tmp_path, port) as (url, server):
        wait_until(lambda: heard(store) == (), "the store to try again", RedisStore.PAUSE_S + 1)
        server.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(StoreError):
                store.counts(np.zeros(1, np.uint64))
        assert time.monotonic() - started < 0.6
        server.send_signal(signal.SIGCONT)
        wait_until(lambda: heard(store) == (), "the store to try again", RedisStore.PAUSE_S + 1)
        store.close()


def heard(store: RedisStore) -> tuple[Event, ...] | None:
    try:
        return store.history(1)
    except StoreError:
        return None


def test_a_redis_that_is_full_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as (url, _), redis.Redis.from_url(url) as client:
        store = RedisStore(url)
        put(store, [event(1, 10)])
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="raise maxmemory"):
            put(store, [event(1, 11), event(2, 11)])
        client.config_set("maxmemory", 0)
        assert store.history(1) == (event(1, 10),)
        assert store.history(2) == ()
        assert totals(store, "item", [11]) == [(0, 0)]
        store.close()
