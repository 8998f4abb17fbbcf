"""Deep hierarchical ensemble network (Zhang et al., DLP-KDD 2022, arXiv:2203.11014): layers of unlike interactions.

A layer gives the same features to several interaction modules, brings what they make of them to one shape, adds it all
onto a projected shortcut, and normalises: xₙ₊₁ = norm(Σᵢ projectionᵢ(interactionᵢ(xₙ)) + shortcut(xₙ)). So the layer
after it sees interactions of interactions of several kinds.

Projections of numbers are summed by one product of all that is put side by side. Those of vectors, the shortcut among
them, are added to it in place as they come: side by side they would be the largest tensor of the layer, and a copy.

B examples, F features, D their common width, G vectors after a layer, V vectors and K numbers of all modules.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from recsys.interactions._contract import Interaction, mixtures
from recsys.modules.candidates import Candidates


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
        self.features = features
        self.interactions = nn.ModuleList(interactions)
        self.of_vectors = [module.out_vectors > 0 for module in interactions]
        vectors = features + sum(module.out_vectors for module in interactions)
        numbers = sum(module.out_dim for module in interactions if not module.out_vectors)
        self.mix = nn.Linear(vectors, out, bias=False)
        self.numbers = nn.Linear(numbers, out * dim) if numbers else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor | Candidates) -> Tensor:
        """[B, F, D] → [B, G, D]."""
        y_BGD = None
        if self.numbers is not None:
            said = [part.of(x) for part, vectors in zip(self.ensemble, self.of_vectors, strict=True) if not vectors]
            y_BGD = self.numbers(torch.cat(said, dim=1)).unflatten(1, (-1, self.norm.weight.shape[0]))
        makers = [part for part, vectors in zip(self.ensemble, self.of_vectors, strict=True) if vectors]
        weights = self.mix.weight.split([self.features, *(part.out_vectors for part in makers)], dim=1)
        y_BGD = x.mixtures(weights[0], y_BGD) if isinstance(x, Candidates) else mixtures(weights[0], x, y_BGD)
        for weight_GV, part in zip(weights[1:], makers, strict=True):
            y_BGD = part.mixed(x, weight_GV, y_BGD)
        return self.norm(y_BGD)

    @property
    def ensemble(self) -> list[Interaction]:
        """The interactions."""
        return cast("list[Interaction]", list(self.interactions))
