"""The item–item co-interaction graph: which items the same people met, near one another, and how much that says.

An edge from i to j weighs Σ decay^(gap − 1) over all pairs of steps of one history, i before j, at most `gap` steps
apart (both ways unless directed). Its similarity is that weight over √(nᵢ nⱼ) + shrinkage, n being how often an item
was met: with no decay, no direction and wide gaps this is the cosine of item-based collaborative filtering (Sarwar et
al., WWW 2001) with the shrinkage of Bell & Koren (KDD Cup 2007); with direction and short gaps, a smoothed Markov
chain. Where items are described by ids, the cosine of their idf-weighted ids can be added, which joins items that few
have met, or nobody yet.

I items of the catalogue, E edges, C ids of a description.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field

from features.settings import Settings

_sparse: Any = import_module("scipy.sparse")  # has no types

COMMON = 1000
"""An id that more items have than this says little of any of them, and joins none: what bounds the cost."""

BLOCK_ITEMS = 4096
"""Items whose similarities by content are computed at a time."""

BLOCK_EDGES = 1 << 18
"""Edges whose similarity by content is."""


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
    """Edges that are kept of each item, the most similar ones: 12 bytes each."""
    content: float = Field(default=0.0, ge=0)
    """Weight of the similarity by content, which is added to the one by people."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Edges by the item they start from; row 0 has none."""

    offsets: np.ndarray
    """int64 [I + 2]"""
    items: np.ndarray
    """int32 [E]: where an edge leads, most similar first."""
    weights: np.ndarray
    """float32 [E]: summed over pairs of steps."""
    content: np.ndarray
    """float32 [E]: similarity by content, times its weight."""
    counts: np.ndarray
    """float32 [I + 1]: how often each item was met."""
    config: Config

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        lengths: np.ndarray,
        items: int,
        config: Config,
        described: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> Self:
        """Count pairs in histories; needs about 100 bytes for each pair of items that is joined, and for each event.

        Args:
            values: item indices of all histories, one after the other; int [N].
            lengths: of the histories; int64.
            items: in the vocabulary.
            config: what counts.
            described: (ids, offsets int64 [I + 2]) of each description of the items; id 0 says nothing.
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
        content = np.zeros(len(keys))
        if config.content and described:
            unit_IC = _unit_rows(described, items)
            both = np.union1d(keys, _alike(unit_IC, config.neighbours))
            weights, keys = _spread(both, keys, weights), both
            content = config.content * _cosines(unit_IC, keys)
        kept, offsets = _strongest(keys, weights, content, counts, config)
        return cls(
            offsets=offsets,
            items=(keys[kept] % len(counts)).astype(np.int32),
            weights=weights[kept].astype(np.float32),
            content=content[kept].astype(np.float32),
            counts=counts,
            config=config,
        )

    @property
    def similarity(self) -> np.ndarray:
        """Of each edge; float32 [E]."""
        start = np.repeat(np.arange(len(self.counts)), np.diff(self.offsets))
        by_people = similarity(self.weights, self.counts[start], self.counts[self.items], self.config.shrinkage)
        return by_people + self.content

    def save(self, path: Path) -> None:
        """Write it to a file that `load` reads."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, config: Config) -> Self:
        """The graph that was saved."""
        with np.load(path) as found:
            return cls(**{name: found[name] for name in _ARRAYS}, config=config)


_ARRAYS = ("offsets", "items", "weights", "content", "counts")


def similarity(weight: np.ndarray, count: np.ndarray, other: np.ndarray, shrinkage: float) -> np.ndarray:
    """Weights of edges over the shrunk geometric mean of how often their ends were met, 0 for none; float32."""
    below = np.sqrt(count * other) + shrinkage
    return np.divide(weight, below, out=np.zeros(len(weight)), where=weight > 0).astype(np.float32)


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


def _unit_rows(described: Sequence[tuple[np.ndarray, np.ndarray]], items: int) -> Any:
    """Items by the ids that describe them, idf-weighted, each row of length 1 or 0; sparse float32 [I + 1, C]."""
    parts: list[Any] = []
    for ids, offsets in described:
        of_C = np.bincount(ids)
        idf_C = np.where((of_C > 0) & (of_C <= COMMON), np.log((items + 1) / np.maximum(of_C, 1)), 0.0)
        idf_C[:1] = 0.0
        parts.append(_sparse.csr_array((idf_C[ids].astype(np.float32), ids, offsets), shape=(items + 1, len(of_C))))
    rows_IC = _sparse.hstack(parts, format="csr")
    rows_IC.eliminate_zeros()
    norm_I = np.sqrt(np.asarray(rows_IC.multiply(rows_IC).sum(axis=1)).ravel())
    scale_I = np.divide(1, norm_I, out=np.zeros_like(norm_I), where=norm_I > 0)
    return _sparse.csr_array(_sparse.diags_array(scale_I) @ rows_IC, dtype=np.float32)


def _alike(unit_IC: Any, most: int) -> np.ndarray:
    """Edges from each item to those most like it by content, at most `most`, of equals to the lower ones: sorted."""
    unit_CI = unit_IC.T.tocsr()
    items = unit_IC.shape[0]
    keys = [np.empty(0, dtype=np.int64)]
    for first in range(0, items, BLOCK_ITEMS):
        found = (unit_IC[first : first + BLOCK_ITEMS] @ unit_CI).tocoo()
        others = found.row + first != found.col
        start, end, value = found.row[others], found.col[others].astype(np.int64), found.data[others]
        order = np.lexsort((end, -value, start))
        kept = order[_place_in_run(start[order]) < most]
        keys.append(np.sort((start[kept].astype(np.int64) + first) * items + end[kept]))
    return np.concatenate(keys)


def _cosines(unit_IC: Any, keys: np.ndarray) -> np.ndarray:
    """Of the two ends of each edge; float64."""
    found = [np.empty(0)]
    for first in range(0, len(keys), BLOCK_EDGES):
        start, end = np.divmod(keys[first : first + BLOCK_EDGES], unit_IC.shape[0])
        found.append(np.asarray(unit_IC[start].multiply(unit_IC[end]).sum(axis=1), dtype=np.float64).ravel())
    return np.concatenate(found)


def _place_in_run(sorted_N: np.ndarray) -> np.ndarray:
    """The place of each element among those equal to it, from 0; int64 [N]."""
    run = np.bincount(sorted_N)
    return np.arange(len(sorted_N)) - np.repeat(np.cumsum(run) - run, run)


def _spread(keys: np.ndarray, some: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of some of the keys as values of all, 0 for the others; both sorted."""
    found = np.zeros(len(keys))
    found[np.searchsorted(keys, some)] = values
    return found


def _strongest(
    keys: np.ndarray, weight: np.ndarray, content: np.ndarray, counts: np.ndarray, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the most similar edges of each item, by item, most similar first; and the offsets of the items.

    Args:
        keys: an edge is its start · (I + 1) + its end.
        weight: of each; float64.
        content: similarity of each by content, weighted; float64.
        counts: of the items.
        config: what is kept.
    """
    start, end = np.divmod(keys, len(counts))
    near = similarity(weight, counts[start], counts[end], config.shrinkage) + content
    order = np.lexsort((end, -near, start))
    degree = np.bincount(start, minlength=len(counts))
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.minimum(degree, config.neighbours), out=offsets[1:])
    return order[_place_in_run(start[order]) < config.neighbours], offsets
