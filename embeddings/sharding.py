"""Plans and DistributedModelParallel: where each table goes, decided by TorchRec's planner under constraints.

What can be asked for, and what cannot be had, is in docs/sharding.md; `recsys plan CONFIG` prints a plan.
"""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection
from torchrec.distributed import comm
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, GridSearchProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, PlannerError, Topology, TopologyFactory, TrainerConfig
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from embeddings import collision_sharding, precision
from embeddings.constraints import (
    REPLICATED,
    Config,
    Form,
    check,
    collections,
    constraints,
    replicated_tables,
    table_names,
)
from embeddings.estimates import Estimates
from features.errors import InputError

__all__ = [
    "REPLICATED",
    "Config",
    "Form",
    "check",
    "collections",
    "describe",
    "fused_parameters",
    "local_size",
    "plan",
    "planner",
    "replicated_tables",
    "shard",
    "sharders",
    "table_names",
    "table_parameters",
    "topology",
]

GRID = 1000
"""Combinations of forms that are all tried; where there are more, the greedy proposers alone choose."""


class BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder leaves row-wise forms out on CPU, where gloo runs them well."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Every form that a config can ask for."""
        return [*get_args(Form), REPLICATED]


class SequenceSharder(EmbeddingCollectionSharder):
    """TorchRec's sharder, but for collections that stay whole: DistributedDataParallel takes care of those.

    Their own data-parallel form pools on CPU what it should not (fbgemm's dense lookup has no unpooled mode there).
    """

    def __init__(self, replicated: Collection[str] = (), fused_params: dict[str, Any] | None = None) -> None:
        super().__init__(fused_params=fused_params)
        self._replicated = frozenset(replicated)

    def shardable_parameters(self, module: EmbeddingCollection) -> dict[str, nn.Parameter]:
        """Table → weight."""
        found = super().shardable_parameters(module)
        return {} if found.keys() <= self._replicated else found


def sharders(
    replicated: Collection[str] = (), tables: precision.Config | None = None
) -> list[ModuleSharder[nn.Module]]:
    """What can be sharded.

    Args:
        replicated: tables that are data-parallel.
        tables: how weights are kept, which the kernels are told.
    """
    fused_params = precision.fused_params(tables or precision.Config())
    bags, sequences = BagSharder(fused_params=fused_params), SequenceSharder(replicated, fused_params)
    found = cast("list[ModuleSharder[nn.Module]]", [bags, sequences])
    return found + collision_sharding.sharders(bags, sequences)


def shard(
    model: nn.Module,
    config: Config,
    device: torch.device,
    batch_size: int,
    tables: precision.Config | None = None,
) -> DistributedModelParallel:
    """Plan and wrap a model whose tables are on the meta device; every rank calls it and gets the same plan.

    Args:
        model: its tables are EmbeddingCollections or EmbeddingBagCollections; fused optimizers are attached to
            `fused_parameters`.
        config: what the planner may do.
        device: of this rank.
        batch_size: rows of a global batch, for the planner's estimates.
        tables: how weights are kept; None: as by default.

    Raises:
        InputError: a table cannot be had in the form asked for, or no plan fits the memory.
    """
    world = dist.get_world_size()
    local = local_size(config, world)
    found_sharders = sharders(replicated_tables(config), tables)
    rank_planner = planner(model, config, topology(config, world, local, device.type), -(-batch_size // world))
    # One rank plans for all. What keeps it from planning must reach the others, which would wait for ever.
    outcome = [plan(rank_planner, model, found_sharders) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is None:
        raise InputError(f"sharding: no plan fits the memory of {world} ranks; `recsys plan` says what would make it")
    with _hosts(local):
        return DistributedModelParallel(model, device=device, plan=outcome[0], sharders=found_sharders)


def local_size(config: Config, world: int) -> int:
    """Ranks of a host.

    Raises:
        InputError: hosts would not be equal, or torchrun says otherwise.
    """
    launched = os.environ.get("LOCAL_WORLD_SIZE")
    local = config.local_world_size or int(launched or world)
    if dist.is_torchelastic_launched() and launched is not None and local != int(launched):
        raise InputError(f"sharding.local_world_size = {local}, but torchrun started {launched} ranks here; remove it")
    if world % local:
        raise InputError(f"sharding.local_world_size = {local} does not divide {world} ranks; choose one that does")
    return local


@contextmanager
def _hosts(local: int) -> Iterator[None]:
    """TorchRec learns from the environment alone how many ranks a host has, and never forgets its groups of them."""
    before = os.environ.get("LOCAL_WORLD_SIZE")
    if comm._INTRA_PG is not None and (
        comm._INTRA_PG not in dist.distributed_c10d._world.pg_map or comm._INTRA_PG.size() != local
    ):
        comm._INTRA_PG = comm._CROSS_PG = None
    os.environ["LOCAL_WORLD_SIZE"] = str(local)
    yield
    if before is None:
        del os.environ["LOCAL_WORLD_SIZE"]
    else:
        os.environ["LOCAL_WORLD_SIZE"] = before


def topology(config: Config, world: int, local: int, device: str) -> Topology:
    """The cluster as the planner sees it: `world` ranks, `local` to a host, devices `cpu` or `cuda`."""

    def size(gigabytes: float | None) -> int | None:
        return None if gigabytes is None else int(gigabytes * 1e9)

    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=world,
            local_world_size=local,
            hbm_cap_bytes=size(config.hbm_gb),
            ddr_cap_bytes=size(config.host_gb),
            ssd_cap_bytes=size(config.ssd_gb),
        ),
        kernel_config=KernelConfig(compute_device=device),
    )


def planner(model: nn.Module, config: Config, cluster: Topology, batch_size: int) -> EmbeddingShardingPlanner:
    """TorchRec's planner with this project's estimates.

    Args:
        model: what is to be planned.
        config: what the planner may do.
        cluster: where it is to be.
        batch_size: rows of a rank's batch.
    """
    limits = constraints(model, config, torch.device(cluster.compute_device)) | collision_sharding.constraints(model)
    if cluster.world_size == 1:
        for limit in limits.values():
            # A table in one piece costs a rank that is alone nothing to find ids in; the estimates do not know it.
            if "table_wise" in (limit.sharding_types or ()):
                limit.sharding_types = ["table_wise"]
    return EmbeddingShardingPlanner(
        topology=cluster,
        batch_size=batch_size,
        constraints=limits,
        enumerator=EmbeddingEnumerator(cluster, batch_size, limits, Estimates(cluster, limits)),
        storage_reservation=FixedPercentageStorageReservation(config.reserve),
        proposer=[GridSearchProposer(GRID), GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()],
        stats=[],
        debug=False,
    )


def plan(
    planner: EmbeddingShardingPlanner, model: nn.Module, sharders: list[ModuleSharder[nn.Module]]
) -> ShardingPlan | None:
    """What the planner finds; None: nothing that fits."""
    # That data-parallel tables are not cut is no news, but TorchRec warns of it, on the root logger.
    logging.disable(logging.WARNING)
    try:
        return planner.plan(model, sharders)
    except PlannerError:
        return None
    finally:
        logging.disable(logging.NOTSET)


def table_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The tables' parameters."""
    return [parameter for module in collections(model) for parameter in module.parameters()]


def fused_parameters(model: nn.Module, config: Config) -> list[nn.Parameter]:
    """Those of them that `optim.fuse` is to get; the dense optimizer has the others.

    TorchRec drops the fused optimizer of a data-parallel table without a word, and nothing would train it.
    """
    whole = replicated_tables(config)
    return [
        parameter
        for module in collections(model)
        for name, parameter in module.named_parameters()
        if name.split(".")[-2] not in whole
    ]


def describe(model: DistributedModelParallel) -> dict[str, dict[str, object]]:
    """The plan as plain values: module → table → form, kernel and ranks."""
    found: dict[str, dict[str, object]] = {
        module: {
            table: {"form": sharding.sharding_type, "kernel": sharding.compute_kernel, "ranks": sharding.ranks}
            for table, sharding in tables.items()  # pyright: ignore[reportAttributeAccessIssue]
        }
        for module, tables in model.plan.plan.items()
    }
    ranks = list(range(dist.get_world_size()))
    for path, module in model.module.named_modules():
        if isinstance(module, EmbeddingCollection):
            whole = {"form": REPLICATED, "kernel": "dense", "ranks": ranks}
            found[path] = {table.name: whole for table in module.embedding_configs()}
    return found
