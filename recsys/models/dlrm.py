"""Deep learning recommendation model (Naumov et al., 2019, https://arxiv.org/abs/1906.00091).

B examples, F features, D their common width.
"""

from typing import Literal

import torch
from torch import Tensor

from embeddings.batch import Batch
from features.schema import Schema
from recsys.interactions.dot import Dot
from recsys.modules import ranker
from recsys.modules.over_arch import OverArch
from recsys.modules.ranker import Ranker

ROLE: Literal["ranker"] = "ranker"


class Config(ranker.Config):
    """The section [ranker.model]."""


class DLRM(Ranker):
    """Features as vectors, all pairs of them multiplied, an MLP over that and what the numbers have become."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(config, schema, device)
        self.interaction_arch = Dot(self.features)
        beside = self.dim if schema.dense else 0
        self.has_dense = bool(schema.dense)
        self.over_arch = OverArch(config.over, beside + self.interaction_arch.out_dim, len(schema.outcomes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `OverArch`."""
        x_BFD = self.vectors(batch)
        over_BK = self.interaction_arch(x_BFD)
        if self.has_dense:
            over_BK = torch.cat([x_BFD[:, len(self.shared)], over_BK], dim=1)
        return self.over_arch(over_BK)


def build(config: Config, schema: Schema, device: torch.device) -> DLRM:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return DLRM(config, schema, device)
