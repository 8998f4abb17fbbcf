"""How fast a DLRM trains, fed from Parquet, beside torchrec's own DLRM in memory; where the time goes; larger tables.

    python benchmarks/bench_training.py                     everything, about fifteen minutes
    python benchmarks/bench_training.py --quick --json      small, and once
    python benchmarks/bench_training.py --only growth       tables that grow to 100 million rows; a billion parameters

Both models have 8 tables of 200,000 rows × 32, 13 dense features, 4 ids a bag, batches of 1,024 a process, the layers
below, row-wise Adagrad and AdamW. The peer finds its batches in memory; Feedline reads Parquet, hashes ids, shuffles,
writes its logbook and checkpoints. Runs alternate; one process is measured with one thread, as each of two has, and
with two, and the better of them counts, for both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

TABLES, ROWS, DIM, IDS, DENSE, BATCH = 8, 200_000, 32, 4, 13, 1024
EPOCHS = 2
BOTTOM, TOP = (64,), (64,)
"""Hidden layers of the dense and the over arch; small, as the published figure of the peer at this size implies."""

HERE = Path(__file__).parent


def log(rows: int) -> pl.DataFrame:
    """Random impressions: 8 lists of ids and 13 numbers each, and a label that depends on some of them."""
    rng = np.random.default_rng(7)
    columns: dict[str, Any] = {
        "user_id": rng.integers(0, 1000, rows),
        "item_id": rng.integers(0, 1000, rows),
        "timestamp": 1_600_000_000_000 + np.arange(rows) * 1000,
    }
    offsets = np.arange(0, IDS * rows + 1, IDS)
    for table in range(TABLES):
        values = rng.integers(0, 10_000_000, IDS * rows)
        columns[f"c{table}"] = pl.Series(values).reshape((rows, IDS)).arr.to_list()
    assert len(offsets) == rows + 1
    for number in range(DENSE):
        columns[f"d{number}"] = rng.random(rows)
    columns["action"] = np.where(columns["d0"] + rng.random(rows) > 1.2, "click", "view")
    return pl.DataFrame(columns)


def prepare(directory: Path, rows: int) -> Path:
    """The log as Parquet, and examples of it."""
    from features import pipeline
    from features.datasets import files
    from features.schema import FeatureSpec

    log(rows).write_parquet(directory / "log.parquet")
    names = [f"c{i}" for i in range(TABLES)], [f"d{i}" for i in range(DENSE)]
    specs = [
        FeatureSpec(
            name=name, kind="bag", source=f"request.{name}", transform="hashing", params={"buckets": ROWS - 1}, dim=DIM
        )
        for name in names[0]
    ]
    specs += [FeatureSpec(name=name, kind="dense", source=f"request.{name}", transform="numeric") for name in names[1]]
    source = files.load(files.Config(events=str(directory / "log.parquet"), context=(*names[0], *names[1])))
    config = pipeline.Config(
        splits=("time",),
        valid_share=0.01,
        test_share=0.01,
        history_actions=("click",),
        label=pipeline.Label(name="click", actions=("click",)),
    )
    pipeline.prepare(source, config, tuple(specs), directory / "examples", {})
    return directory / "examples" / "time"


def ours(examples: Path, directory: Path, nproc: int, threads: int, profile: bool = False) -> dict[str, Any]:
    """Two epochs, in a process of its own; its figures."""
    # As `recsys` itself sets it.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads * nproc), "THP_MEM_ALLOC_ENABLE": "1"}
    command = [sys.executable, __file__, "--train", str(examples), str(directory), str(nproc)]
    command += ["--profile"] if profile else []
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def train(examples: Path, directory: Path, nproc: int, profile: bool) -> None:
    """What `ours` starts."""
    from embeddings import sharding, tables
    from features import manifest
    from features.examples import Examples
    from recsys import data, distributed
    from recsys.console import quiet
    from recsys.resume import Training
    from recsys.roles import RankerConfig, RankerLoop
    from recsys.train import launch

    quiet()
    # So that no epoch finds the rows of the one before in memory.
    data.POOL_ROWS = int(Examples.open(examples).of_part(0).rows.sum()) // 3
    loop = RankerLoop(epochs=EPOCHS, batch_size=BATCH * nproc)
    training = Training(
        section=RankerConfig(model={"dense_layers": BOTTOM, "over": {"layers": TOP}}, train=loop),
        sharding=sharding.Config(),
        tables=tables.Config(),
        examples=examples,
        out=directory / "time" / "ranker",
        run=directory,
    )
    if profile:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled

        with profiled(activities=[ProfilerActivity.CPU]) as found:
            launch(training, distributed.Config(nproc=nproc))
        events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        lines = [(event.key, event.self_cpu_time_total / total, event.count) for event in events[:25]]
        print(json.dumps(lines))
        return
    launch(training, distributed.Config(nproc=nproc))
    facts = manifest.read(training.out)
    assert facts is not None
    print(json.dumps({name: facts[name] for name in ("rows_per_second", "parameters", "steps")}))


def peer(nproc: int, threads: int, rounds: int) -> float:
    """The median of rounds of a hundred batches, samples a second."""
    size = {
        **{"tables": TABLES, "rows": ROWS, "dim": DIM, "ids": IDS, "dense": DENSE, "batch": BATCH},
        **{"bottom": BOTTOM, "top": TOP, "threads": threads, "batches": 100, "rounds": rounds},
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(nproc), "--standalone"]
    command += [str(HERE / "_peer_dlrm.py"), json.dumps(size)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return median(json.loads(next(line for line in said.stdout.splitlines() if line.startswith("["))))


def compare(directory: Path, rows: int, times: int) -> dict[str, Any]:
    """Samples a second of both, alternating."""
    examples = prepare(directory, rows)
    cases = {"one_rank_one_thread": (1, 1), "one_rank_two_threads": (1, 2), "two_ranks": (2, 1)}
    rates: dict[str, dict[str, list[float]]] = {name: {"feedline": [], "torchrec": []} for name in cases}
    for _ in range(times):
        for name, (nproc, threads) in cases.items():
            rates[name]["torchrec"].append(peer(nproc, threads, 3))
            rates[name]["feedline"].append(ours(examples, directory, nproc, threads)["rows_per_second"])
    found = {name: {who: median(values) for who, values in both.items()} for name, both in rates.items()}
    spread = {
        name: {who: (max(values) - min(values)) / median(values) for who, values in both.items()}
        for name, both in rates.items()
    }
    ratios = {name: both["feedline"] / both["torchrec"] for name, both in found.items()}
    scaling = {who: found["two_ranks"][who] / found["one_rank_one_thread"][who] for who in ("feedline", "torchrec")}
    one = {
        who: max(found["one_rank_one_thread"][who], found["one_rank_two_threads"][who])
        for who in ("feedline", "torchrec")
    }
    return {
        "samples_per_second": found,
        "spread": spread,
        "ratios": ratios
        | {"two_ranks_to_one": scaling["feedline"], "one_rank_at_its_best": one["feedline"] / one["torchrec"]},
        "peer_two_ranks_to_one": scaling["torchrec"],
        "bars": {
            "one_rank": _bar(one["feedline"] / one["torchrec"], 1.5),
            "two_ranks_to_one": _bar(found["two_ranks"]["feedline"] / one["feedline"], 1.4),
        },
    } | ({"profile": ours(examples, directory, 1, 2, profile=True)} if times > 1 else {})


def _bar(value: float, target: float) -> dict[str, Any]:
    return {"value": value, "target": target, "ok": value >= target}


def limits() -> dict[str, float]:
    """What the machine can do at most: bytes of memory copied and float operations of matrix products, a second."""
    import torch

    x = torch.rand(2048, 2048)
    big = torch.rand(64_000_000)
    into = torch.empty_like(big)
    return {
        "gflops_fp32": 2 * 2048**3 / _fastest(lambda: x @ x) / 1e9,
        "copy_gb_per_second": 2 * big.nbytes / _fastest(lambda: into.copy_(big)) / 1e9,
    }


def _fastest(work: Any) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(10))


def growth(quick: bool) -> Iterator[dict[str, Any]]:
    """Speed and memory of one table that grows; dim 8 up to 100 million rows, and a billion parameters."""
    sizes = (
        [(10**6, 8), (10**7, 8)] if quick else [(10**6, 8), (10**7, 8), (3 * 10**7, 8), (10**8, 8), (31_250_000, 32)]
    )
    for rows, dim in sizes:
        said = subprocess.run(
            [sys.executable, __file__, "--grow", str(rows), str(dim)], check=True, capture_output=True, text=True
        )
        yield json.loads(said.stdout.splitlines()[-1])


def grow(rows: int, dim: int) -> None:
    """What `growth` starts: steps of a model with one table of that size, with its checkpoint at the end."""
    import resource

    import torch
    from torch import nn
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

    from embeddings import optim, rowwise_adagrad, sharding
    from embeddings.init import initialise_tables
    from recsys import distributed
    from recsys.console import quiet

    quiet()

    class Table(nn.Module):
        """One table, and one layer on top."""

        def __init__(self) -> None:
            super().__init__()
            table = EmbeddingBagConfig(name="t", num_embeddings=rows, embedding_dim=dim, feature_names=["f"])
            self.tables = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
            self.layer = nn.Linear(dim, 1)

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            return self.layer(self.tables(features)["f"]).square().mean()

    def work() -> None:
        rowwise_adagrad.install()
        model = Table()
        config = optim.Config()
        optim.fuse(sharding.table_parameters(model), config)
        sharded = sharding.shard(model, sharding.Config(), torch.device("cpu"), BATCH)
        started = time.perf_counter()
        initialise_tables(sharded, 0)
        filled = time.perf_counter() - started
        optimizer = optim.combine(sharded, config)
        generator = torch.Generator().manual_seed(0)
        bags, ids = BATCH, 32

        def step() -> None:
            values = torch.randint(0, rows, (bags * ids,), generator=generator)
            features = KeyedJaggedTensor(keys=["f"], values=values, lengths=torch.full((bags,), ids))
            optimizer.zero_grad()
            sharded(features).backward()
            optimizer.step()

        for _ in range(20):
            step()
        started = time.perf_counter()
        for _ in range(200):
            step()
        seconds = time.perf_counter() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        found = {"rows": rows, "dim": dim, "parameters": rows * dim, "samples_per_second": 200 * bags / seconds}
        print(json.dumps(found | {"peak_memory_gb": memory, "seconds_to_fill": filled}))

    distributed.launch(work, distributed.Config())


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Samples a second over rows of the table."""
    import matplotlib.pyplot as plt

    narrow = [point for point in points if point["dim"] == 8]
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    axes.plot(*zip(*((p["rows"], p["samples_per_second"] / 1e3) for p in narrow), strict=True), marker="o")
    for point in narrow:
        axes.annotate(f"{point['peak_memory_gb']:.1f} GB", (point["rows"], point["samples_per_second"] / 1e3), (0, 6),
                      textcoords="offset points", ha="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="rows of the table, 8 wide", ylabel="thousand samples a second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("speed", "growth"))
    parser.add_argument("--plot", type=Path, help="where to draw the growth")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train:
        train(Path(asked.train[0]), Path(asked.train[1]), int(asked.train[2]), asked.profile)
        return
    if asked.grow:
        grow(*map(int, asked.grow))
        return
    found: dict[str, Any] = {"limits": limits()}
    if asked.only != "growth":
        with tempfile.TemporaryDirectory() as scratch:
            found |= compare(Path(scratch), 250_000 if asked.quick else 600_000, 1 if asked.quick else 2)
    if asked.only != "speed":
        found["growth"] = list(growth(asked.quick))
        if asked.plot:
            plot(found["growth"], asked.plot)
        billion = next((point for point in found["growth"] if point["parameters"] >= 10**9), None)
        if billion is not None:
            memory = billion["peak_memory_gb"]
            bars = found.setdefault("bars", {})
            bars["billion_parameters_gb"] = {"value": memory, "target": 12, "ok": memory < 12}
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name}: {json.dumps(value, indent=2)}")


if __name__ == "__main__":
    main()
