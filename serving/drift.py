"""Whether scores are still what they were when the bundle was made: population stability index, mean, deviation.

PSI compares how many scores fall between the quantiles that the bundle has recorded of its own answers with how many
should: Σ (found − expected) · ln(found / expected). Below 0.1 is called stable, above 0.25 a shift.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from features import manifest
from recsys import smoke
from recsys.bundle import Bundle

KEEPS = 10_000.0
"""Scores that the moving figures remember, about."""


@dataclass
class _Shown:
    """What a model has shown, of late."""

    edges: np.ndarray
    """Inner quantiles of the recorded scores, ascending; empty where none were recorded."""
    expected: np.ndarray
    """Share of the recorded scores between them."""
    found: np.ndarray = field(init=False)
    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def __post_init__(self) -> None:
        self.found = np.zeros(len(self.expected))

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def deviation(self) -> float:
        return float(np.sqrt(max(0.0, self.squares / self.count - self.mean**2)))

    @property
    def psi(self) -> float:
        # A bin that nothing has fallen into counts as half a score.
        found = np.maximum(self.found, 0.5) / max(self.count, 1.0)
        return float(((found - self.expected) * np.log(found / self.expected)).sum())


class Drift:
    """Moving figures of the scores that each model's feeds have shown to people who are known."""

    def __init__(self) -> None:
        self._shown: dict[str, _Shown] = {}

    def add(self, model: str, bundle: Bundle, scores: Sequence[float]) -> None:
        """The scores of one feed."""
        if not scores:
            return
        shown = self._shown.get(model)
        if shown is None:
            shown = self._shown[model] = _recorded(bundle)
        values = np.array(scores)
        kept = float(np.exp(-len(values) / KEEPS))
        shown.count = shown.count * kept + len(values)
        shown.total = shown.total * kept + float(values.sum())
        shown.squares = shown.squares * kept + float((values**2).sum())
        places = np.searchsorted(shown.edges, values, side="right")
        shown.found = shown.found * kept + np.bincount(places, minlength=len(shown.expected))

    def means(self) -> dict[str, float]:
        """By model."""
        return {model: shown.mean for model, shown in self._shown.items()}

    def deviations(self) -> dict[str, float]:
        """By model."""
        return {model: shown.deviation for model, shown in self._shown.items()}

    def indices(self) -> dict[str, float]:
        """The population stability index, by model."""
        return {model: shown.psi for model, shown in self._shown.items()}


def _recorded(bundle: Bundle) -> _Shown:
    recorded = manifest.read_json(bundle.directory / smoke.FILE)["shown"]
    if recorded["scores"] is None:
        return _Shown(np.empty(0), np.ones(1))
    return expecting(recorded["quantiles"], recorded["scores"])


def expecting(quantiles: Sequence[float], scores: Sequence[float]) -> _Shown:
    """What to expect where these are the scores at these quantiles, from 0 to 1; equal scores make one bin."""
    inner = dict(zip(scores[1:-1], quantiles[1:-1], strict=True))
    return _Shown(np.array(list(inner)), np.diff([0.0, *inner.values(), 1.0]))
