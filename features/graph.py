"""The item–item co-interaction graph: which items the same people met, near one another, and how much that says.

An edge from i to j weighs Σ decay^(gap − 1) over all pairs of steps of one history, i before j, at most `gap` steps
apart (both ways unless directed). Its similarity is that weight over √(nᵢ nⱼ) + shrinkage, n being how often an item
was met: with no decay, no direction and wide gaps this is the cosine of item-based collaborative filtering (Sarwar et
al., WWW 2001) with the shrinkage of Bell & Koren (KDD Cup 2007); with direction and short gaps, a smoothed Markov
chain.

I items of the catalogue, E edges.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field

from features.settings import Settings


class Config(Settings):
    """What makes the graph."""

    gap: int = Field(default=50, gt=0)
    """Steps that two items of a history may be apart."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """Weight of a pair relative to one that is a step closer."""
    directed: bool = False
    """Whether an item leads only to later ones."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Added to the similarity's denominator, so that a pair seen once says little."""
    neighbours: int = Field(default=256, gt=0)
    """Edges that are kept of each item, the most similar ones: 8 bytes each."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Edges by the item they start from; row 0 has none."""

    offsets: np.ndarray
    """int64 [I + 2]"""
    items: np.ndarray
    """int32 [E]: where an edge leads, most similar first."""
    weights: np.ndarray
    """float32 [E]: summed over pairs of steps."""
    counts: np.ndarray
    """float32 [I + 1]: how often each item was met."""
    config: Config

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray, items: int, config: Config) -> Self:
        """Count pairs in histories; needs about 100 bytes for each pair of items that is joined, and for each event.

        Args:
            values: item indices of all histories, one after the other; int [N].
            lengths: of the histories; int64.
            items: in the vocabulary.
            config: what counts.
        """
        counts = np.bincount(values, minlength=items + 1).astype(np.float32)
        history_N = np.repeat(np.arange(len(lengths)), lengths)
        steps = values.astype(np.int64)
        keys, weights = np.empty(0, dtype=np.int64), np.empty(0)
        for gap in range(1, min(config.gap, int(lengths.max(initial=1)) - 1) + 1):
            near = (history_N[gap:] == history_N[:-gap]) & (steps[gap:] != steps[:-gap])
            before, after = steps[:-gap][near], steps[gap:][near]
            for start, end in ((before, after),) if config.directed else ((before, after), (after, before)):
                key, pairs = np.unique(start * (items + 1) + end, return_counts=True)
                keys, weights = _added(keys, weights, key, pairs * config.decay ** (gap - 1))
        edges = _strongest(keys, weights, counts, config)
        return cls(edges[0], edges[1], edges[2], counts, config)

    @property
    def similarity(self) -> np.ndarray:
        """Of each edge; float32 [E]."""
        start = np.repeat(np.arange(len(self.counts)), np.diff(self.offsets))
        return similarity(self.weights, self.counts[start], self.counts[self.items], self.config.shrinkage)

    def save(self, path: Path) -> None:
        """Write it to a file that `load` reads."""
        with path.open("wb") as file:
            np.savez(file, offsets=self.offsets, items=self.items, weights=self.weights, counts=self.counts)

    @classmethod
    def load(cls, path: Path, config: Config) -> Self:
        """The graph that was saved."""
        with np.load(path) as found:
            return cls(found["offsets"], found["items"], found["weights"], found["counts"], config)


def similarity(weight: np.ndarray, count: np.ndarray, other: np.ndarray, shrinkage: float) -> np.ndarray:
    """Weights of edges over the shrunk geometric mean of how often their ends were met; float32."""
    return (weight / (np.sqrt(count * other) + shrinkage)).astype(np.float32)


def _added(
    keys: np.ndarray, weights: np.ndarray, more: np.ndarray, more_weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two sorted lists of distinct keys as one, weights of the same key summed."""
    merged = np.concatenate([keys, more])
    order = np.argsort(merged, kind="stable")  # of two sorted runs: a merge
    merged = merged[order]
    first = np.flatnonzero(np.diff(merged, prepend=-1))
    if not len(first):
        return merged, weights
    return merged[first], np.add.reduceat(np.concatenate([weights, more_weights])[order], first)


def _strongest(
    keys: np.ndarray, weight: np.ndarray, counts: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offsets, items, weights) of the most similar edges of each item.

    Args:
        keys: an edge is its start · (I + 1) + its end.
        weight: of each; float64.
        counts: of the items.
        config: what is kept.
    """
    start, end = np.divmod(keys, len(counts))
    near = similarity(weight, counts[start], counts[end], config.shrinkage)
    order = np.lexsort((end, -near, start))
    degree = np.bincount(start, minlength=len(counts))
    place = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
    kept = order[place < config.neighbours]
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.minimum(degree, config.neighbours), out=offsets[1:])
    return offsets, end[kept].astype(np.int32), weight[kept].astype(np.float32)
