"""Whether scores are still what they were when the bundle was made."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

KEEPS = 10_000.0
"""Scores that the moving figures remember, about."""


@dataclass
class _Moments:
    mean: float = 0.0
    square: float = 0.0
    count: float = 0.0


class Drift:
    """Moving mean and deviation of the scores that each model's feeds have shown."""

    def __init__(self) -> None:
        self._moments: dict[str, _Moments] = {}

    def add(self, model: str, scores: Sequence[float]) -> None:
        """The scores of one feed."""
        if not scores:
            return
        moments = self._moments.setdefault(model, _Moments())
        mean = sum(scores) / len(scores)
        square = sum(score * score for score in scores) / len(scores)
        kept = moments.count * exp(-len(scores) / KEEPS)
        weight = len(scores) / (kept + len(scores))
        moments.mean += weight * (mean - moments.mean)
        moments.square += weight * (square - moments.square)
        moments.count = kept + len(scores)

    def means(self) -> dict[str, float]:
        """By model."""
        return {model: moments.mean for model, moments in self._moments.items()}

    def deviations(self) -> dict[str, float]:
        """By model."""
        return {model: sqrt(max(0.0, m.square - m.mean**2)) for model, m in self._moments.items()}
