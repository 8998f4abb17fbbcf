"""What is served now: models by variant, and whom each answers.

A request takes its variant once and keeps it: the model answers from beginning to end, and goes when the last request
that has it has ended. What is served changes by one assignment of a whole view: see `serving.deployed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.online import Event, Id, StateStore
from recsys import inference
from recsys.inference import Outcome
from serving import rollout
from serving.model import Model
from serving.rollout import CONTROL, SLOTS, Deployment


@dataclass(frozen=True)
class Variant:
    """A model, and how it is called in an experiment."""

    name: str
    model: Model


@dataclass(frozen=True)
class Change:
    """A try to serve something else."""

    number: int
    """Of the deployment."""
    seconds: float
    """How long loading took."""
    problem: str | None
    """Why it is not served; None where it is."""


@dataclass(frozen=True)
class View:
    """What is served at a moment."""

    deployment: Deployment | None
    """None of a bundle that is served for good."""
    variants: tuple[Variant, ...]
    """The control first."""
    shadows: tuple[Variant, ...]
    by_slot: tuple[Variant, ...]
    """Who answers each slot; () where it is the control alone."""

    @classmethod
    def of(cls, deployment: Deployment, models: Sequence[Variant]) -> "View":
        """Of a deployment with the models of its parts."""
        answering = 1 + len(deployment.variants)
        by_slot = [models[0]] * SLOTS
        for part, variant in zip(deployment.variants, models[1:answering], strict=True):
            for start, end in part.slots:
                by_slot[start:end] = [variant] * (end - start)
        return cls(deployment, tuple(models[:answering]), tuple(models[answering:]), tuple(by_slot))


class Variants:
    """The variants of a service on one store. Others may take their place while requests run: take one a request."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._asked = 0
        self._problem: str | None = None
        self.on_change: Callable[[Change], None] = lambda change: None
        """Told of every try to serve something else, from the thread that made it."""

    @classmethod
    def of_bundle(cls, directory: Path, store: StateStore, recommend: inference.Config) -> "Variants":
        """One bundle for everybody, for good."""
        model = Model.load(directory, store, recommend)
        return Variants(View(None, (Variant(CONTROL, model),), (), ()))

    def of(self, user: Id) -> Variant:
        """Who answers a person."""
        view = self._view
        if view.deployment is None or len(view.variants) == 1:
            return view.variants[0]
        return view.by_slot[rollout.slot(view.deployment.salt, user)]

    @property
    def control(self) -> Variant:
        """The one that answers those whom no experiment is about, and what no person asks."""
        return self._view.variants[0]

    @property
    def all(self) -> tuple[Variant, ...]:
        """Those that answer, the control first."""
        return self._view.variants

    @property
    def shadows(self) -> tuple[Variant, ...]:
        """Those that are asked too, after the response, for logs and metrics alone."""
        return self._view.shadows

    def observe(self, events: Sequence[Event]) -> list[Outcome]:
        """Apply what happened to the store, once: all variants count alike, or the store would have refused them."""
        return self.control.model.recommender.observe(events)

    @property
    def state(self) -> dict[str, Any]:
        """What is served and what is asked for: for `/v1/model` and `/readyz`.

        `deployment` (number, made, variants with bundle and share; None of a bundle that is served for good), `asked`
        (the number of the deployment that is asked for), `problem` (why that is not served; None where it is).
        """
        deployment = self._view.deployment
        served = None if deployment is None else rollout.summary(deployment)
        return {"deployment": served, "asked": self._asked, "problem": self._problem}

    def numbers(self) -> dict[str, float]:
        """The numbers of the deployment that is `served` and of the one that is `asked` for; 0 where there is none."""
        deployment = self._view.deployment
        return {"served": 0.0 if deployment is None else float(deployment.number), "asked": float(self._asked)}

    def refresh(self) -> bool:
        """Look what is asked for, and serve it if that can be; whether something else is served now."""
        return False

    def close(self) -> None:
        """Look no more what is asked for."""
