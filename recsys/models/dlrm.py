"""Deep learning recommendation model (Naumov et al., 2019, https://arxiv.org/abs/1906.00091).

B examples, F features, D their common width.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from embeddings.batch import Batch
from features.schema import Schema
from features.settings import Settings
from recsys.interactions.dot import Dot
from recsys.modules.feature_arch import FeatureModel
from recsys.modules.mlp import mlp

ROLE: Literal["ranker"] = "ranker"


class Config(Settings):
    """The section [ranker.model]."""

    dense_layers: tuple[PositiveInt, ...] = Field(default=(64,), min_length=1)
    """Hidden widths of the dense arch; its last layer has the embeddings' width."""
    over_layers: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1)
    """Hidden widths of the over arch."""


class DLRM(FeatureModel):
    """Features as vectors, all pairs of them multiplied, an MLP over that and what the numbers have become."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(schema, config.dense_layers, device)
        self.interaction_arch = Dot(self.features)
        beside = self.dim if schema.dense else 0
        self.has_dense = bool(schema.dense)
        widths = (beside + self.interaction_arch.out_dim, *config.over_layers, 1)
        self.over_arch = mlp(widths, last_linear=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`logits_B`: the log-odds of the label."""
        x_BFD = self.vectors(batch)
        over_BK = self.interaction_arch(x_BFD)
        if self.has_dense:
            over_BK = torch.cat([x_BFD[:, 0], over_BK], dim=1)
        return {"logits_B": self.over_arch(over_BK).squeeze(1)}


def build(config: Config, schema: Schema, device: torch.device) -> DLRM:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return DLRM(config, schema, device)
