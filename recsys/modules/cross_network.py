"""Cross layers of low rank (DCN V2: Wang et al., WWW 2021, arXiv:2008.13535): xₙ₊₁ = x₀ ⊙ (U V xₙ + b) + xₙ.

B examples, K numbers of all features.
"""

import torch
from torch import Tensor, nn


class CrossNetwork(nn.Module):
    """x_BK → y_BK: products of up to n + 1 of the numbers, after n layers."""

    def __init__(self, width: int, layers: int, rank: int) -> None:
        """`width`: K. `rank`: between the two factors of a layer's weight."""
        super().__init__()
        self.narrow = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers))
        self.widen = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))

    def forward(self, x_BK: Tensor) -> Tensor:
        """Of the same shape."""
        y_BK = x_BK
        for narrow, widen in zip(self.narrow, self.widen, strict=True):
            y_BK = torch.addcmul(y_BK, x_BK, widen(narrow(y_BK)))
        return y_BK
