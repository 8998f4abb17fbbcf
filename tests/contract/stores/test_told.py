"""What people are told of stores that are full or wrongly named, and that nothing is lost by it."""

import socket
from pathlib import Path

import pytest

from features.errors import InputError, StoreError
from serving.store import Config, LmdbStore, RedisStore, open_store
from tests.contract.stores.places import SHARED_KINDS, NewPlace, buckets, event, events_of, put, snapshot


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
