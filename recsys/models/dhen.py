"""DHEN: DLRM's arches around layers of heterogeneous interactions (Zhang et al., DLP-KDD 2022, arXiv:2203.11014).

B examples, F embedded features, D their common width.
"""

from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from embeddings.batch import Batch
from features import registry
from features.schema import Schema
from features.settings import Settings
from recsys.interactions._contract import Interaction
from recsys.modules.dhen import DHENLayer
from recsys.modules.feature_arch import FeatureModel
from recsys.modules.mlp import mlp

ROLE: Literal["ranker"] = "ranker"


class Config(Settings):
    """The section [ranker.model]."""

    dense_layers: tuple[PositiveInt, ...] = Field(default=(64,), min_length=1)
    """Hidden widths of the dense arch; its last layer has the embeddings' width."""
    layers: int = Field(default=2, gt=0)
    """Layers of the ensemble."""
    features: int = Field(default=16, gt=0)
    """Vectors after each of them."""
    interactions: dict[str, dict[str, Any]] = Field(
        default={"dot": {}, "cross": {}, "attention": {}, "deep": {}}, min_length=1
    )
    """What each layer is an ensemble of: files of `recsys/interactions`, with their settings."""
    over_layers: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1)
    """Hidden widths of the over arch."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        for name, settings in self.interactions.items():
            _module(name).Config(**settings)
        return self


class DHEN(FeatureModel):
    """Features as vectors, layers of interactions, an MLP on top."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        super().__init__(schema, config.dense_layers, device)
        dim, widths = self.dim, [self.features, *[config.features] * config.layers]
        self.interaction_arch = nn.Sequential(
            *(DHENLayer(interactions(config, width, dim), width, dim, config.features) for width in widths[:-1])
        )
        self.over_arch = mlp((config.features * dim, *config.over_layers, 1), last_linear=True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`logits_B`: the log-odds of the label."""
        x_BFD = self.interaction_arch(self.vectors(batch))
        return {"logits_B": self.over_arch(x_BFD.flatten(1)).squeeze(1)}


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
