"""Deep & cross network, version 2, in parallel (Wang et al., WWW 2021, arXiv:2008.13535): cross layers beside an MLP.

B examples, F features, D their common width, K numbers of both parts.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from embeddings.batch import Batch
from features.schema import Schema
from recsys.interactions.deep import Deep
from recsys.modules import over_arch, ranker
from recsys.modules.cross_network import CrossNetwork
from recsys.modules.over_arch import OverArch
from recsys.modules.ranker import Ranker

ROLE: Literal["ranker"] = "ranker"


class Config(ranker.Config):
    """The section [ranker.model]."""

    crosses: int = Field(default=3, gt=0)
    """Cross layers."""
    rank: int = Field(default=64, gt=0)
    """Width between the two factors of their weights."""
    deep_layers: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1)
    """Widths of the MLP's layers."""
    over: over_arch.Config = over_arch.Config(layers=())
    """The over arch; a linear one, as published."""


class DCNV2(Ranker):
    """Features as vectors, crossed with themselves again and again, an MLP beside that."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(config, schema, device)
        features, dim = self.features, self.dim
        self.cross_arch = CrossNetwork(features * dim, config.crosses, config.rank)
        self.deep_arch = Deep(features, dim, config.deep_layers)
        self.over_arch = OverArch(config.over, features * dim + self.deep_arch.out_dim, len(schema.outcomes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `OverArch`."""
        x_BFD = self.vectors(batch)
        over_BK = torch.cat([self.cross_arch(x_BFD.flatten(1)), self.deep_arch(x_BFD)], dim=1)
        return self.over_arch(over_BK)


def build(config: Config, schema: Schema, device: torch.device) -> DCNV2:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return DCNV2(config, schema, device)
