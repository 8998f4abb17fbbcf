"""What every file of this folder has: a `Config`, and `build(config, features, dim)` → an `Interaction`.

B examples, F features, D their common width, G vectors that come out, K numbers that come out, M mixtures of vectors.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from recsys.modules.candidates import Candidates


class Interaction(nn.Module, ABC):
    """x_BFD → y_BGD, vectors of the same width, or y_BK, plain numbers; each row of itself alone."""

    out_vectors: int = 0
    """G; 0: numbers come out."""
    out_dim: int
    """Numbers of an example that come out: G · D, or K."""

    @abstractmethod
    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, G, D] or [B, K]."""

    def of_candidates(self, x: Candidates) -> Tensor:
        """The same of candidates; an interaction says it in fewer products where it can."""
        return self(x.whole_BFD)

    def of(self, x: Tensor | Candidates) -> Tensor:
        """Of features in either form."""
        return self.of_candidates(x) if isinstance(x, Candidates) else self(x)

    def mixed(self, x: Tensor | Candidates, weight_MG: Tensor, onto: Tensor) -> Tensor:
        """Mixtures of the vectors that come out, added to others; [B, M, D].

        Args:
            x: the features.
            weight_MG: of each vector in each mixture.
            onto: [B, M, D]; it may be written over.
        """
        return mixtures(weight_MG, self.of(x), onto)


def mixtures(weight_GF: Tensor, x_BFD: Tensor, onto: Tensor | None = None) -> Tensor:
    """Each row's features mixed by the same weights; [B, G, D].

    One small product a row. `weight_GF @ x_BFD` makes one large product of it, and to that end copies x transposed, and
    leaves y transposed for whoever reads it: on CPU up to four times as long, training or not.

    Args:
        weight_GF: of each feature in each mixture.
        x_BFD: the features.
        onto: [B, G, D], to which they are added, in place.
    """
    weight_BGF = weight_GF.expand(x_BFD.shape[0], -1, -1)
    return torch.bmm(weight_BGF, x_BFD) if onto is None else onto.baddbmm_(weight_BGF, x_BFD)
