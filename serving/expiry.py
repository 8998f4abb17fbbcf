"""What is too old leaves the store, every few hours, in a thread that no request waits for."""

import logging
import threading

from features.errors import StoreError
from features.online import StateStore


class Expiry:
    """Calls `StateStore.expire` again and again. Every replica does: what one has deleted, the next finds gone."""

    def __init__(self, store: StateStore, every_s: float) -> None:
        """Begin; the first time after `every_s` seconds."""
        self._store, self._every_s = store, every_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="expiry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after what is under way."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(self._every_s):
            try:
                people = self._store.expire()
            except StoreError as error:
                logging.getLogger("feedline").warning("nothing expired, to be tried again: %s", error)
            else:
                logging.getLogger("feedline").info("something of %d people was too old and is gone", people)
