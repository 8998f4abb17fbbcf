"""What stores keep of a person, for how long, and that they can forget it; over every implementation."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from features.errors import InputError
from features.online import Event, Id, Increment, StateStore
from features.taste import NOTHING, Taste
from tests.contract.stores.places import KINDS, NewPlace, buckets, event, snapshot

DAY = 86_400_000
NONE = np.empty(0, dtype=np.uint64)


class Clock:
    """Stands where it is put."""

    now = 1_000 * DAY

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def ageing(request: pytest.FixtureRequest, new_place: NewPlace, clock: Clock) -> Iterator[StateStore]:
    """Keeps 40 events for ten days, and four ids for an hour."""
    place = new_place(request.param, events=40, age_ms=10 * DAY, ids=4, ids_ms=3_600_000)
    place.clock = clock
    store = place.open()
    yield store
    store.close()


def send(store: StateStore, *ids: str, user: Id = 1, item: Id = 10) -> list[bool]:
    """Whether events of these ids were applied; each counts under the key 5."""
    events = [replace(event(user, item), timestamp=1_000 * DAY, event_id=name) for name in ids]
    return store.append(events, [[Increment(5, 0, 1)]] * len(events)).tolist()


def test_an_id_is_applied_once(ageing: StateStore) -> None:
    assert send(ageing, "a", "b", "a", "", "") == [True, True, False, True, True]
    assert send(ageing, "b", "c") == [False, True]
    assert buckets(ageing, 5) == [[(0, 5, 0)]]
    assert len(ageing.history(1)) == 5
    assert {told.event_id for told in ageing.history(1)} == {""}
    assert send(ageing, "a", "b", user="1") == [True, True]
    assert send(ageing) == []


def test_ids_are_remembered_by_number_and_age(ageing: StateStore, clock: Clock) -> None:
    assert send(ageing, *"abcd") == [True] * 4
    assert send(ageing, *"abcd") == [False] * 4
    assert send(ageing, "e", "b", "a", "b") == [True, False, True, True]  # e drives out a, and a, that is new again, b.
    clock.now += 3_599_999
    assert send(ageing, *"eab") == [False] * 3
    clock.now += 1
    assert send(ageing, *"eab") == [True] * 3


def test_a_clock_that_goes_back_forgets_no_id(ageing: StateStore, clock: Clock) -> None:
    assert send(ageing, "a") == [True]
    clock.now -= DAY
    assert send(ageing, "a", "b") == [False, True]


def test_a_history_is_told_by_time_and_then_by_arrival(store: StateStore) -> None:
    """As a log is sorted; what goes for lack of room is what arrived first."""
    late, early, equal = (Event(1, item, time) for item, time in ((1, 50), (2, 40), (3, 50)))
    store.append([late, early, equal], [[]] * 3)
    assert store.history(1) == (early, late, equal)
    store.append([Event(1, 4, 45)], [[]])
    assert store.history(1) == (early, Event(1, 4, 45), equal)


def test_events_are_kept_for_their_days(ageing: StateStore, clock: Clock) -> None:
    """For 100 events a block and a half of which is kept, half of it too old."""
    events = [Event(1, n, clock.now - (100 - n) * DAY // 4) for n in range(100)]
    ageing.append(events, [[]] * 100)
    assert ageing.history(1) == tuple(events[60:])
    assert ageing.expire() == 0
    clock.now += 5 * DAY
    assert ageing.history(1) == tuple(events[80:])
    clock.now += 3 * DAY
    assert ageing.expire() == 1
    assert ageing.history(1) == tuple(events[92:])
    clock.now -= 8 * DAY
    assert ageing.history(1) == tuple(events[92:])  # What was deleted does not come back with the clock.
    more = [Event(1, n, clock.now) for n in range(100, 137)]
    ageing.append(more, [[]] * len(more))
    assert ageing.history(1) == (*events[97:], *more)


def test_expiring_deletes_people_and_ids_that_are_too_old(ageing: StateStore, clock: Clock) -> None:
    send(ageing, "a", "b")
    send(ageing, "c", user=2)
    clock.now += 3_600_000
    assert ageing.expire() == 2
    clock.now += 10 * DAY
    assert ageing.expire() == 2
    assert ageing.expire() == 0
    assert not ageing.erase(1, NONE)
    assert ageing.history(1) == ageing.history(2) == ()


def test_a_taste_is_kept_as_it_was_said(store: StateStore) -> None:
    taste = Taste((3, "3", -1), ("x" * 600,), ("Sci-Fi", "日本"), ("a",), (1, 2, 3))
    assert store.taste(1) == NOTHING
    store.set_taste(1, taste)
    store.set_taste("1", Taste(liked_categories=("b",)))
    assert store.taste(1) == taste
    store.set_taste("1", NOTHING)
    assert store.taste("1") == NOTHING
    assert store.taste(1) == taste
    assert store.history(1) == ()


def test_a_taste_alone_does_not_fill_a_store(store: StateStore) -> None:
    store.set_taste(1, Taste((3,)))
    assert store.meaning() is None
    assert store.seed({1: [event(1, 4)]}, snapshot(), "what it means")
    assert store.meaning() == "what it means"
    assert store.taste(1) == Taste((3,))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"liked_items": (1, 2), "disliked_items": (2,)}, "items: 2 is both liked and disliked"),
        ({"liked_categories": ("a",), "disliked_categories": ("a",)}, "categories: 'a' is both"),
        ({"disliked_items": (1, 2, 1)}, "disliked_items: 1 is there twice"),
        ({"liked_items": tuple(range(1001))}, "liked_items: 1001 are too many"),
    ],
)
def test_a_taste_that_contradicts_itself_is_refused(said: dict[str, tuple[Id, ...]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Taste(**said)  # pyright: ignore[reportArgumentType]


def test_who_is_erased_has_never_been(store: StateStore) -> None:
    """History, taste, ids and the counters that are named; nobody else's, and not the item's."""
    mine, theirs, of_item = 2**64 - 1, 8, 9
    for user, key in ((1, mine), (2, theirs)):
        store.append(
            [replace(event(user, n), event_id=f"{n}") for n in range(3)],
            [[Increment(key, 0, 1), Increment(of_item, 0, 1)]] * 3,
        )
        store.set_taste(user, Taste((4,)))
    others = [2**63 + n for n in range(2500)]
    assert store.erase(1, np.array([mine, *others], dtype=np.uint64))
    assert not store.erase(1, np.array([mine, *others], dtype=np.uint64))
    assert store.history(1) == ()
    assert store.taste(1) == NOTHING
    assert buckets(store, mine, theirs, of_item) == [[], [(0, 3, 0)], [(0, 6, 0)]]
    assert len(store.history(2)) == 3
    assert store.taste(2) == Taste((4,))
    assert store.append([replace(event(1, 0), event_id="0")], [[]]).tolist() == [True]
    assert store.history(1) == (event(1, 0),)
