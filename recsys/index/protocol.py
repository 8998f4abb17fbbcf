"""What every index does, so that an exact one can stand beside a fast one.

B queries, D width, I items, k answers, N items of all queries' lists (jagged). Items are numbered from 1; 0 is no item.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Lists:
    """Items of each query, one list behind the other."""

    items_N: np.ndarray
    """int64; what an index does not hold is passed over"""
    offsets_B1: np.ndarray
    """int64, where each list begins, and the end"""


@dataclass(frozen=True)
class Extras(Lists):
    """Items that are scored whatever the index thinks of them, such as neighbours of the last ones in a graph."""

    bonus_N: np.ndarray
    """float32, added to an item's score; the bonuses of an item that a list has twice are summed"""


@dataclass(frozen=True)
class Found:
    """The best items of each query, best first."""

    items_Bk: np.ndarray
    """int64; 0 behind the last one"""
    scores_Bk: np.ndarray
    """float32; −inf behind the last one"""
    scored_B: np.ndarray
    """int64, how many items were compared with the query"""


class Index(Protocol):
    """Vectors of items."""

    def search(
        self, query_BD: np.ndarray, k: int, *, extras: Extras | None = None, excluded: Lists | None = None
    ) -> Found:
        """The k items of the greatest score: dot product with the query, plus what `extras` add.

        Args:
            query_BD: float32.
            k: answers to each query; there are fewer where the index holds, or looks at, fewer items.
            extras: items that are always compared, with what to add to their scores.
            excluded: items that are never answers, extras or not.
        """
        ...
