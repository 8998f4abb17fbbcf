"""Instance-guided gates (MaskNet: Wang et al., DLP-KDD 2021, arXiv:2102.07619): each number by what all say of it."""

from pydantic import Field
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction
from recsys.modules.mlp import mlp


class Config(Settings):
    """The settings of one."""

    hidden: int = Field(default=64, gt=0)
    """Width of the layer between all numbers and their gates."""


class Gate(Interaction):
    """x_BFD → y_BFD: norm(x) ⊙ mask(x)."""

    def __init__(self, features: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mask = mlp((features * dim, hidden, features * dim), last_linear=True)
        self.out_vectors, self.out_dim = features, features * dim

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Of the same shape."""
        return self.norm(x_BFD) * self.mask(x_BFD.flatten(1)).view_as(x_BFD)


def build(config: Config, features: int, dim: int) -> Gate:
    """Of that many features of that width."""
    return Gate(features, dim, config.hidden)
