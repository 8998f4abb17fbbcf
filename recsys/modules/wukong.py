"""A layer of Wukong (Zhang et al., ICML 2024, arXiv:2403.02545): products of features beside mixtures of them.

B examples, F features, D their width, C vectors made of products, G vectors in all.
"""

import torch
from torch import Tensor, nn

from recsys.interactions.compression import Compression
from recsys.interactions.fm import FactorisationMachine
from recsys.modules.candidates import Candidates
from recsys.modules.mlp import mlp


class WukongLayer(nn.Module):
    """x_BFD → y_BGD."""

    def __init__(self, features: int, dim: int, products: int, mixtures: int, rank: int, hidden: int) -> None:
        """A layer.

        Args:
            features: F.
            dim: D.
            products: C.
            mixtures: G − C.
            rank: features that all are projected to before they are multiplied.
            hidden: width of the MLP between the products and the vectors made of them.
        """
        super().__init__()
        out = products + mixtures
        self.machine = FactorisationMachine(features, rank)
        self.products = mlp((self.machine.out_dim, hidden, products * dim), last_linear=True)
        self.compression = Compression(features, dim, mixtures)
        self.shortcut = nn.Identity() if features == out else Compression(features, dim, out)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor | Candidates) -> Tensor:
        """[B, F, D] → [B, G, D]."""
        if isinstance(self.shortcut, Compression):
            onto_BGD = self.shortcut.of(x)
        else:
            onto_BGD = x.whole_BFD if isinstance(x, Candidates) else x
        products_BCD = self.products(self.machine.of(x)).unflatten(1, (-1, onto_BGD.shape[2]))
        return self.norm(torch.cat([products_BCD, self.compression.of(x)], dim=1) + onto_BGD)
