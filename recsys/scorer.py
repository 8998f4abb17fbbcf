"""What every retriever does, learned or counted: score the catalogue for histories.

B users, N history steps in all, I items of the catalogue; column 0 stands for what is not in the vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Histories:
    """Item indices of B users, oldest first, none of them 0; a user may have none."""

    items_N: np.ndarray
    """int64"""
    lengths_B: np.ndarray
    """int64"""

    @property
    def rows_N(self) -> np.ndarray:
        """The user of each step."""
        return np.repeat(np.arange(len(self.lengths_B)), self.lengths_B)

    @property
    def steps_back_N(self) -> np.ndarray:
        """How many steps each one lies before its user's last: 0 for the last."""
        ends = np.cumsum(self.lengths_B)
        return np.repeat(ends, self.lengths_B) - 1 - np.arange(len(self.items_N))


class Scorer(Protocol):
    """A retriever."""

    def scores(self, histories: Histories) -> np.ndarray:
        """float32 [B, I + 1], higher is better, finite; the caller leaves out column 0 and what was seen."""
        ...
