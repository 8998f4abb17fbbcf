"""The last part of a tower: a vector through an MLP to one of length 1, so that products are cosines."""

from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.modules.mlp import mlp


class Tower(nn.Module):
    """x_ND → [N, D], of length 1."""

    def __init__(self, dim: int, layers: tuple[int, ...]) -> None:
        """`layers`: hidden widths of the MLP; none: there is no MLP."""
        super().__init__()
        self.mlp = mlp((dim, *layers, dim), last_linear=True) if layers else nn.Identity()

    def forward(self, x_ND: Tensor) -> Tensor:
        """float32 of the same shape."""
        return normalize(self.mlp(x_ND).float(), dim=1)
