"""Most popular first: the log of how many interactions an item had."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from embeddings.histories import Histories
from features.settings import Settings


class Config(Settings):
    """The section [baselines.popularity]; there is nothing to set."""


@dataclass(frozen=True)
class Popularity:
    """The same scores for everybody."""

    log_count_I: np.ndarray
    """float32 [I + 1]"""

    def scores(self, histories: Histories) -> np.ndarray:
        """[B, I + 1], a view of one row."""
        return np.broadcast_to(self.log_count_I, (len(histories.lengths_B), len(self.log_count_I)))

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        np.save(folder / _COUNTS, self.log_count_I)


def fit(config: Config, interactions: pl.DataFrame, items: pl.DataFrame) -> Popularity:
    """Count `interactions` (`item_index`) for the vocabulary `items`."""
    return from_counts(np.bincount(interactions["item_index"].to_numpy(), minlength=items.height))


def load(folder: Path) -> Popularity:
    """What was saved, memory-mapped."""
    return Popularity(np.load(folder / _COUNTS, mmap_mode="r"))


def from_counts(count_I: np.ndarray) -> Popularity:
    """The same from interactions already counted; int64 [I + 1], whose place 0 does not matter."""
    log_count_I = np.log1p(count_I).astype(np.float32)
    log_count_I[0] = 0.0
    return Popularity(log_count_I)


_COUNTS = "log_counts.npy"
