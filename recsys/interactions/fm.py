"""Factorisation machine over compressed features (Wukong: Zhang et al., ICML 2024, arXiv:2403.02545).

The products of all pairs of features, F², are the most of what a wide schema computes. Projected to C features first,
as DCNv2 and Wukong do, they are F · C, and linear in F.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction, mixtures
from recsys.modules.candidates import Candidates


class Config(Settings):
    """The settings of one."""

    rank: int = Field(default=8, gt=0)
    """Features that all are projected to before they are multiplied: C."""


class FactorisationMachine(Interaction):
    """x_BFD → y_BK with K = C · F: products of C mixtures of the features with each of them.

    Mixtures come first, for on CPU that takes half the time of the transposed products.
    """

    def __init__(self, features: int, rank: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features, rank, bias=False)
        self.norm = nn.LayerNorm(features * rank)
        self.out_dim = features * rank

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, K]."""
        mixed_BCD = mixtures(self.mix.weight, x_BFD)
        return self.norm(torch.bmm(mixed_BCD, x_BFD.transpose(1, 2)).flatten(1))

    def of_candidates(self, x: Candidates) -> Tensor:
        """The same of candidates."""
        return self.norm(x.products(x.mixtures(self.mix.weight)).flatten(1))


def build(config: Config, features: int, dim: int) -> FactorisationMachine:
    """Of that many features; `dim` does not matter."""
    del dim
    return FactorisationMachine(features, config.rank)
