"""Items like those in the history: cosine between items' sets of users, shrunk, recent steps weighing more.

Shrinkage after Bell & Koren (KDD Cup 2007); where items have categories, the cosine of their idf-weighted categories
is added, which reaches items that few have met.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from pydantic import Field
from scipy.sparse import csr_array, diags_array, load_npz, save_npz

from embeddings.histories import Histories
from features.manifest import read_json, write_json
from features.settings import Settings


class Config(Settings):
    """The section [baselines.item_knn]."""

    shrinkage: float = Field(default=10.0, ge=0)
    """Added to the cosine's denominator, so that a similarity seen once counts little."""
    decay: float = Field(default=0.5, gt=0, le=1)
    """Weight of a history step relative to the one after it."""
    categories: float = Field(default=0.05, ge=0)
    """Weight of the similarity by categories."""


@dataclass(frozen=True)
class ItemKNN:
    """Sparse similarities between all pairs of items that share a user."""

    similarity_II: csr_array
    """float32 [I + 1, I + 1], zero diagonal."""
    category_IC: csr_array
    """float32 [I + 1, C]: unit rows of idf-weighted categories, times the square root of their weight in the score."""
    decay: float
    columns: int
    """I + 1"""

    def scores(self, histories: Histories) -> np.ndarray:
        """[B, I + 1]: similarities to the history's items, weighted by recency."""
        shape = (len(histories.lengths_B), self.columns)
        weight_N = (self.decay**histories.steps_back_N).astype(np.float32)
        # What float32 would lose beside the last step need not be looked up.
        kept_N = weight_N > np.finfo(np.float32).eps / 16
        weight_BI = csr_array((weight_N[kept_N], (histories.rows_N[kept_N], histories.items_N[kept_N])), shape=shape)
        by_users = cast("csr_array", weight_BI @ self.similarity_II)
        by_categories = cast("csr_array", weight_BI @ self.category_IC @ self.category_IC.T)
        return (by_users + by_categories).toarray()

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        save_npz(folder / _SIMILARITY, self.similarity_II)
        save_npz(folder / _CATEGORIES, self.category_IC)
        write_json(folder / _SETTINGS, {"decay": self.decay, "columns": self.columns})


def fit(config: Config, interactions: pl.DataFrame, items: pl.DataFrame) -> ItemKNN:
    """Count together what `interactions` (`user_index, item_index`) share, for the vocabulary `items`."""
    users, chosen = interactions["user_index"].to_numpy(), interactions["item_index"].to_numpy()
    known = (users > 0) & (chosen > 0)
    shape = (int(users.max()) + 1, items.height)
    met = csr_array((np.ones(known.sum(), dtype=np.float32), (users[known], chosen[known])), shape=shape)
    met.data[:] = 1.0  # an item met twice by one user counts once
    together = (met.T @ met).tocoo()
    apart = together.row != together.col
    row, column, count = together.row[apart], together.col[apart], together.data[apart]
    norm = np.sqrt(np.asarray(met.sum(axis=0)).ravel())
    cosine = count / (norm[row] * norm[column] + config.shrinkage)
    similarity = csr_array((cosine.astype(np.float32), (row, column)), shape=(items.height, items.height))
    return ItemKNN(similarity, _category_vectors(items, config.categories), config.decay, items.height)


def load(folder: Path) -> ItemKNN:
    """What was saved."""
    return ItemKNN(load_npz(folder / _SIMILARITY), load_npz(folder / _CATEGORIES), **read_json(folder / _SETTINGS))


def _category_vectors(items: pl.DataFrame, weight: float) -> csr_array:
    """[I + 1, C]; C = 0 where items have no categories."""
    if "categories" not in items.columns or weight == 0:
        return csr_array((items.height, 0), dtype=np.float32)
    pairs = items.select("index", "categories").explode("categories").drop_nulls().unique(maintain_order=True)
    code = pairs["categories"].cast(pl.Categorical).to_physical().rank("dense").to_numpy() - 1
    of = np.bincount(code)
    idf = np.log(items.height / of)
    rows = csr_array((idf[code], (pairs["index"].to_numpy(), code)), shape=(items.height, len(of)))
    norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    scale = np.divide(np.sqrt(weight), norm, out=np.zeros_like(norm), where=norm > 0)
    return csr_array(diags_array(scale) @ rows, dtype=np.float32)


_SIMILARITY, _CATEGORIES, _SETTINGS = "similarity.npz", "categories.npz", "settings.json"
