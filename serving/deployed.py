"""Variants that follow a run's `deployment.json`: what is asked for takes the place of what is served, with no gap.

All models of a deployment are verified, loaded and asked the recorded questions in a thread that answers nobody; then
the view changes, by one assignment. Where any of that fails, what was served stays. It is tried again when
`deployment.json` is replaced or somebody asks for it, not before.
"""

import logging
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from features.errors import InputError
from features.online import StateStore
from recsys import bundle as bundles
from recsys import inference, smoke
from serving import rollout, verified
from serving.model import Model
from serving.rollout import Deployment, Part
from serving.variants import Change, Variant, Variants, View

log = logging.getLogger("feedline.models")


class Deployed(Variants):
    """What is deployed in a folder, and what will be."""

    def __init__(self, folder: Path, store: StateStore) -> None:
        """Load what is asked for or, where that cannot be served, the latest deployment before it that can.

        Args:
            folder: of the run's deployments, see `serving.rollout`.
            store: of all variants; an empty one is filled from the control's snapshot.

        Raises:
            InputError: there is no deployment, or none can be served; says why of the one that is asked for.
        """
        self._folder, self._store = folder, store
        self._loading = threading.Lock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self._tried = self._stamp()
        asked = _asked(folder)
        problems: list[Exception] = []
        for deployment in (asked.current, *asked.earlier):
            try:
                super().__init__(self._load(deployment, ()))
                break
            except Exception as error:  # damaged files make libraries raise what they will
                log.error("deployment %d cannot be served: %s", deployment.number, _line(error))
                problems.append(error)
        else:
            raise problems[0]
        self._asked, self._problem = asked.current.number, _line(problems[0]) if problems else None

    def refresh(self) -> bool:
        """Look what is asked for, and serve it if that can be; whether something else is served now.

        What could not be served before is tried again. Takes the time of loading, in the thread that calls.
        """
        with self._loading:
            return self._refresh()

    def watch(self, seconds: float = 1.0) -> None:
        """Look every so often, in a thread, whether something else is asked for, until `close`."""

        def run() -> None:
            while not self._stop.wait(seconds):
                with self._loading:
                    if self._stamp() != self._tried:
                        self._refresh()

        self._watcher = threading.Thread(target=run, name="deployed", daemon=True)
        self._watcher.start()

    def close(self) -> None:
        """Look no more; waits until what is being loaded is loaded."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()

    def _refresh(self) -> bool:
        self._tried = self._stamp()
        began, problem = time.perf_counter(), None
        try:
            asked = _asked(self._folder).current
            self._asked, view = asked.number, self._view
            if view.deployment == asked:
                self._problem = None
                return False
            self._view = self._load(asked, view.variants + view.shadows)
        except Exception as error:  # whatever it is, what is served stays
            problem = _line(error)
        self._problem = problem
        change = Change(self._asked, time.perf_counter() - began, problem)
        if problem is None:
            log.info("deployment %d is served, after %.1f s of loading", change.number, change.seconds)
        else:
            log.error("deployment %d cannot be served, what was served stays: %s", change.number, problem)
        self.on_change(change)
        return problem is None

    def _load(self, deployment: Deployment, present: Sequence[Variant]) -> View:
        """All models of a deployment; those that are served already are kept as they are."""
        held = {_key(one.model.bundle.directory, one.model.recommender.config): one.model for one in present}
        models: list[Variant] = []
        for part in deployment.parts:
            key = _key(self._folder / part.bundle, part.recommend)
            held[key] = model = held.get(key) or self._model(part)
            models.append(Variant(part.name, model))
        return View.of(deployment, models)

    def _model(self, part: Part) -> Model:
        """A model that is whole, counts as the store does, and has answered before anybody is served."""
        directory = self._folder / part.bundle
        verified.require(directory)
        bundle = bundles.load(directory)
        smoke.check(bundle)
        model = Model(bundle, self._store, part.recommend)
        model.recommender.seed()
        weakref.finalize(model, log.info, "bundle %s is served no more", model.name).atexit = False
        return model

    def _stamp(self) -> tuple[int, ...] | None:
        """Changes whenever `deployment.json` is replaced."""
        try:
            found = (self._folder / rollout.FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _key(bundle: Path, recommend: inference.Config) -> tuple[Path, str]:
    """Of models that are the same."""
    return bundle, recommend.model_dump_json()


def _asked(folder: Path) -> rollout.Rollout:
    asked = rollout.read(folder)
    if asked is None:
        raise InputError(f"{folder}: nothing is deployed here; run `recsys deploy` first")
    return asked


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
