"""Wukong (Zhang et al., ICML 2024, arXiv:2403.02545): layers of factorisation machines beside linear compression.

A layer's output features are C that its factorisation machine and an MLP make, and L that are mixtures of those it was
given; a shortcut is added, and all is normalised. Each layer doubles the order of the interactions.

B examples, F features, D their common width, G = C + L vectors after a layer.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embeddings.batch import Batch
from features.schema import Schema
from recsys.modules import ranker
from recsys.modules.over_arch import OverArch
from recsys.modules.ranker import Ranker
from recsys.modules.wukong import WukongLayer

ROLE: Literal["ranker"] = "ranker"


class Config(ranker.Config):
    """The section [ranker.model]."""

    layers: int = Field(default=3, gt=0)
    """Layers."""
    products: int = Field(default=8, gt=0)
    """Vectors of a layer that come from products: C."""
    mixtures: int = Field(default=8, gt=0)
    """Vectors of a layer that are mixtures: L."""
    rank: int = Field(default=8, gt=0)
    """Features that all are projected to before they are multiplied."""
    hidden: int = Field(default=128, gt=0)
    """Width of the MLP between the products and the vectors made of them."""


class Wukong(Ranker):
    """Features as vectors, layers, an MLP on top."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(config, schema, device)
        dim, out = self.dim, config.products + config.mixtures
        widths = [self.features, *[out] * (config.layers - 1)]

        def layer(features: int) -> WukongLayer:
            return WukongLayer(features, dim, config.products, config.mixtures, config.rank, config.hidden)

        self.interaction_arch = nn.Sequential(*(layer(width) for width in widths))
        self.over_arch = OverArch(config.over, out * dim, len(schema.outcomes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `OverArch`."""
        return self.over_arch(self.interaction_arch(self.candidates(batch)).flatten(1))


def build(config: Config, schema: Schema, device: torch.device) -> Wukong:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return Wukong(config, schema, device)
