"""Deep hierarchical ensemble network (Zhang et al., DLP-KDD 2022, arXiv:2203.11014): layers of unlike interactions.

A layer gives the same features to several interaction modules, brings what they make of them to one shape, adds it all
onto a projected shortcut, and normalises: xₙ₊₁ = norm(Σᵢ projectionᵢ(interactionᵢ(xₙ)) + shortcut(xₙ)). So the layer
after it sees interactions of interactions of several kinds.

A sum of projections is one projection of what is put side by side, so a layer multiplies twice, whatever the number of
its modules: once for all vectors, the shortcut among them, and once for all numbers.

B examples, F features, D their common width, G vectors after a layer, V vectors and K numbers of all modules.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.interactions._contract import Interaction


class DHENLayer(nn.Module):
    """x_BFD → y_BGD."""

    def __init__(self, interactions: Sequence[Interaction], features: int, dim: int, out: int) -> None:
        """An ensemble.

        Args:
            interactions: of `features` features of width `dim`; one at least.
            features: F.
            dim: D.
            out: G.
        """
        super().__init__()
        self.interactions = nn.ModuleList(interactions)
        self.of_vectors = [module.out_vectors > 0 for module in interactions]
        vectors = features + sum(module.out_vectors for module in interactions)
        numbers = sum(module.out_dim for module in interactions if not module.out_vectors)
        self.mix = nn.Linear(vectors, out, bias=False)
        self.numbers = nn.Linear(numbers, out * dim) if numbers else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, G, D]."""
        found = [module(x_BFD) for module in self.interactions]
        vectors = [y for y, vectors in zip(found, self.of_vectors, strict=True) if vectors]
        y_BGD = torch.matmul(self.mix.weight, torch.cat([x_BFD, *vectors], dim=1))
        if self.numbers is not None:
            numbers = [y for y, vectors in zip(found, self.of_vectors, strict=True) if not vectors]
            y_BGD = y_BGD + self.numbers(torch.cat(numbers, dim=1)).view_as(y_BGD)
        return self.norm(y_BGD)
