"""What a shard takes of each memory tier, and how long TorchRec thinks that its lookups take.

Time is TorchRec's estimate; it ranks plans and is not a step time. Memory is TorchRec's for inputs and outputs; tables
and optimizer state are counted here, because TorchRec 1.9 takes the state to have the weights' type (it is float32),
gives all of it to the SSD where the kernel keeps it on the device, charges every shard of a key-value table with the
cache of the whole table, and leaves out what a data-parallel table costs the dense optimizer.
"""

import copy
import math
from typing import Literal

import numpy as np
import torch
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Perf,
    Shard,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.optim.optimizers import LAMB, Adam, PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching", "key_value", "ssd_virtual_table", "dram_virtual_table"]
"""`fused`: on the device. `fused_uvm`: in host memory. `fused_uvm_caching`: there too, a part cached on the device.
`key_value`: on SSD (RocksDB), a part cached on the device, the optimizer's state on the device.
`*_virtual_table`: the same over ids without bounds, state beside the rows, on SSD or in host memory."""

CACHED: tuple[Kernel, ...] = ("fused_uvm_caching", "key_value", "ssd_virtual_table", "dram_virtual_table")
"""Kernels with a cache on the device."""
VIRTUAL: tuple[Kernel, ...] = ("ssd_virtual_table", "dram_virtual_table")

TIERS = ("hbm", "ddr", "ssd")
"""TorchRec's names of device memory, host memory and SSD."""
OPTIMIZERS = "_optimizer_classes"
"""Attribute of a parameter in which torch keeps what was fused to it."""
FLOAT = 4
"""Bytes of an optimizer's number."""
KEY = 8
"""Bytes of the id that a key-value store keeps with every row."""
SLOT = 16
"""Bytes of a cached row beside its weights: its id, and when it was used."""
WAYS = 32
"""A cache is cut into sets of so many rows (fbgemm's ASSOC)."""
DEFAULT_LOAD_FACTOR = 0.2
"""Share of the rows that a cache has room for where nothing is said; fbgemm's."""
_STATE: dict[type, tuple[int, int]] = {
    torch.optim.SGD: (0, 0),
    RowWiseAdagrad: (1, 0),
    torch.optim.Adagrad: (0, 1),
    Adam: (0, 2),
    LAMB: (0, 2),
    PartialRowWiseAdam: (1, 1),
}
"""Fused optimizer → its numbers for each row and for each weight; any other: one for each weight."""
_DENSE = (0, 3)
"""Two moments of AdamW, and a dense gradient."""


def tiers(
    kernel: str, device: str, rows: int, columns: int, width: int, optimizer: type | None, load_factor: float | None
) -> Storage:
    """Bytes of a shard's weights, optimizer state and cache, without inputs and outputs.

    Args:
        kernel: a `Kernel`, or `dense` for a data-parallel table.
        device: `cpu`, where device memory is host memory, or `cuda`.
        rows: of the shard.
        columns: of the shard.
        width: bytes of a weight.
        optimizer: class of the fused optimizer; None: it is not trained.
        load_factor: share of the rows that is cached; None: fbgemm's default.
    """
    weights = rows * columns * width
    for_row, for_weight = (
        _DENSE if kernel == "dense" else (0, 0) if optimizer is None else _STATE.get(optimizer, (0, 1))
    )
    state = FLOAT * rows * (for_row + columns * for_weight)
    if kernel in ("fused", "dense"):
        return Storage(hbm=0, ddr=weights + state) if device == "cpu" else Storage(hbm=weights + state, ddr=0)
    if kernel == "fused_uvm":
        return Storage(hbm=0, ddr=weights + state)
    factor = DEFAULT_LOAD_FACTOR if load_factor is None else load_factor
    if kernel == "fused_uvm_caching":
        # A cache also maps every row of the table to its slot: 4 bytes each.
        cache = math.ceil(factor * rows) * (columns * width + SLOT) + 4 * rows
        return Storage(hbm=cache, ddr=weights + state)
    cache = max(int(factor * rows / WAYS), 1) * WAYS * (columns * width + SLOT) if rows else 0
    stored = weights + KEY * rows
    if kernel == "key_value":
        return Storage(hbm=cache + state, ddr=0, ssd=stored)
    stored += state
    return Storage(hbm=cache, ddr=0, ssd=stored) if kernel == "ssd_virtual_table" else Storage(hbm=cache, ddr=stored)


def usage(options: list[ShardingOption], world: int) -> dict[str, np.ndarray]:
    """Tier → bytes of each rank, and `ms` → estimated time of each rank's lookups; [world]."""
    used = {name: np.zeros(world) for name in (*TIERS, "ms")}
    for option in options:
        for shard in option.shards:
            assert shard.rank is not None
            assert shard.perf is not None
            for tier in TIERS:
                used[tier][shard.rank] += getattr(shard.storage, tier)
            used["ms"][shard.rank] += shard.perf.total
    return used


class Estimates(ShardEstimator):
    """Storage and time of every shard; shards that are alike are estimated once, however many there are."""

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints] | None = None) -> None:
        self._topology = topology
        self._time = EmbeddingPerfEstimator(topology, constraints)
        self._traffic = EmbeddingStorageEstimator(topology, constraints)

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        """Fill in `storage` and `perf` of all shards, in place."""
        known: dict[object, tuple[dict[tuple[int, ...], tuple[Storage, Perf]], bool | None]] = {}
        for option in sharding_options:
            key = _kind(option)
            if key not in known:
                known[key] = self._estimated(option, sharder_data_map)
            of_size, option.is_weighted = known[key]
            for shard in option.shards:
                shard.storage, shard.perf = of_size[tuple(shard.size)]

    def _estimated(
        self, option: ShardingOption, sharder_data_map: SharderDataMap
    ) -> tuple[dict[tuple[int, ...], tuple[Storage, Perf]], bool | None]:
        """Size of a shard → what it takes and costs; and whether the bags have weights."""
        probe = copy.copy(option)
        sizes = sorted({tuple(shard.size) for shard in option.shards})
        probe.shards = [Shard(size=list(size), offset=[0, 0]) for size in sizes]
        self._time.estimate([probe], sharder_data_map)
        # What TorchRec says of a key-value table without a cache are its inputs and outputs, whatever the kernel.
        probe.compute_kernel, probe.key_value_params = "key_value", None
        self._traffic.estimate([probe], sharder_data_map)
        table, device = option.tensor, self._topology.compute_device
        optimizer = getattr(table, OPTIMIZERS, [None])[0]
        found: dict[tuple[int, ...], tuple[Storage, Perf]] = {}
        for size, shard in zip(sizes, probe.shards, strict=True):
            traffic, perf = shard.storage, shard.perf
            assert traffic is not None
            assert perf is not None
            rows, columns = size
            kept = tiers(
                option.compute_kernel, device, rows, columns, table.element_size(), optimizer, option.cache_load_factor
            )
            found[size] = (kept + Storage(hbm=traffic.hbm, ddr=traffic.ddr), perf)
        return found, probe.is_weighted


def _kind(option: ShardingOption) -> tuple[object, ...]:
    """What two options must share for their shards of one size to be alike."""
    return (
        option.module_type_key,
        option.sharding_type,
        option.compute_kernel,
        option.tensor.shape,
        option.tensor.dtype,
        getattr(option.tensor, OPTIMIZERS, [None])[0],
        tuple(option.input_lengths),
        option.batch_size,
        option.is_pooled,
        option.is_weighted,
        option.cache_load_factor,
    )
