"""Pairwise dot products between features (DLRM: Naumov et al., 2019, https://arxiv.org/abs/1906.00091)."""

import torch
from torch import Tensor

from features.settings import Settings
from recsys.interactions._contract import Interaction


class Config(Settings):
    """It has no settings."""


class Dot(Interaction):
    """x_BFD → y_BK with K = F (F − 1) / 2: the products of all pairs of different features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("pairs", rows * features + columns, persistent=False)
        self.out_dim = features * (features - 1) // 2

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, K]."""
        return torch.bmm(x_BFD, x_BFD.transpose(1, 2)).flatten(1).index_select(1, self.get_buffer("pairs"))


def build(config: Config, features: int, dim: int) -> Dot:
    """Of that many features; `dim` does not matter."""
    del config, dim
    return Dot(features)
