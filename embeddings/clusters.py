"""How full a cluster would be, and the smallest one that holds a model."""

import math
import time
from typing import Any

from torch import nn
from torchrec.distributed.planner.types import ShardingOption

from embeddings import sharding
from embeddings.capacity import Config, Group, build, place, usable
from embeddings.estimates import OPTIMIZERS, TIERS, tiers

WIDTH = {"fp32": 4, "fp16": 2}
"""Bytes of a weight."""
LIMIT = 65_536
"""Ranks that the smallest cluster may have; beyond, there is said to be none."""


def report(config: Config, world: int) -> dict[str, Any]:
    """All that is known of the model on `world` ranks, and the smallest cluster that holds it; sizes in bytes."""
    started = time.perf_counter()
    model = build(config)
    placement = place(config, model, world)
    # What does not fit is described as it would be if ranks had memory without end.
    shown = placement or place(config, model, world, unlimited=True)
    assert shown is not None, "memory without end holds everything"
    room = usable(config.cluster)
    largest = {tier: int(shown.used[tier].max()) for tier in TIERS}
    facts: dict[str, Any] = {
        "parameters": config.parameters,
        "tables": sum(group.count for group in config.tables),
        "world_size": world,
        "local_world_size": config.cluster.local_world_size,
        "fits": placement is not None,
        "short": [tier for tier in TIERS if largest[tier] > room[tier]],
        "bytes": {tier: int(shown.used[tier].sum()) for tier in TIERS},
        "usable_per_rank": room,
        "largest_rank": largest,
        "balance": {name: _balance(of_rank) for name, of_rank in shown.used.items()},
        "groups": [_described(group, shown.options) for group in config.tables],
        "plan_seconds": time.perf_counter() - started,
        "smallest": smallest(config, model),
    }
    return facts | {"seconds": time.perf_counter() - started}


def bound(config: Config, model: nn.Module) -> int | None:
    """Ranks that every plan needs at least: tables, state and caches of some tier fill so many; None: no rank has one.

    Inputs, outputs and the shapes of shards are left out; where a group may be kept in several ways, each tier gets
    the least of them.
    """
    optimizer = getattr(sharding.table_parameters(model)[0], OPTIMIZERS)[0]
    need = dict.fromkeys(TIERS, 0)
    for group in config.tables:
        ways = [
            tiers(kernel, "cuda", group.rows, group.dim, WIDTH[group.dtype], optimizer, group.cache_load_factor)
            for kernel in group.kernels
        ]
        for tier in TIERS:
            need[tier] += group.count * min(getattr(way, tier) for way in ways)
    room, local = usable(config.cluster), config.cluster.local_world_size
    if any(need[tier] and not room[tier] for tier in TIERS):
        return None
    ranks = max(math.ceil(need[tier] / room[tier]) for tier in TIERS if room[tier])
    return max(-(-ranks // local), 1) * local


def smallest(config: Config, model: nn.Module, limit: int = LIMIT) -> dict[str, Any]:
    """The smallest cluster of this kind of ranks that a plan is found for.

    From the bound upwards in growing steps to the first that fits, then by halves between it and the last that did not.
    Fitting is not quite monotone (a bigger cluster has a bigger global batch), hence all that was refused is told.

    Args:
        config: the kind of rank.
        model: as `build` makes it.
        limit: ranks at most.
    """
    local, low = config.cluster.local_world_size, bound(config, model)
    refused: list[int] = []
    world, step = low or limit + 1, local
    while world <= limit and place(config, model, world) is None:
        refused.append(world)
        world, step = world + step, 2 * step
    while world <= limit and refused and world - max(refused) > local:
        middle = max(refused) + (world - max(refused)) // (2 * local) * local
        if place(config, model, middle) is None:
            refused.append(middle)
        else:
            world = middle
    return {"world_size": world if world <= limit else None, "bound": low, "refused": sorted(refused)}


def _balance(of_rank: Any) -> float | None:
    """The fullest rank beside the mean; None where there is nothing to share."""
    return float(of_rank.max() / of_rank.mean()) if of_rank.any() else None


def _described(group: Group, options: list[ShardingOption]) -> dict[str, Any]:
    own = [option for option in options if option.name.rpartition("_")[0] == group.name]
    shards = [shard for option in own for shard in option.shards]
    return {
        "name": group.name,
        "tables": group.count,
        "parameters": group.parameters,
        "form": own[0].sharding_type,
        "kernel": own[0].compute_kernel,
        "shards": len(shards),
        "bytes": {tier: sum(getattr(shard.storage, tier) for shard in shards) for tier in TIERS},
    }
