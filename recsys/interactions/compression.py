"""Linear compression: mixtures of features (Wukong: Zhang et al., ICML 2024, arXiv:2403.02545, its LCB)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction


class Config(Settings):
    """The settings of one."""

    features: int = Field(default=8, gt=0)
    """Mixtures that come out: G."""


class Compression(Interaction):
    """x_BFD → y_BGD: what is linear in the features, kept beside what is not."""

    def __init__(self, features: int, dim: int, out: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features, out, bias=False)
        self.out_vectors, self.out_dim = out, out * dim

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, G, D]."""
        return mixtures(self.mix.weight, x_BFD)


def mixtures(weight_GF: Tensor, x_BFD: Tensor, onto: Tensor | None = None) -> Tensor:
    """Each row's features mixed by the same weights; [B, G, D].

    One small product a row. `weight_GF @ x_BFD` makes one large product of it, and to that end copies x transposed, and
    leaves y transposed for whoever reads it: on CPU up to four times as long, training or not.

    Args:
        weight_GF: of each feature in each mixture.
        x_BFD: the features.
        onto: [B, G, D], to which they are added.
    """
    weight_BGF = weight_GF.expand(x_BFD.shape[0], -1, -1)
    return torch.bmm(weight_BGF, x_BFD) if onto is None else torch.baddbmm(onto, weight_BGF, x_BFD)


def build(config: Config, features: int, dim: int) -> Compression:
    """Of that many features of that width."""
    return Compression(features, dim, config.features)
