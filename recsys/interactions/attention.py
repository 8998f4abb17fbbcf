"""Self-attention over features (AutoInt: Song et al., CIKM 2019, arXiv:1810.11921), before which they are normed."""

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from features.errors import InputError
from features.settings import Settings
from recsys.interactions._contract import Interaction


class Config(Settings):
    """The settings of one."""

    heads: int = Field(default=2, gt=0)
    """Attention heads, which share the features' width."""


class FeatureAttention(Interaction):
    """x_BFD → y_BFD: what each feature finds in the others. The order of features means nothing."""

    def __init__(self, features: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.out_vectors, self.out_dim = features, features * dim

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Of the same shape."""
        batch, features, dim = x_BFD.shape
        qkv_BF3HA = self.qkv(self.norm(x_BFD)).view(batch, features, 3, self.heads, dim // self.heads)
        q_BHFA, k_BHFA, v_BHFA = qkv_BF3HA.permute(2, 0, 3, 1, 4)
        return self.out(scaled_dot_product_attention(q_BHFA, k_BHFA, v_BHFA).transpose(1, 2).flatten(2))


def build(config: Config, features: int, dim: int) -> FeatureAttention:
    """Of that many features of that width.

    Raises:
        InputError: the width is no multiple of the heads.
    """
    if dim % config.heads:
        raise InputError(f"attention: heads = {config.heads} do not divide the features' dim {dim}; change one")
    return FeatureAttention(features, dim, config.heads)
