"""A store that cannot be reached: noticed once, asked again every second, and meanwhile no request waits for it."""

import threading
from collections.abc import Callable

from features.errors import StoreError
from features.online import StateStore

AGAIN_SECONDS = 1.0
"""How often a store that has failed is asked again."""


class StoreHealth:
    """Whether the store can be read. `problem` is None, or says what is wrong."""

    def __init__(self, store: StateStore, healed: Callable[[], object]) -> None:
        """Watch a store.

        Args:
            store: it.
            healed: called when it is back, in the watching thread; a server that has lost its data is filled again.
        """
        self.problem: str | None = None
        self._store, self._healed = store, healed
        self._look = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="store health", daemon=True)
        self._thread.start()

    def unreadable(self, error: StoreError) -> None:
        """A read has failed."""
        self.problem = str(error)
        self._look.set()

    def unwritable(self) -> None:
        """A write has failed; a store that is full can still be read, so look."""
        self._look.set()

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self._look.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._look.wait()
            if self._closed:
                return
            self._look.clear()
            try:
                self._store.history("")
                if self.problem is not None:
                    self._healed()
                self.problem = None
            except StoreError as error:
                self.problem = str(error)
                pause.wait(AGAIN_SECONDS)
                self._look.set()
