"""Plans and DistributedModelParallel: where each table goes, decided by TorchRec's planner under constraints."""

import os
from typing import Literal, cast, get_args

import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ModuleSharder

from features.settings import Settings

Form = Literal["table_wise", "row_wise", "column_wise"]


class Config(Settings):
    """The section [sharding]."""

    forms: tuple[Form, ...] = Field(default=("table_wise", "row_wise"), min_length=1)
    """What the planner may choose from for every table. Row-wise Adagrad keeps one accumulator for each shard of a
    `column_wise` row, which is other mathematics than one for the whole row; the others change the layout alone."""
    tables: dict[str, Form] = Field(default_factory=dict)
    """Table → the one form it is to have."""
    hbm_gb: float | None = Field(default=None, gt=0)
    """GPU memory of a rank that the planner may fill, 10⁹ bytes; None: TorchRec's default."""
    host_gb: float | None = Field(default=None, gt=0)
    """Host memory of a rank that the planner may fill, 10⁹ bytes; None: TorchRec's default."""


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder leaves row-wise forms out on CPU, where gloo runs them well."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Every form that a config can ask for."""
        return list(get_args(Form))


def shard(model: nn.Module, config: Config, device: torch.device, batch_size: int) -> DistributedModelParallel:
    """Plan and wrap a model whose tables are on the meta device; every rank calls it and gets the same plan.

    Args:
        model: its tables are EmbeddingCollections or EmbeddingBagCollections with fused optimizers attached.
        config: what the planner may do.
        device: of this rank.
        batch_size: rows of a global batch, for the planner's estimates.
    """
    group = dist.group.WORLD
    assert group is not None, "shard needs an initialised process group"
    world = dist.get_world_size()
    sharders = [
        cast("ModuleSharder[nn.Module]", BagSharder()),
        cast("ModuleSharder[nn.Module]", EmbeddingCollectionSharder()),
    ]
    planner = EmbeddingShardingPlanner(
        topology=Topology(
            world_size=world,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world)),
            compute_device=device.type,
            hbm_cap=None if config.hbm_gb is None else int(config.hbm_gb * 1e9),
            ddr_cap=None if config.host_gb is None else int(config.host_gb * 1e9),
        ),
        batch_size=-(-batch_size // world),
        constraints={name: constraint(name, config) for name in table_names(model)},
        debug=False,
    )
    plan = planner.collective_plan(model, sharders, group)
    return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


def constraint(table: str, config: Config) -> ParameterConstraints:
    """What the planner may do with one table."""
    forms = (config.tables[table],) if table in config.tables else config.forms
    return ParameterConstraints(sharding_types=list(forms))


def collections(model: nn.Module) -> list[EmbeddingBagCollection | EmbeddingCollection]:
    """What holds tables, before sharding, in the order of the modules."""
    return [module for module in model.modules() if isinstance(module, EmbeddingBagCollection | EmbeddingCollection)]


def table_names(model: nn.Module) -> list[str]:
    """Names of all tables."""
    return [
        table.name
        for module in collections(model)
        for table in (
            module.embedding_bag_configs() if isinstance(module, EmbeddingBagCollection) else module.embedding_configs()
        )
    ]


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The tables' parameters."""
    return [parameter for module in collections(model) for parameter in module.parameters()]


def describe(model: DistributedModelParallel) -> dict[str, dict[str, object]]:
    """The plan as plain values: module → table → form, kernel and ranks."""
    return {
        module: {
            table: {"form": sharding.sharding_type, "kernel": sharding.compute_kernel, "ranks": sharding.ranks}
            for table, sharding in tables.items()  # pyright: ignore[reportAttributeAccessIssue]
        }
        for module, tables in model.plan.plan.items()
    }
