"""Next-item retrieval by attention over the history (SASRec: Kang & McAuley, ICDM 2018, arXiv:1808.09781).

B users, N history steps in all, C candidates, D width.
"""

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchrec import EmbeddingCollection

from embeddings.batch import Batch
from embeddings.quantized import whole_table
from embeddings.tables import item_table
from features.schema import Schema
from features.settings import Settings
from recsys.modules.attention import AttentionBlock
from recsys.modules.dropout import GlobalDropout

ROLE: Literal["retriever"] = "retriever"


class Config(Settings):
    """The section [retriever.model]."""

    dim: int = Field(default=64, gt=0)
    """Width of item and user vectors."""
    blocks: int = Field(default=2, gt=0)
    """Attention blocks."""
    heads: int = Field(default=2, gt=0)
    """Attention heads in a block."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of activations dropped in training."""
    max_history: int = Field(default=50, gt=0)
    """Longest history that has positions of its own; as [prepare] max_history."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} is not a multiple of heads = {self.heads}; change one")
        return self


class Sequential(nn.Module):
    """Item embeddings and positions through causal blocks; a step's output is scored against item embeddings."""

    def __init__(self, config: Config, items: int, device: torch.device) -> None:
        super().__init__()
        table = item_table(items, config.dim, ["history", "candidates"])
        self.sparse_arch = EmbeddingCollection(tables=[table], device=device)
        self.max_history = config.max_history
        self.position_TD = nn.Parameter(torch.randn(config.max_history, config.dim) / math.sqrt(config.dim))
        self.dropout = GlobalDropout(config.dropout, salt=0)
        self.blocks = nn.ModuleList(
            AttentionBlock(config.dim, config.heads, config.dropout, salt=10 * (i + 1)) for i in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`user_ND`: the user after each step; `candidates_CD`: the vectors of the batch's candidates."""
        assert batch.sequences is not None
        embedded = self.sparse_arch(batch.sequences)
        history = embedded["history"]
        offsets_B1, lengths_B = history.offsets(), history.lengths()
        longest = int(lengths_B.max()) if lengths_B.numel() else 0
        assert longest <= self.max_history, f"a history of {longest} is longer than {self.max_history}"
        x_ND = history.values()
        step_N = torch.arange(x_ND.shape[0], device=x_ND.device) - offsets_B1[:-1].repeat_interleave(lengths_B)
        x_ND = self.dropout(x_ND + self.position_TD[step_N], batch.share)
        for block in self.blocks:
            x_ND = block(x_ND, offsets_B1, longest, batch.share)
        return {"user_ND": self.norm(x_ND), "candidates_CD": embedded["candidates"].values()}

    def item_vectors(self) -> Tensor:
        """[items + 1, D]: the whole table, row i for item index i; for a model whose tables are local."""
        return whole_table(self.sparse_arch, "item")


def build(config: Config, schema: Schema, device: torch.device) -> Sequential:
    """The model for a schema's catalogue; tables on `device`, which is meta for a model that is to be sharded."""
    return Sequential(config, schema.items, device)
