"""How much a value of the co-interaction graph adds to a score."""

import math

import torch
from torch import Tensor, nn


class Link(nn.Module):
    """s · log(1 + x / τ), with s and τ learned: evidence counts by its order of magnitude, none counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.log_tau = nn.Parameter(torch.tensor(math.log(0.02)))

    def forward(self, value_M: Tensor) -> Tensor:
        """[M] ≥ 0 → [M], what is added to scores."""
        return self.scale * torch.log1p(value_M * torch.exp(-self.log_tau))
