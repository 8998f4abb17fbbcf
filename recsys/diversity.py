"""What a feed has of each category: at most so many items, and little that is like what stands above.

B requests, R candidates of each, L categories of an item at most, C categories in all.
Of arrays with an axis L it is the first: sums over a first axis are several times as fast as over a short last one.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars as pl
from pydantic import Field

from features.entities import attribute_hashes
from features.errors import InputError, one_of
from features.settings import Settings


class Caps(Settings):
    """How many items of one category a feed has."""

    by: str = "categories"
    """Column of the items whose values, or whose lists of values, are the categories."""
    most: int = Field(gt=0)
    """Items of one category. Where all that is left has a category that is full, the best of it is shown all the same:
    a feed is never shorter for its caps."""


class Diversity(Settings):
    """How much it costs to be like what is shown above.

    Two items are as similar as the cosine of their sets of categories: 1 if they are the same, 0 if they share none, or
    one of them has none. Similarity is held against the blend's value as it is, which is a sum of logarithms: with
    MMR a full overlap costs strength / (1 − strength) of it.
    """

    kind: Literal["mmr", "dpp"] = "mmr"
    """`mmr`: maximal marginal relevance, the next item maximises (1 − strength) · value − strength · its similarity to
    the most similar one above (Carbonell & Goldstein, SIGIR 1998); `dpp`: greedy MAP of a determinantal point process,
    where minus the similarity is the log of what the items above leave unexplained of this one (Chen et al.,
    NeurIPS 2018)."""
    strength: float = Field(ge=0, le=1)
    """0: the order is that of the values; 1: values decide between equally different items only."""
    by: str = "categories"
    """Column of the items whose values, or whose lists of values, are the categories."""


@dataclass(frozen=True, eq=False)
class Categories:
    """The categories of every item of a catalogue."""

    codes_N: np.ndarray
    """int64: 0 … C − 1, item after item; at the end C, which is none."""
    edges_I: np.ndarray
    """int64 [I + 1]: where those of each item begin."""
    count: int
    """C."""

    @classmethod
    def of(cls, items: pl.DataFrame, by: str, field: str) -> "Categories":
        """Those in the column `by`, which `field` of the config names.

        Raises:
            InputError: there is no such column, or it holds no categories.
        """
        if by not in items.columns:
            raise one_of(field, by, [name for name in items.columns if name not in ("index", "item_id")])
        kind = items.schema[by]
        if (kind.inner if isinstance(kind, pl.List | pl.Array) else kind).is_float():
            raise InputError(f"{field} = {by!r} holds {kind}; name a column of text or whole numbers, or lists of them")
        hashes_N, edges = attribute_hashes(items[by])
        distinct, codes_N = np.unique(hashes_N, return_inverse=True)
        return cls(np.append(codes_N, len(distinct)), edges, len(distinct))


class Candidates:
    """The categories of the candidates of B requests: each category of each request has a cell in a flat array."""

    def __init__(self, categories: Categories, items_BR: np.ndarray) -> None:
        requests, width = len(items_BR), categories.count + 1
        start_BR = categories.edges_I[items_BR]
        self.lengths_BR = categories.edges_I[items_BR + 1] - start_BR
        place_L11 = np.arange(self.lengths_BR.max(initial=1))[:, None, None]
        codes_LBR = categories.codes_N[np.where(place_L11 < self.lengths_BR, start_BR + place_L11, -1)]
        self.rows_B = np.arange(requests)
        self.cells = requests * width
        self.cells_LBR = codes_LBR + self.rows_B[:, None] * width
        self.none_B = (self.rows_B + 1) * width - 1
        """The cells of no category."""

    def cells_of(self, chosen_B: np.ndarray) -> np.ndarray:
        """The cells of one candidate of each request; [L, B]."""
        return self.cells_LBR[:, self.rows_B, chosen_B]


class CappedCategories:
    """How many items of each category are shown so far."""

    def __init__(self, candidates: Candidates, most: int) -> None:
        self.candidates = candidates
        self.left = np.full(candidates.cells, most, dtype=np.int32)
        self.left[candidates.none_B] = np.iinfo(np.int32).max

    def open(self) -> np.ndarray:
        """Whether no category of a candidate is full; bool [B, R]."""
        return self.left.take(self.candidates.cells_LBR).min(0) > 0

    def show(self, chosen_B: np.ndarray) -> None:
        """One candidate of each request is shown."""
        self.left[self.candidates.cells_of(chosen_B)] -= 1


class Penalty(Protocol):
    """What it costs a candidate to be like what is shown so far."""

    penalty_BR: np.ndarray
    """float64, at least 0; it never falls."""

    def show(self, chosen_B: np.ndarray) -> None:
        """One candidate of each request is shown."""
        ...


class Similarity:
    """The cosine of the candidates' sets of categories."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.flags = np.zeros(candidates.cells)
        self.scale_BR = 1 / np.sqrt(np.maximum(candidates.lengths_BR, 1))

    def to(self, chosen_B: np.ndarray) -> np.ndarray:
        """Of every candidate to a chosen one of its request; float64 [B, R]."""
        own_LB = self.candidates.cells_of(chosen_B)
        self.flags[own_LB] = 1
        self.flags[self.candidates.none_B] = 0
        shared_BR = self.flags.take(self.candidates.cells_LBR).sum(0)
        self.flags[own_LB] = 0
        return shared_BR * self.scale_BR * self.scale_BR[self.candidates.rows_B, chosen_B, None]


class MMR:
    """The similarity to the most similar item shown."""

    def __init__(self, candidates: Candidates, places: int) -> None:
        self.similarity = Similarity(candidates)
        self.penalty_BR = np.zeros(candidates.lengths_BR.shape)

    def show(self, chosen_B: np.ndarray) -> None:
        """One candidate of each request is shown."""
        np.maximum(self.penalty_BR, self.similarity.to(chosen_B), out=self.penalty_BR)


OWN = 0.1
"""What of an item no other can explain, as a share of its variance: items of the same categories are not the same."""


class DPP:
    """Minus the log of what is left of each item's variance when those shown are known.

    It is the diagonal of the Schur complement in the kernel OWN · I + (1 − OWN) · similarity, kept up by one row of
    the Cholesky factor for each item shown (Chen et al. 2018, algorithm 1).
    """

    def __init__(self, candidates: Candidates, places: int) -> None:
        self.similarity = Similarity(candidates)
        requests, retrieved = candidates.lengths_BR.shape
        self.left_BR = np.ones((requests, retrieved))
        self.penalty_BR = np.zeros((requests, retrieved))
        self.factor_BKR = np.empty((requests, places, retrieved))
        self.shown = 0

    def show(self, chosen_B: np.ndarray) -> None:
        """One candidate of each request is shown."""
        rows_B = self.similarity.candidates.rows_B
        above_BKR = self.factor_BKR[:, : self.shown]
        row_BR = (1 - OWN) * self.similarity.to(chosen_B)
        row_BR -= (above_BKR[rows_B, :, chosen_B][:, None] @ above_BKR)[:, 0]
        row_BR /= np.sqrt(self.left_BR[rows_B, chosen_B, None])
        self.factor_BKR[:, self.shown] = row_BR
        self.shown += 1
        # Exact arithmetic would never come below OWN.
        self.left_BR = np.maximum(self.left_BR - row_BR**2, OWN)
        self.penalty_BR = -np.log(self.left_BR)


PENALTIES = {"mmr": MMR, "dpp": DPP}
