"""DHEN: DLRM's arches around layers of heterogeneous interactions (Zhang et al., DLP-KDD 2022, arXiv:2203.11014).

B examples, F embedded features, D their common width.
"""

from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from embeddings.batch import Batch
from features import registry
from features.schema import Schema
from recsys.interactions._contract import Interaction
from recsys.modules import ranker
from recsys.modules.dhen import DHENLayer
from recsys.modules.over_arch import OverArch
from recsys.modules.ranker import Ranker

ROLE: Literal["ranker"] = "ranker"


class Config(ranker.Config):
    """The section [ranker.model]."""

    layers: int = Field(default=2, gt=0)
    """Layers of the ensemble."""
    features: int = Field(default=16, gt=0)
    """Vectors after each of them."""
    interactions: dict[str, dict[str, Any]] = Field(
        default={"dot": {}, "cross": {}, "attention": {}, "deep": {}}, min_length=1
    )
    """What each layer is an ensemble of: files of `recsys/interactions`, with their settings."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for name, settings in self.interactions.items():
            _module(name).Config(**settings)
        return self


class DHEN(Ranker):
    """Features as vectors, layers of interactions, an over arch on top."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(config, schema, device)
        dim, widths = self.dim, [self.features, *[config.features] * config.layers]
        self.interaction_arch = nn.Sequential(
            *(DHENLayer(interactions(config, width, dim), width, dim, config.features) for width in widths[:-1])
        )
        self.over_arch = OverArch(config.over, config.features * dim, len(schema.outcomes))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `OverArch`."""
        return self.over_arch(self.interaction_arch(self.candidates(batch)).flatten(1))


def interactions(config: Config, features: int, dim: int) -> list[Interaction]:
    """One of each kind, for that many features of that width."""
    built: list[Interaction] = []
    for name, settings in config.interactions.items():
        module = _module(name)
        built.append(module.build(module.Config(**settings), features, dim))
    return built


def _module(name: str) -> ModuleType:
    return registry.load("recsys.interactions", name, "ranker.model.interactions")


def build(config: Config, schema: Schema, device: torch.device) -> DHEN:
    """The model for a schema; tables on `device`, which is meta for a model that is to be sharded."""
    return DHEN(config, schema, device)
