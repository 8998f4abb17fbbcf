"""What every file of this folder has: a `Config`, and `build(config, features, dim)` → an `Interaction`.

B examples, F features, D their common width, G vectors that come out, K numbers that come out.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Interaction(nn.Module, ABC):
    """x_BFD → y_BGD, vectors of the same width, or y_BK, plain numbers; each row of itself alone."""

    out_vectors: int = 0
    """G; 0: numbers come out."""
    out_dim: int
    """Numbers of an example that come out: G · D, or K."""

    @abstractmethod
    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, G, D] or [B, K]."""
