"""Stores beside memory, for any stream of events."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.online import Event, Id, Increment, MemoryStore
from tests.contract.stores.places import SHARED_KINDS, NewPlace, buckets, snapshot

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
    store = new_place(kind, events=retain).open()
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
