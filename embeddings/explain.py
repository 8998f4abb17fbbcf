"""Why each table of a model goes where it does, and what would make a model fit that does not."""

import copy
from collections.abc import Callable
from typing import Any, get_args

from torch import nn
from torchrec import EmbeddingCollection
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.constants import DDR_CAP, HBM_CAP
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.planner.utils import reset_shard_rank

from embeddings import sharding
from embeddings.constraints import COLUMN_FORMS, ELEMENTWISE, REPLICATED, Config, Form, TableConfig, table_configs
from embeddings.estimates import TIERS, tiers, usage

LIMIT = 4096
"""Ranks that a bigger cluster may have."""
GB = 1e9


def explain(
    model: nn.Module, config: Config, optimizer: str, world: int, local: int, device: str, batch_size: int
) -> dict[str, Any]:
    """The plan of a model with its reasons, or what would make one fit; sizes in bytes, times in TorchRec's ms.

    Args:
        model: its tables on the meta device, fused optimizers attached.
        config: what the planner may do.
        optimizer: the sparse one, as in `optim.Config.sparse`.
        world: ranks.
        local: ranks of a host.
        device: `cpu` or `cuda`.
        batch_size: rows of a global batch.
    """

    def planned(given: Config, world: int, local: int) -> EmbeddingShardingPlanner | None:
        cluster = sharding.topology(given, world, local, device)
        planner = sharding.planner(model, given, cluster, -(-batch_size // world))
        found = sharding.plan(planner, model, sharding.sharders(sharding.replicated_tables(given)))
        return None if found is None else planner

    facts: dict[str, Any] = {"world_size": world, "local_world_size": local, "device": device}
    planner = planned(config, world, local)
    if planner is None:
        return facts | {"fits": False} | _remedies(planned, config, optimizer, world, local, device)
    options = planner.get_selected_options()
    used = usage(options, world)
    whole = _replicated(model, config, world, device)
    for table in whole:
        for tier in TIERS:
            used[tier] += table["bytes"][tier] / world
    return facts | {
        "fits": True,
        "ms": float(used["ms"].max()),
        "tables": [_table(option, planner, config, world) for option in options] + whole,
        "ranks": [{name: float(of_rank[rank]) for name, of_rank in used.items()} for rank in range(world)],
    }


def _table(option: ShardingOption, planner: EmbeddingShardingPlanner, config: Config, world: int) -> dict[str, Any]:
    """One table of a plan."""
    rows, dim = option.tensor.shape
    others = [other for other in planner.get_search_space() or [] if other.fqn == option.fqn]
    others = [other for other in others if (other.sharding_type, other.compute_kernel) != _choice(option)]
    chosen = _milliseconds(planner.get_selected_options(), world)
    alternatives = [_alternative(other, planner, chosen, world) for other in others]
    return {
        "name": option.name,
        "module": option.path,
        "rows": rows,
        "dim": dim,
        "form": option.sharding_type,
        "kernel": option.compute_kernel,
        "ranks": sorted({shard.rank for shard in option.shards if shard.rank is not None}),
        "shards": [list(shard.size) for shard in option.shards],
        "bytes": {tier: getattr(option.total_storage, tier) for tier in TIERS},
        "ms": max(shard.perf.total for shard in option.shards if shard.perf is not None),
        "alternatives": sorted(alternatives, key=lambda found: (found["plan_ms"] is None, found["plan_ms"])),
        "why": _why(option, alternatives, config),
    }


def _alternative(other: ShardingOption, planner: EmbeddingShardingPlanner, chosen: float, world: int) -> dict[str, Any]:
    """What the plan would be with another choice for one table and the same for all others, placed anew."""
    proposal = [other if option.fqn == other.fqn else option for option in planner.get_selected_options()]
    proposal = copy.deepcopy(proposal)
    reset_shard_rank(proposal)
    room = planner._storage_reservation.last_reserved_topology
    assert room is not None
    try:
        milliseconds = _milliseconds(GreedyPerfPartitioner().partition(proposal, room), world)
    except PlannerError:
        milliseconds = None
    return {
        "form": other.sharding_type,
        "kernel": other.compute_kernel,
        "plan_ms": milliseconds,
        "factor": None if milliseconds is None or not chosen else milliseconds / chosen,
        "bytes": {tier: getattr(other.total_storage, tier) for tier in TIERS},
    }


def _why(option: ShardingOption, alternatives: list[dict[str, Any]], config: Config) -> str:
    fitting = [other for other in alternatives if other["factor"] is not None]
    if fitting:
        best = min(fitting, key=lambda other: other["factor"])
        return f"{_name(best, option)} takes {best['factor']:.2f} ×"
    if alternatives:
        return f"{', '.join(_name(other, option) for other in alternatives)} would not fit"
    where = f"sharding.tables.{option.name}" if config.tables.get(option.name, TableConfig()).form else "sharding.forms"
    return f"only choice of {where}"


def _name(other: dict[str, Any], option: ShardingOption) -> str:
    """Form and, where it is what differs, kernel."""
    return other["form"] if other["kernel"] == option.compute_kernel else f"{other['form']} {other['kernel']}"


def _choice(option: ShardingOption) -> tuple[str, str]:
    return option.sharding_type, option.compute_kernel


def _milliseconds(options: list[ShardingOption], world: int) -> float:
    """Estimated time of the slowest rank."""
    return float(usage(options, world)["ms"].max())


def _replicated(model: nn.Module, config: Config, world: int, device: str) -> list[dict[str, Any]]:
    """Sequence tables of which every rank has a copy; the planner does not see them."""
    names = sharding.replicated_tables(config)
    found: list[dict[str, Any]] = []
    for path, module in model.named_modules():
        tables = table_configs(module) if isinstance(module, EmbeddingCollection) else []
        for table in tables if {table.name for table in tables} <= set(names) else ():
            rows, dim = table.num_embeddings, table.embedding_dim
            weight = module.get_parameter(f"embeddings.{table.name}.weight")
            kept = tiers("dense", device, rows, dim, weight.element_size(), None, None)
            found.append(
                {
                    "name": table.name,
                    "module": path,
                    "rows": rows,
                    "dim": dim,
                    "form": REPLICATED,
                    "kernel": "dense",
                    "ranks": list(range(world)),
                    "shards": [[rows, dim]] * world,
                    "bytes": {tier: world * getattr(kept, tier) for tier in TIERS},
                    "ms": None,
                    "alternatives": [],
                    "why": f"only choice of sharding.tables.{table.name}",
                }
            )
    return found


def _remedies(
    planned: Callable[[Config, int, int], EmbeddingShardingPlanner | None],
    config: Config,
    optimizer: str,
    world: int,
    local: int,
    device: str,
) -> dict[str, Any]:
    """What would make a plan fit, each on its own; None where it would not."""
    hosts = _least(lambda hosts: planned(config, hosts * local, local) is not None, world // local, LIMIT // local)
    field, cap = ("host_gb", DDR_CAP) if device == "cpu" else ("hbm_gb", HBM_CAP)
    start = getattr(config, field) or cap / GB

    def with_memory(hundredths: int) -> Config:
        return config.model_copy(update={field: start * hundredths / 100})

    size = _least(lambda hundredths: planned(with_memory(hundredths), world, local) is not None, 100, 100_000)
    forms = tuple(form for form in get_args(Form) if form not in COLUMN_FORMS or optimizer in ELEMENTWISE)
    freed = planned(config.model_copy(update={"forms": forms, "tables": {}}), world, local)
    changed = {
        option.name: option.sharding_type
        for option in ([] if freed is None else freed.get_selected_options())
        if option.sharding_type not in _allowed(option.name, config)
    }
    return {
        "remedies": {
            "world_size": None if hosts is None else hosts * local,
            "memory": None if size is None else {"field": f"sharding.{field}", "value": start * size / 100},
            "forms": changed or None,
        }
    }


def _allowed(table: str, config: Config) -> tuple[str, ...]:
    named = config.tables.get(table, TableConfig()).form
    return (named,) if named else config.forms


def _least(fits: Callable[[int], bool], low: int, limit: int) -> int | None:
    """The least number above `low`, which does not fit, that does; found by doubling, then by halves."""
    high = 2 * low
    while high <= limit and not fits(high):
        low, high = high, 2 * high
    if high > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
