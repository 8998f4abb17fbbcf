"""Optimizers: fused into the backward pass of the tables, ordinary ones for the rest; rates, clipping, checks.

In the order in which a training uses it:

    check(config, tables, device, total_steps, …)    before anything is built
    fuse(parameters, config)                         tables on the meta device, after `precision.set_precision`
    optimizer = combine(model, config)               the model sharded
    set_rate(optimizer, config, step, total_steps)   before the first forward pass of every step
    norm = clip(optimizer, config)                   after its last backward pass
    optimizer.step()

A fused kernel updates its tables during the backward pass. With `accumulate` > 1 the tables therefore step once for
each micro-batch, while all other parameters step once for all of them, with the mean of their gradients; do not divide
the loss. For the same reason the norm comes too late to save the tables from a gradient that is not finite: go back to
a checkpoint.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec import optim as kernels
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.fused import EmptyFusedOptimizer, FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embeddings import precision
from embeddings.schedules import Schedule
from features.errors import InputError
from features.settings import Settings

_SPARSE: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": kernels.Adam,
    "partial_rowwise_adam": kernels.PartialRowWiseAdam,
    "lamb": kernels.LAMB,
}

_WITH_MOMENTS = ("adam", "partial_rowwise_adam", "lamb")
"""Those that need to know the number of the step, to correct the bias of their moments; fbgemm has them for GPUs."""


class Config(Settings):
    """The section [<role>.optimizer]."""

    sparse: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "lamb"] = "rowwise_adagrad"
    """Optimizer fused into the backward pass of the tables; the last three on GPUs only, where they leave the moments
    of rows that a batch does not touch as they are."""
    sparse_lr: float = Field(default=0.05, gt=0)
    """Its learning rate."""
    dense: Literal["adamw", "sgd", "adagrad"] = "adamw"
    """Optimizer of everything else, `data_parallel` tables too."""
    dense_lr: float = Field(default=1e-3, gt=0)
    """Its learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW; of `data_parallel` tables it shrinks every row in every step."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of SGD on everything but the fused tables."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moments, of sparse and dense."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moments, of sparse and dense."""
    eps: float = Field(default=1e-8, gt=0)
    """Numerical floor; passed to both, whose defaults differ."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Longest gradient of all dense parameters together; longer ones are scaled down. None: any length."""
    accumulate: int = Field(default=1, gt=0)
    """Micro-batches to a step of the dense parameters; the tables step with every one of them."""
    schedule: Schedule = Schedule()
    """The learning rates over time."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        moments = self.dense == "adamw" or self.sparse in _WITH_MOMENTS
        for name, used, fix in (
            ("weight_decay", self.dense == "adamw", "choose dense = 'adamw'"),
            ("momentum", self.dense == "sgd", "choose dense = 'sgd'"),
            ("beta1", moments, "choose dense = 'adamw'"),
            ("beta2", moments, "choose dense = 'adamw'"),
        ):
            if not used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {getattr(self, name)} is used by no optimizer here; remove it or {fix}")
        return self


def check(
    config: Config, tables: precision.Config, device: torch.device, total_steps: int | None, section: str
) -> None:
    """Refuse, before training starts, what the device cannot do or would do wrongly.

    Args:
        config: the optimizers.
        tables: the precision of the tables.
        device: that trains.
        total_steps: of the whole training; None if it has no end.
        section: where the config is from, such as `ranker.optimizer`.

    Raises:
        InputError: with the field, its value, the reason and the fix.
    """
    check_device(config, tables, device, section)
    config.schedule.check(total_steps, f"{section}.schedule")


def check_device(config: Config, tables: precision.Config, device: torch.device, section: str) -> None:
    """The part of `check` that needs no examples: a run can ask it of all its models before it trains the first.

    Raises:
        InputError: with the field, its value, the reason and the fix.
    """
    if device.type == "cpu" and config.sparse in _WITH_MOMENTS:
        raise InputError(
            f"{section}.sparse = {config.sparse!r} is fused for GPUs only; use rowwise_adagrad, adagrad or sgd, or "
            "shard the tables data_parallel, which the dense optimizer trains"
        )
    precision.check(tables, device)


def fuse(tables: Iterable[nn.Parameter], config: Config) -> None:
    """Attach the sparse optimizer to table parameters, before they are sharded."""
    arguments = {"lr": config.sparse_lr}
    if config.sparse != "sgd":
        arguments["eps"] = config.eps
    if config.sparse in _WITH_MOMENTS:
        arguments |= {"beta1": config.beta1, "beta2": config.beta2}
    apply_optimizer_in_backward(_SPARSE[config.sparse], tables, arguments)


def combine(model: DistributedModelParallel, config: Config) -> CombinedOptimizer:
    """The fused optimizers of the sharded tables, and one for all other parameters, `data_parallel` tables among them.

    Every parameter has its state from the start, so that a checkpoint can be loaded into `state_dict()` at once.

    Raises:
        InputError: a table that the dense optimizer is to train has 16-bit weights.
    """
    parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype} and not fused, so that its optimizer would round small updates away; "
                "set tables.overrides to fp32 for it, or shard it in another form"
            )
    dense = KeyedOptimizerWrapper(parameters, lambda tensors: _dense_optimizer(tensors, config))
    _allocate(dense)
    for group in dense.param_groups:
        group["lr"] = config.dense_lr  # pyright: ignore[reportIndexIssue]
    return CombinedOptimizer([("tables", model.fused_optimizer), ("dense", dense)])


def _dense_optimizer(parameters: list[Tensor], config: Config) -> torch.optim.Optimizer:
    """At a rate of 0, in the implementation that is fastest: one kernel for all that a parameter needs."""
    if config.dense == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=config.momentum, fused=True)
    if config.dense == "adagrad":
        return torch.optim.Adagrad(parameters, lr=0.0, eps=config.eps, fused=parameters[0].device.type == "cpu")
    return torch.optim.AdamW(
        parameters,
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _allocate(optimizer: KeyedOptimizer) -> None:
    """Create the state that torch would create in the first step, by a step at a rate of 0 that is forgotten."""
    optimizer.init_state()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def set_rate(optimizer: CombinedOptimizer, config: Config, step: int, total_steps: int | None) -> None:
    """Give every kernel and parameter group the rate of a step; to be called once, before its first forward pass.

    Args:
        optimizer: from `combine`.
        config: what it was made of.
        step: of the dense parameters, from 0.
        total_steps: of the whole training; None if it has no end.
    """
    factor = config.schedule.factor(step, total_steps)
    parts = dict(optimizer.optimizers)
    for group in parts["dense"].param_groups:
        group["lr"] = config.dense_lr * factor  # pyright: ignore[reportIndexIssue]
    for fused in _fused(parts["tables"]):
        for group in fused.param_groups:
            group["lr"] = config.sparse_lr * factor  # pyright: ignore[reportIndexIssue]
        fused.step()
        if config.sparse in _WITH_MOMENTS:
            _set_count(fused, step * config.accumulate)


def clip(optimizer: CombinedOptimizer, config: Config, micro_batches: int | None = None) -> Tensor:
    """Average the gradients of the dense parameters over the micro-batches, and scale them down if they are too long.

    Gradients are the same on all ranks after the backward pass, and so is the norm.

    Args:
        optimizer: from `combine`.
        config: what it was made of.
        micro_batches: of this step; None: `accumulate`. The last step of an epoch may have fewer.

    Returns:
        float32 []: the Euclidean norm of the mean gradient before it is scaled; look whether it is finite.
    """
    parameters = [value for group in dict(optimizer.optimizers)["dense"].param_groups for value in group["params"]]
    gradients = [value.grad for value in parameters if value.grad is not None]
    count = micro_batches or config.accumulate
    if count > 1:
        for gradient in gradients:
            gradient.div_(count)
    norm = nn.utils.get_total_norm(gradients)
    if config.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    return norm


def _fused(optimizer: KeyedOptimizer) -> Iterator[FusedOptimizer]:
    """The optimizers of all kernels on this rank."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from _fused(part)
    elif isinstance(optimizer, FusedOptimizer) and not isinstance(optimizer, EmptyFusedOptimizer):
        yield optimizer


def _set_count(optimizer: FusedOptimizer, updates: int) -> None:
    """Tell a kernel how many updates it has made.

    Its own count is of forward passes, those of validation too, and is in no checkpoint; and what TorchRec's
    `set_optimizer_step` changes is read once, before the first of them.
    """
    kernel: Any = optimizer._emb_module  # pyright: ignore[reportAttributeAccessIssue]
    kernel.iter.fill_(updates)
    kernel.iter_cpu.fill_(updates)
