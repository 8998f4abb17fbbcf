"""A cross network over all numbers of all features: see `recsys.modules.cross_network`.

B examples, R requests of A candidates each, F features: S that candidates share, C of their own; D their width,
M mixtures, P rank, Q = P + 1.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction, mixtures
from recsys.modules.candidates import Candidates
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

    def mixed(self, x: Tensor | Candidates, weight_MG: Tensor, onto: Tensor) -> Tensor:
        """Of one layer over candidates, crossed and mixed: for what they share, one small product of each request.

        A vector is x ⊙ (U n + b) + x = x ⊙ (W m), W being 1 + b beside U, and m 1 beside n; where x is a request's,
        the mixtures of it are linear in m.
        """
        if isinstance(x, Tensor) or len(self.network.narrow) > 1:
            return super().mixed(x, weight_MG, onto)
        narrow, widen = self.network.narrow[0], self.network.widen[0]
        assert isinstance(narrow, nn.Linear)
        assert isinstance(widen, nn.Linear)
        requests, shared, dim = x.shared_RSD.shape
        n_BP = x.linear(narrow.weight)
        m_BQ = torch.cat([n_BP, n_BP.new_ones(len(n_BP), 1)], dim=1)
        widen_FDQ = torch.cat([widen.weight, 1 + widen.bias.unsqueeze(1)], dim=1).unflatten(0, (-1, dim))
        shared_MS, own_MC = weight_MG.split([shared, weight_MG.shape[1] - shared], dim=1)
        crossed_RSDQ = x.shared_RSD.unsqueeze(3) * widen_FDQ[:shared]
        mixed_RMDQ = (shared_MS @ crossed_RSDQ.flatten(2)).view(requests, -1, widen_FDQ.shape[2])
        y_BMD = x.of_requests(onto.flatten(1)).baddbmm_(x.of_requests(m_BQ), mixed_RMDQ.transpose(1, 2)).view_as(onto)
        crossed_BCD = (m_BQ @ widen_FDQ[shared:].flatten(0, 1).T).view_as(x.own_BCD).mul_(x.own_BCD)
        return mixtures(own_MC, crossed_BCD, y_BMD)


def build(config: Config, features: int, dim: int) -> Cross:
    """Of that many features of that width."""
    return Cross(features, dim, config.layers, config.rank)
