"""A history as vectors, one after each step: item vectors, what was done, when, through attention blocks.

B users, N history steps in all, D width.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from embeddings.batch import Share
from features.settings import Settings
from recsys.modules.attention import HSTUBlock, Kind, RelativeBias, SoftmaxBlock, steps_of
from recsys.modules.dropout import GlobalDropout


class Config(Settings):
    """What makes the encoder."""

    block: Kind = "softmax"
    """`softmax`: pre-norm attention with a GELU feed-forward; `gated`: with SwiGLU and sigmoid gates; `hstu`."""
    blocks: int = Field(default=2, gt=0)
    """Blocks, one after the other."""
    heads: int = Field(default=2, gt=0)
    """Attention heads in a block."""
    expansion: int = Field(default=4, gt=0)
    """Width of the feed-forward, in widths of the model; HSTU has none."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of activations dropped in training."""
    position: Literal["learned", "relative", "both"] = "learned"
    """A vector for each place, a bias for each distance, or both; HSTU has the bias in any case."""
    time: bool = False
    """Whether a bias depends on the time between a step and the moment of the request; the log needs a clock."""
    actions: int = Field(default=0, ge=0)
    """How many kinds of action have a vector that is added to the item's; 0: what was done does not matter."""
    max_history: int = Field(default=50, gt=0)
    """Longest history that has places of its own; as [prepare] max_history."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.time and self.block != "hstu" and self.position == "learned":
            raise ValueError("time = true is a relative bias; set position to 'relative' or 'both', or block to 'hstu'")
        return self


class Encoder(nn.Module):
    """Item vectors of histories → user vectors."""

    def __init__(self, config: Config, dim: int) -> None:
        super().__init__()
        self.max_history, self.time = config.max_history, config.time
        learned = config.position in ("learned", "both")
        self.position_TD = nn.Parameter(torch.randn(config.max_history, dim) / math.sqrt(dim)) if learned else None
        # The last row stands for an action without a vector of its own.
        self.action_KD = nn.Parameter(torch.zeros(config.actions + 1, dim)) if config.actions else None
        self.dropout = GlobalDropout(config.dropout, salt=0)
        self.blocks = nn.ModuleList(_block(config, dim, salt=10 * (i + 1)) for i in range(config.blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_ND: Tensor, sequences: dict[str, Tensor], share: Share | None) -> Tensor:
        """[N, D] → [N, D]: the user after each step.

        Args:
            x_ND: the item of each step.
            sequences: `lengths`, `timestamps`, `asked`, `actions` of `embeddings.histories.retrieval_batch`.
            share: of the global batch; None outside of training.
        """
        times = (sequences["timestamps"], sequences["asked"]) if self.time else (None, None)
        steps = steps_of(sequences["lengths"], *times, share, self.max_history)
        if self.position_TD is not None:
            x_ND = x_ND + self.position_TD[steps.number_N]
        if self.action_KD is not None:
            known = len(self.action_KD) - 1
            action_N = sequences["actions"]
            x_ND = x_ND + self.action_KD[torch.where((action_N >= 0) & (action_N < known), action_N, known)]
        x_ND = self.dropout(x_ND, share)
        for block in self.blocks:
            x_ND = block(x_ND, steps)
        return self.norm(x_ND)


def _block(config: Config, dim: int, salt: int) -> nn.Module:
    biased = config.block == "hstu" or config.position != "learned"
    bias = RelativeBias(config.heads, config.max_history, time=config.time) if biased else None
    if config.block == "hstu":
        assert bias is not None
        return HSTUBlock(dim, config.heads, config.dropout, bias, config.max_history, salt)
    return SoftmaxBlock(dim, config.heads, config.expansion, config.dropout, bias, salt, gated=config.block == "gated")
