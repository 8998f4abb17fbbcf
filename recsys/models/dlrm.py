"""Deep learning recommendation model (Naumov et al., 2019, https://arxiv.org/abs/1906.00091).

B examples, F embedded features, D their common width.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection

from embeddings.batch import Batch
from embeddings.tables import bag_tables, means
from features.errors import InputError
from features.schema import Schema
from features.settings import Settings
from recsys.modules.dot_interaction import DotInteraction
from recsys.modules.mlp import mlp

ROLE: Literal["ranker"] = "ranker"


class Config(Settings):
    """The section [ranker.model]."""

    dense_layers: tuple[int, ...] = Field(default=(64,), min_length=1)
    """Hidden widths of the dense arch; its last layer has the embeddings' width."""
    over_layers: tuple[int, ...] = Field(default=(128, 64), min_length=1)
    """Hidden widths of the over arch."""


class DLRM(nn.Module):
    """Dense features through an MLP, ids through pooled tables, all pairs multiplied, an MLP on top."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__()
        dims = {feature.dim for feature in schema.embedded}
        if len(dims) != 1:
            raise InputError(
                f"dlrm multiplies features pairwise, so all need one dim, not {sorted(dims)}; set it in [[features]]"
            )
        if not schema.dense:
            raise InputError("dlrm has a dense arch and the schema no dense feature; add one to [[features]]")
        dim = dims.pop()
        self.keys = [feature.name for feature in schema.embedded]
        self.bags = frozenset(feature.name for feature in schema.embedded if feature.kind == "bag")
        self.sparse_arch = EmbeddingBagCollection(tables=bag_tables(schema), is_weighted=schema.weighted, device=device)
        self.dense_arch = mlp((schema.dense_width, *config.dense_layers, dim), last_linear=False)
        self.interaction_arch = DotInteraction(len(self.keys) + 1)
        self.over_arch = mlp((dim + self.interaction_arch.out_dim, *config.over_layers, 1), last_linear=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`logits_B`: the log-odds of the label."""
        assert batch.sparse is not None
        assert batch.dense is not None
        pooled = means(self.sparse_arch(batch.sparse), batch.sparse, self.bags)
        dense_BD = self.dense_arch(batch.dense)
        x_BFD = torch.stack([dense_BD, *(pooled[key] for key in self.keys)], dim=1)
        over_BK = torch.cat([dense_BD, self.interaction_arch(x_BFD)], dim=1)
        return {"logits_B": self.over_arch(over_BK).squeeze(1)}


def build(config: Config, schema: Schema, device: torch.device) -> DLRM:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return DLRM(config, schema, device)
