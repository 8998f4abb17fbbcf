"""Every item compared with every query: exact, and the measure of what is faster."""

import numpy as np
import torch
from torch import Tensor

from recsys.index.protocol import Extras, Found, Lists

_SCORES = 1 << 26
"""Scores that are held at a time."""


class Flat:
    """An index that looks at everything; B queries, D width, I items, k answers."""

    def __init__(self, vectors: np.ndarray) -> None:
        """Take the vectors as they are: float32 [I + 1, D], row 0 is no item."""
        self.vectors_ID = torch.from_numpy(vectors)

    def search(
        self, query_BD: np.ndarray, k: int, *, extras: Extras | None = None, excluded: Lists | None = None
    ) -> Found:
        """See `Index.search`."""
        queries, rows = len(query_BD), len(self.vectors_ID)
        items_Bk, scores_Bk = np.zeros((queries, k), np.int64), np.full((queries, k), -np.inf, np.float32)
        kept = min(k, rows)
        step = max(1, _SCORES // rows)
        for first in range(0, queries, step):
            part = slice(first, min(first + step, queries))
            found = torch.topk(self._scores(query_BD, part, extras, excluded), kept, dim=1)
            scores_Bk[part, :kept] = found.values.numpy()
            items_Bk[part, :kept] = found.indices.numpy()
        items_Bk[np.isneginf(scores_Bk)] = 0
        return Found(items_Bk, scores_Bk, np.full(queries, rows - 1))

    def _scores(self, query_BD: np.ndarray, part: slice, extras: Extras | None, excluded: Lists | None) -> Tensor:
        """float32 [queries of `part`, I + 1]."""
        scores_BI = torch.from_numpy(query_BD[part]) @ self.vectors_ID.T
        if extras is not None:
            row_N, among_N, items_N = self._places(extras, part)
            bonus_N = torch.from_numpy(extras.bonus_N[among_N])
            scores_BI.index_put_((row_N, items_N), bonus_N, accumulate=True)
        if excluded is not None:
            row_N, _, items_N = self._places(excluded, part)
            scores_BI[row_N, items_N] = -torch.inf
        scores_BI[:, 0] = -torch.inf
        return scores_BI

    def _places(self, lists: Lists, part: slice) -> tuple[Tensor, np.ndarray, Tensor]:
        """(query, place in the lists, item) of everything that some queries' lists hold and the index has."""
        ends = lists.offsets_B1[part.start : part.stop + 1]
        place_N = np.arange(ends[0], ends[-1])
        row_N = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        items_N = lists.items_N[place_N]
        known_N = (items_N > 0) & (items_N < len(self.vectors_ID))
        return torch.from_numpy(row_N[known_N]), place_N[known_N], torch.from_numpy(items_N[known_N])
