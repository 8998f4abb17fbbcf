"""A cross network over all numbers of all features: see `recsys.modules.cross_network`."""

from pydantic import Field
from torch import Tensor

from features.settings import Settings
from recsys.interactions._contract import Interaction
from recsys.modules.cross_network import CrossNetwork


class Config(Settings):
    """The settings of one."""

    layers: int = Field(default=1, gt=0)
    """Cross layers, one after the other."""
    rank: int = Field(default=64, gt=0)
    """Width between the two factors of their weights."""


class Cross(Interaction):
    """x_BFD → y_BFD."""

    def __init__(self, features: int, dim: int, layers: int, rank: int) -> None:
        super().__init__()
        self.network = CrossNetwork(features * dim, layers, rank)
        self.out_vectors, self.out_dim = features, features * dim

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Of the same shape."""
        return self.network(x_BFD.flatten(1)).view_as(x_BFD)


def build(config: Config, features: int, dim: int) -> Cross:
    """Of that many features of that width."""
    return Cross(features, dim, config.layers, config.rank)
