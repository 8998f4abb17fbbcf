"""What is served now: models by variant, whom each answers, and the change to others while requests run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from features.online import Event, Id, StateStore
from recsys import inference
from recsys.inference import Outcome
from serving.model import Model


@dataclass(frozen=True)
class Variant:
    """A model, and how it is called in an experiment."""

    name: str
    model: Model


class Variants:
    """The variants of a service on one store. Others take their place while requests run: take one a request."""

    def __init__(self, answering: Sequence[Variant]) -> None:
        self._answering = tuple(answering)

    @classmethod
    def of_bundle(cls, directory: Path, store: StateStore, recommend: inference.Config) -> Self:
        """One bundle for everybody, for good."""
        return cls([Variant("control", Model.load(directory, store, recommend))])

    def of(self, user: Id) -> Variant:
        """Who answers a person."""
        return self._answering[0]

    @property
    def control(self) -> Variant:
        """The one that answers those whom no experiment is about, and what no person asks."""
        return self._answering[0]

    @property
    def all(self) -> tuple[Variant, ...]:
        """Those that answer."""
        return self._answering

    @property
    def shadows(self) -> tuple[Variant, ...]:
        """Those that are asked too, after the response, for logs and metrics alone."""
        return ()

    def observe(self, events: Sequence[Event]) -> list[Outcome]:
        """Apply what happened to the store, once, with what every variant counts."""
        return self.control.model.recommender.observe(events)

    def refresh(self) -> bool:
        """Look whether others are asked for and put them in place; whether they were."""
        return False
