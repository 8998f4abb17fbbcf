"""How far the planner's estimates are from what is measured: memory of every rank, and the order of forms by time.

    python benchmarks/bench_plan.py
    python benchmarks/bench_plan.py --quick --json

On 1, 2 and 4 processes of this machine (4 as two hosts of 2), pooled tables are sharded in every form and trained for
some steps. Memory: what the planner counts for tables and optimizer state, beside the bytes of the tensors that a rank
holds; the same for TorchRec's own estimator. Time: the estimate of the slowest rank and the median of a forward and
backward pass, both divided by those of table_wise, for estimates rank plans and are no step times.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.modules.embedding_configs import DataType

from embeddings import optim, sharding
from embeddings.constraints import COLUMN_FORMS, TableConfig
from embeddings.estimates import OPTIMIZERS, tiers, usage
from recsys import distributed
from recsys.console import quiet

CPU, META = torch.device("cpu"), torch.device("meta")
DIM, PIECE, POOLING, TABLES, BATCH = 64, 32, 10, 4, 2048
WORLDS = (1, 2, 4)
WARM = 3
"""Steps before those that are timed."""


class Model(nn.Module):
    """Tables, and a sum over what they give."""

    def __init__(self, rows: int, dtype: DataType) -> None:
        super().__init__()
        self.keys = [f"f{place}" for place in range(TABLES)]
        tables = [
            EmbeddingBagConfig(
                name=f"t{key}", num_embeddings=rows, embedding_dim=DIM, feature_names=[key], data_type=dtype
            )
            for key in self.keys
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device=META)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        """A loss."""
        found = self.tables(ids)
        return self.scale * torch.stack([found[key].square().sum() for key in self.keys]).sum()


def held(model: nn.Module, optimizer: Any) -> int:
    """Bytes of all tensors that a rank holds for its tables: weights, state, gradients of what is not fused."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    # Fused kernels keep weights and state in modules that parameters() does not list.
    for module in model.modules():
        for lookup in getattr(module, "_lookups", ()):
            tensors += [tensor for part in lookup.modules() for tensor in vars(part)["_buffers"].values()]
            tensors += [tensor for part in lookup.modules() for tensor in vars(part)["_parameters"].values()]
    tensors += [
        tensor
        for name, part in optimizer._optims
        if name == "dense"
        for state in part.state.values()
        for tensor in state.values()
    ]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter)
    }
    return sum(storages.values())


def counted(options: list[ShardingOption], rank: int) -> int:
    """Bytes of a rank's tables and optimizer state, as the planner counts them."""
    return sum(
        tiers(
            "dense" if option.compute_kernel == "dense" else "fused",
            "cpu",
            *shard.size,
            option.tensor.element_size(),
            _optimizer(option),
            None,
        ).ddr
        for option in options
        for shard in option.shards
        if shard.rank == rank
    )


def torchrecs(planner: Any, options: list[ShardingOption], ours: int, rank: int) -> int:
    """The same by TorchRec's own estimator; inputs and outputs, which both count alike, are taken out."""
    found = {sharder_name(sharder.module_type): sharder for sharder in sharding.sharders()}
    total = usage(options, planner._topology.world_size)["ddr"][rank]
    EmbeddingStorageEstimator(planner._topology, planner._constraints).estimate(options, build_sharder_data_map(found))
    theirs = usage(options, planner._topology.world_size)["ddr"][rank]
    return int(theirs - (total - ours))


def _optimizer(option: ShardingOption) -> type | None:
    return getattr(option.tensor, OPTIMIZERS, [None])[0]


def measure(rows: int, steps: int, out: Path) -> None:
    """Every form and optimizer on the ranks of this process group; every rank calls it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    local = 2 if world == 4 else world
    single, half = DataType.FP32, DataType.FP16
    cases = [(form, "adagrad", single) for form in get_args(sharding.Form)]
    cases += [(form, "rowwise_adagrad", single) for form in get_args(sharding.Form) if form not in COLUMN_FORMS]
    cases += [("data_parallel", "sgd", single), ("row_wise", "rowwise_adagrad", half), ("row_wise", "adagrad", half)]
    found: list[dict[str, Any]] = []
    for form, sparse, dtype in cases:
        model, optimizers = Model(rows, dtype), optim.Config.model_validate({"sparse": sparse})
        section = {"form": form, "pooling": POOLING} | ({"min_partition": PIECE} if form in COLUMN_FORMS else {})
        limits = TableConfig.model_validate(section)
        names = sharding.table_names(model)
        config = sharding.Config(tables=dict.fromkeys(names, limits), local_world_size=local)
        optim.fuse(sharding.fused_parameters(model, config), optimizers)
        planner = sharding.planner(model, config, sharding.topology(config, world, local, "cpu"), BATCH // world)
        planned = sharding.plan(planner, model, sharding.sharders(sharding.replicated_tables(config)))
        assert planned is not None
        options = planner.get_selected_options()
        sharded = sharding.shard(model, config, CPU, BATCH)
        optimizer = optim.combine(sharded, optimizers)
        batches = [_batch(rows, rank, world, step) for step in range(WARM + steps)]
        taken: list[float] = []
        for ids in batches:
            optimizer.zero_grad()
            dist.barrier()
            started = time.perf_counter()
            sharded(ids).backward()
            optimizer.step()
            taken.append(time.perf_counter() - started)
        ours = counted(options, rank)
        facts = {
            "held": held(sharded, optimizer),
            "ours": ours,
            "estimated_ms": float(usage(options, world)["ms"].max()),
            "torchrec": torchrecs(planner, options, ours, rank),
            "ms": 1000 * statistics.median(taken[WARM:]),
        }
        every = distributed.gathered(facts)
        found.append(
            {
                "ranks": world,
                "form": form,
                "optimizer": "adamw" if form == "data_parallel" else sparse,
                "dtype": dtype.value.lower(),
                "bytes": [facts["held"] for facts in every],
                "error": max(abs(facts["ours"] / facts["held"] - 1) for facts in every if facts["held"] > 10_000),
                "torchrec_error": max(
                    abs(facts["torchrec"] / facts["held"] - 1) for facts in every if facts["held"] > 10_000
                ),
                "ms": max(facts["ms"] for facts in every),
                "estimated_ms": every[0]["estimated_ms"],
            }
        )
    if rank == 0:
        out.write_text(json.dumps(found))


def _batch(rows: int, rank: int, world: int, step: int) -> KeyedJaggedTensor:
    draw = torch.Generator().manual_seed(step * world + rank)
    return KeyedJaggedTensor.from_lengths_sync(
        keys=[f"f{place}" for place in range(TABLES)],
        values=torch.randint(0, rows, (TABLES * BATCH // world * POOLING,), generator=draw),
        lengths=torch.full((TABLES * BATCH // world,), POOLING),
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small tables, few steps")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    quiet()
    rows, steps = (20_000, 3) if asked.quick else (200_000, 15)
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for world in WORLDS:
            out = Path(scratch, f"{world}.json")
            distributed.launch(measure, distributed.Config(nproc=world), rows, steps, out)
            cases += json.loads(out.read_text())
    ranking: dict[int, float] = {}
    for world in WORLDS:
        forms = [case for case in cases if case["ranks"] == world and _alike(case)]
        base = next(case for case in forms if case["form"] == "table_wise")
        for case in forms:
            case["measured_ratio"] = case["ms"] / base["ms"]
            case["estimated_ratio"] = case["estimated_ms"] / base["estimated_ms"]
        columns = [[case[name] for case in forms] for name in ("ms", "estimated_ms")]
        ranking[world] = float(spearmanr(*columns).statistic)
    worst = max(case["error"] for case in cases)
    found = {
        "rows": rows,
        "cases": cases,
        "spearman": ranking,
        "ratios": {
            "memory_error_of_torchrec": max(case["torchrec_error"] for case in cases) / max(worst, 1e-9),
        },
        "bars": {"memory_error": {"value": worst, "target": 0.02, "ok": worst <= 0.02}},
    }
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    show(found)


def _alike(case: dict[str, Any]) -> bool:
    """Whether a case differs from others by its form, which for data_parallel includes the dense optimizer."""
    return case["optimizer"] in ("adagrad", "adamw") and case["dtype"] == "fp32"


def show(found: dict[str, Any]) -> None:
    """A row a case."""
    table = Table(title=f"{TABLES} tables of {found['rows']:,} × {DIM}, {BATCH} rows of {POOLING} ids a table")
    for name in ("", "form", "optimizer", "MB", "error", "TorchRec's", "ms", "×", "est. ×"):
        table.add_column(name, justify="left" if name in ("form", "optimizer") else "right", no_wrap=True)
    for case in found["cases"]:
        times = [f"{case[name]:.2f}" if name in case else "" for name in ("measured_ratio", "estimated_ratio")]
        table.add_row(
            str(case["ranks"]),
            case["form"],
            case["optimizer"] + (" fp16" if case["dtype"] == "fp16" else ""),
            f"{max(case['bytes']) / 1e6:.0f}",
            f"{case['error']:.2%}",
            f"{case['torchrec_error']:.2%}",
            f"{case['ms']:.0f}",
            *times,
        )
    console = Console(width=110)
    console.print(table)
    for world, value in found["spearman"].items():
        console.print(f"Order of the forms by time, {world} ranks: Spearman's rank correlation {value:.2f}")
    console.print(f"Largest error in the memory of a rank: {found['bars']['memory_error']['value']:.2%}")


if __name__ == "__main__":
    main()
