"""A multi-layer perceptron over all numbers of all features: interactions that have no formula."""

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction
from recsys.modules.candidates import Candidates
from recsys.modules.mlp import mlp


class Config(Settings):
    """The settings of one."""

    layers: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1)
    """Widths of its layers; the last is what comes out."""


class Deep(Interaction):
    """x_BFD → y_BK."""

    def __init__(self, features: int, dim: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = mlp((features * dim, *layers), last_linear=False)
        self.out_dim = layers[-1]

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, K]."""
        return self.mlp(x_BFD.flatten(1))

    def of_candidates(self, x: Candidates) -> Tensor:
        """The same of candidates."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        return self.mlp[1:](x.linear(first.weight, first.bias))


def build(config: Config, features: int, dim: int) -> Deep:
    """Of that many features of that width."""
    return Deep(features, dim, config.layers)
