"""What is too old goes while a server runs, and a store that fails is asked again."""

import threading

from features.errors import StoreError
from features.online import Event, MemoryStore, Retention
from serving.expiry import Expiry


class Failing(MemoryStore):
    """Cannot be reached the first time."""

    def __init__(self) -> None:
        super().__init__(keeps=Retention(age_ms=1000, clock=lambda: 10_000))
        self.asked, self.done = 0, threading.Event()

    def expire(self) -> int:
        self.asked += 1
        if self.asked == 1:
            raise StoreError("gone")
        people = super().expire()
        self.done.set()
        return people


def test_old_events_go_by_themselves() -> None:
    store = Failing()
    store.append([Event("old", "x", 100), Event("new", "x", 9_500)], [(), ()])
    expiry = Expiry(store, 0.01)
    assert store.done.wait(10)
    expiry.close()
    assert set(store._arrived) == {"new"}
    asked = store.asked
    assert asked >= 2
    assert not any(thread.name == "expiry" for thread in threading.enumerate())
