"""Linear compression: mixtures of features (Wukong: Zhang et al., ICML 2024, arXiv:2403.02545, its LCB)."""

from pydantic import Field
from torch import Tensor, nn

from features.settings import Settings
from recsys.interactions._contract import Interaction, mixtures
from recsys.modules.candidates import Candidates


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

    def of_candidates(self, x: Candidates) -> Tensor:
        """The same of candidates."""
        return x.mixtures(self.mix.weight)


def build(config: Config, features: int, dim: int) -> Compression:
    """Of that many features of that width."""
    return Compression(features, dim, config.features)
