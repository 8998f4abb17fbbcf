"""What a cluster would hold: plans of models that no laptop could, made on one, without devices and process groups.

    recsys plan configs/scale/ten_trillion.toml --world-size 4096

Tables are declared in groups that are alike; TorchRec's planner places every shard under the capacity of all three
tiers, with the estimates of `embeddings.estimates`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ShardingOption,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType

from embeddings import optim, sharding
from embeddings.constraints import COLUMN_FORMS, ELEMENTWISE, KEY_VALUE_OPTIMIZERS, ON_SSD, SEQUENCE_FORMS, Form
from embeddings.estimates import Estimates, Kernel, usage
from embeddings.proposers import GroupProposer
from features.settings import Settings

GB = 10**9
ENDLESS = 10**18
"""Bytes of a rank that has memory without end."""


class Cluster(Settings):
    """The section [cluster]: what every rank has, and how fast it is."""

    world_size: int = Field(gt=0)
    """Ranks."""
    local_world_size: int = Field(default=8, gt=0)
    """Ranks of a host."""
    hbm_gb: float = Field(gt=0)
    """Device memory of a rank, 10⁹ bytes."""
    host_gb: float = Field(gt=0)
    """Host memory of a rank: its share of the host's, less what the system and the readers need, 10⁹ bytes."""
    ssd_gb: float = Field(default=0, ge=0)
    """SSD of a rank, 10⁹ bytes."""
    reserve: float = Field(default=0.3, ge=0, lt=1)
    """Share of the device memory that is left to the dense layers and activations."""
    ssd_reserve: float = Field(default=0.1, ge=0, lt=1)
    """Share of the SSD that is left to what a log-structured store writes twice before it compacts."""
    hbm_gb_s: float = Field(default=963, gt=0)
    """Bandwidth of device memory, 10⁹ bytes a second."""
    host_gb_s: float = Field(default=55, gt=0)
    """Bandwidth of host memory."""
    ssd_gb_s: float = Field(default=0.1, gt=0)
    """Bandwidth of the SSD under random reads of rows."""
    host_to_hbm_gb_s: float = Field(default=34, gt=0)
    """Bandwidth between host and device memory."""
    intra_host_gb_s: float = Field(default=644, gt=0)
    """Bandwidth between ranks of a host."""
    inter_host_gb_s: float = Field(default=13.4, gt=0)
    """Bandwidth between hosts, a rank."""

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if self.world_size % self.local_world_size:
            raise ValueError(
                f"world_size = {self.world_size} is not a multiple of local_world_size = {self.local_world_size}"
            )
        return self


class Group(Settings):
    """One of [[tables]]: tables that are alike."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    """Of the group; its tables are `<name>_0`, `<name>_1`, …"""
    count: int = Field(default=1, gt=0)
    """Tables."""
    rows: int = Field(gt=0)
    """Of each."""
    dim: int = Field(gt=0, multiple_of=4)
    """Columns of each."""
    pooling: float = Field(default=1.0, gt=0)
    """Ids of an example in each, on average."""
    pooled: bool = True
    """Whether the vectors of an example are summed (EmbeddingBagCollection), or stay a sequence."""
    dtype: Literal["fp32", "fp16"] = "fp16"
    """Type of the weights."""
    forms: tuple[Form, ...] = Field(min_length=1)
    """What the planner may choose from, for all tables of the group alike."""
    kernels: tuple[Kernel, ...] = Field(default=("fused",), min_length=1)
    """Where they may be kept."""
    cache_load_factor: float | None = Field(default=None, gt=0, lt=1)
    """Share of the rows that a cache on the device has room for, where the kernel has one; None: 0.2."""
    min_partition: int | None = Field(default=None, gt=0, multiple_of=4)
    """Columns of a piece, at least, where columns are cut; None: 128."""

    @model_validator(mode="after")
    def _check(self) -> "Group":
        unknown = [form for form in self.forms if not self.pooled and form not in SEQUENCE_FORMS]
        if unknown:
            raise ValueError(f"{unknown[0]} does not exist for sequences; use one of {', '.join(SEQUENCE_FORMS)}")
        return self

    @property
    def parameters(self) -> int:
        """Weights of all its tables."""
        return self.count * self.rows * self.dim


class Config(Settings):
    """A model and a cluster to put it on."""

    cluster: Cluster
    """The ranks."""
    tables: tuple[Group, ...] = Field(min_length=1)
    """The model's tables."""
    batch_size: int = Field(default=512, gt=0)
    """Examples of a rank's batch."""
    optimizer: optim.Config = optim.Config()
    """The sparse optimizer, whose state takes memory, too."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        names = [group.name for group in self.tables]
        if len(set(names)) < len(names):
            raise ValueError("two groups of tables have one name; rename one")
        sparse = self.optimizer.sparse
        for group in self.tables:
            if sparse not in ELEMENTWISE and any(form in COLUMN_FORMS for form in group.forms):
                raise ValueError(
                    f"tables.{group.name}.forms cuts rows, which optimizer.sparse = '{sparse}' cannot; "
                    f"use one of {', '.join(ELEMENTWISE)}, or forms that keep rows whole"
                )
            if sparse not in KEY_VALUE_OPTIMIZERS and any(kernel in ON_SSD for kernel in group.kernels):
                raise ValueError(
                    f"tables.{group.name}.kernels has a key-value store, which optimizer.sparse = '{sparse}' cannot "
                    f"train; use one of {', '.join(KEY_VALUE_OPTIMIZERS)}"
                )
        return self

    @property
    def parameters(self) -> int:
        """Weights of all tables."""
        return sum(group.parameters for group in self.tables)


def build(config: Config) -> nn.Module:
    """The model's tables, on the meta device, with the sparse optimizer attached."""
    meta = torch.device("meta")
    types = {"fp32": DataType.FP32, "fp16": DataType.FP16}
    bags: list[EmbeddingBagConfig] = []
    sequences: list[EmbeddingConfig] = []
    for group in config.tables:
        for index in range(group.count):
            name = f"{group.name}_{index}"
            table = {
                "name": name,
                "num_embeddings": group.rows,
                "embedding_dim": group.dim,
                "feature_names": [name],
                "data_type": types[group.dtype],
            }
            if group.pooled:
                bags.append(EmbeddingBagConfig(**table))
            else:
                sequences.append(EmbeddingConfig(**table))
    model = nn.ModuleDict()
    if bags:
        model["bags"] = EmbeddingBagCollection(tables=bags, device=meta)
    if sequences:
        model["sequences"] = EmbeddingCollection(tables=sequences, device=meta)
    optim.fuse(sharding.table_parameters(model), config.optimizer)
    return model


@dataclass(frozen=True)
class Placement:
    """A plan that fits."""

    world: int
    options: list[ShardingOption]
    """One for each table."""
    used: dict[str, np.ndarray]
    """Tier → bytes of each rank, `ms` → estimated time of each rank's lookups; [world]."""


def place(config: Config, model: nn.Module, world: int, *, unlimited: bool = False) -> Placement | None:
    """A plan for `world` ranks, by TorchRec's planner; None: it finds none that fits.

    Args:
        config: the model and the kind of rank.
        model: as `build` makes it.
        world: ranks, whatever the config says.
        unlimited: whether ranks are to have memory without end, to see how much is needed.
    """
    topology = _topology(config.cluster, world, unlimited=unlimited)
    limits = {
        f"{group.name}_{index}": ParameterConstraints(
            sharding_types=list(group.forms),
            compute_kernels=list(group.kernels),
            min_partition=group.min_partition,
            pooling_factors=[group.pooling],
            cache_params=None if group.cache_load_factor is None else CacheParams(load_factor=group.cache_load_factor),
        )
        for group in config.tables
        for index in range(group.count)
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=config.batch_size,
        constraints=limits,
        enumerator=EmbeddingEnumerator(topology, config.batch_size, limits, Estimates(topology, limits)),
        storage_reservation=FixedPercentageStorageReservation(config.cluster.reserve),
        proposer=GroupProposer(),
        stats=[],
        debug=False,
    )
    if sharding.plan(planner, model, sharding.sharders()) is None:
        return None
    options = planner.get_selected_options()
    return Placement(world, options, usage(options, world))


def usable(cluster: Cluster) -> dict[str, int]:
    """Tier → bytes of a rank that tables may fill."""
    return {
        "hbm": int(cluster.hbm_gb * GB * (1 - cluster.reserve)),
        "ddr": int(cluster.host_gb * GB),
        "ssd": int(cluster.ssd_gb * GB * (1 - cluster.ssd_reserve)),
    }


def _topology(cluster: Cluster, world: int, *, unlimited: bool) -> Topology:
    room = usable(cluster)
    per_ms = GB / 1000
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=world,
            local_world_size=cluster.local_world_size,
            hbm_cap_bytes=ENDLESS if unlimited else int(cluster.hbm_gb * GB),
            ddr_cap_bytes=ENDLESS if unlimited else room["ddr"],
            ssd_cap_bytes=ENDLESS if unlimited else room["ssd"],
        ),
        HardwareConfig(
            hbm_mem_bw=cluster.hbm_gb_s * per_ms,
            ddr_mem_bw=cluster.host_gb_s * per_ms,
            ssd_mem_bw=cluster.ssd_gb_s * per_ms,
            hbm_to_ddr_mem_bw=cluster.host_to_hbm_gb_s * per_ms,
            intra_host_bw=cluster.intra_host_gb_s * per_ms,
            inter_host_bw=cluster.inter_host_gb_s * per_ms,
        ),
        KernelConfig(compute_device="cuda", use_hardware_based_bandwidth=True),
    )
