"""Known answers of `StateStore`, over every implementation.

    python -m pytest tests/contract/stores

Redis is a real server, started here on a free port; without the program its tests are skipped, and fail in CI.
"""

import pytest

from features.online import Event, Id, Increment, StateStore
from tests.contract.stores.places import SHARED_KINDS, NewPlace, asked, buckets, event, key, put, snapshot, totals


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
    place = new_place(kind, events=before)
    events = [event(1, n, n) for n in range(300)]
    for retain, some in ((before, events[:290]), (after, events[290:])):
        place.keeps = {"events": retain}
        store = place.open()
        put(store, some)
        history = store.history(1)
        store.close()
    assert min(before, after) <= len(history) <= after
    assert history == tuple(events[-len(history) :])
