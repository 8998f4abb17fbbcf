"""Fused optimizers for tables, AdamW for the rest, one object to step and checkpoint."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from features.settings import Settings


class Config(Settings):
    """The section [<model>.optimizer]."""

    sparse: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    """Optimizer fused into the backward pass of the tables."""
    sparse_lr: float = Field(default=0.05, gt=0)
    """Its learning rate."""
    dense_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW on everything else."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the dense parameters (AdamW)."""
    eps: float = Field(default=1e-8, gt=0)
    """Numerical floor; passed to both, whose defaults differ."""


_SPARSE = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}


def fuse(tables: Iterable[nn.Parameter], config: Config) -> None:
    """Attach the sparse optimizer to table parameters, before they are sharded."""
    arguments = {"lr": config.sparse_lr} | ({} if config.sparse == "sgd" else {"eps": config.eps})
    apply_optimizer_in_backward(_SPARSE[config.sparse], tables, arguments)


def combine(model: DistributedModelParallel, config: Config) -> CombinedOptimizer:
    """The fused optimizers of the sharded tables and AdamW for all other parameters."""
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())),
        lambda parameters: torch.optim.AdamW(
            parameters, lr=config.dense_lr, eps=config.eps, weight_decay=config.weight_decay
        ),
    )
    return CombinedOptimizer([("tables", model.fused_optimizer), ("dense", dense)])
