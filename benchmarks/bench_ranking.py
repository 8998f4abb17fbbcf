"""How long rankers take to score 500 candidates of one person, and how fast layers of DHEN learn beside naive ones.

    python benchmarks/bench_ranking.py                     about two minutes
    python benchmarks/bench_ranking.py --quick --json      fewer requests and steps
    python benchmarks/bench_ranking.py --malloc default    memory goes back to the system after each request

One thread. Fifty features: 36 ids and 4 bags in tables of 10,000 × 32, 10 numbers; 18 of the ids are the person's, the
same in all rows. Batches are those that a server makes, tables those that a bundle is loaded with, in fp32; whatever is
compared takes turns. Sizes of models are in `RANKERS`. The peer of a DHEN's layer has the same modules and weights, but
a projection for each of them, added up one by one.

A request needs some 10 MB for a moment. A process that does little else returns them to the system after each and asks
for them again, by glibc's defaults: a thousand page faults or more. So this one starts itself anew with `KEEP`. Wall
time is what a person waits, on a busy machine also for others; `cpu_ms` is the thread's own time, by which training is
judged, and `gflops` says what the machine gave.

B rows, F vectors of a row, D their width, G vectors after a layer.
"""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CANDIDATES, DIM, ROWS, USER, ITEM, BAGS, DENSE = 500, 32, 10_000, 18, 18, 4, 10
SMALL = {"fm": {"rank": 4}, "cross": {"rank": 16}, "deep": {"layers": (32,)}}
WIDE = {"dot": {}, "cross": {}, "attention": {}, "deep": {}}
"""What `recsys.models.dhen` has by default."""
RANKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dhen": ("dhen", {"layers": 3, "features": 8, "interactions": SMALL, "over": {"layers": (64,)}}),
    "dhen_default": ("dhen", {"layers": 3, "interactions": WIDE}),
    "dlrm": ("dlrm", {}),
    "dcnv2": ("dcnv2", {}),
    "wukong": ("wukong", {}),
}
"""Name here → file in `recsys/models`, what differs from its defaults."""
BATCH = 1024
"""Rows of a training step."""
LATENCY_TARGET_MS, TRAINING_TARGET = 3.0, 1.2
KEEP = {"MALLOC_TRIM_THRESHOLD_": "500000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""glibc: blocks of up to 32 MB come from the heap, which keeps half a GB that is free."""


def schema() -> Any:
    """Fifty fitted features."""
    from features.schema import FeatureSpec, Schema

    def specs(count: int, kind: Any, side: str, transform: str) -> list[FeatureSpec]:
        names = [f"{side}_{kind}_{place}" for place in range(count)]
        rows = None if kind == "dense" else ROWS
        return [
            FeatureSpec(name=name, kind=kind, source=f"{side}.{name}", transform=transform, rows=rows, dim=DIM)
            for name in names
        ]

    found = [*specs(USER, "sparse", "user", "lookup"), *specs(ITEM, "sparse", "item", "lookup")]
    found += [*specs(BAGS, "bag", "item", "lookup"), *specs(DENSE, "dense", "item", "numeric")]
    return Schema(features=tuple(found), label="click", items=ROWS, users=ROWS)


def request(known: Any, rng: np.random.Generator) -> Any:
    """One person's candidates as the columns that a server makes a batch of; a bag has three ids."""
    from embeddings.batch import Columns

    ids = [np.full(CANDIDATES, rng.integers(1, ROWS)) for _ in range(USER)]
    ids += [rng.integers(1, ROWS, CANDIDATES) for _ in range(ITEM)]
    ids += [rng.integers(1, ROWS, 3 * CANDIDATES) for _ in range(BAGS)]
    offsets = [*[None] * (USER + ITEM), *[np.arange(0, 3 * CANDIDATES + 1, 3)] * BAGS]
    dense_BF = rng.random((CANDIDATES, DENSE), dtype=np.float32)
    return Columns(known, CANDIDATES, ids, offsets, [None] * len(ids), dense_BF, None, None)


def ranker(name: str, known: Any) -> Any:
    """As a bundle's is loaded: tables where they were stored, here in memory."""
    from embeddings.quantized import StoredTable, table_names, with_tables
    from features import registry

    kind, settings = RANKERS[name]
    torch.manual_seed(0)
    module = registry.load("recsys.models", kind, "ranker.kind")
    model = module.build(module.Config(**settings), known, torch.device("cpu"))
    tables = {table: StoredTable("fp32", torch.randn(ROWS, DIM) / DIM**0.5) for table in table_names(model)}
    return with_tables(model, tables).eval()


def dhen_stages(model: Any, batch: Any) -> tuple[Tensor, dict[str, float]]:
    """A DHEN's logits, as its forward makes them, and the milliseconds of each part; its vectors include the lookup."""
    marks = [time.perf_counter()]

    def mark(tensor: Tensor) -> Tensor:
        marks.append(time.perf_counter())
        return tensor

    x = model.candidates(batch)
    marks.append(time.perf_counter())
    for layer in model.interaction_arch:
        x = mark(layer(x))
    logits_BT = mark(model.over_arch(x.flatten(1))["logits_BT"])
    names = ["vectors", *(f"layer_{place + 1}" for place in range(len(model.interaction_arch))), "over_arch"]
    return logits_BT, dict(zip(names, (1000 * np.diff(marks)).tolist(), strict=True))


def scoring(requests: int) -> dict[str, Any]:
    """Milliseconds of a request for each ranker, and of what is done to answer one."""
    known, rng = schema(), np.random.default_rng(0)
    columns = [request(known, rng) for _ in range(32)]
    models = {name: ranker(name, known) for name in RANKERS}
    width = (USER + ITEM + BAGS + 1) * DIM
    left_BK, right_KN = torch.randn(CANDIDATES, width), torch.randn(width, 128)
    work: dict[str, Callable[[Any], Any]] = {name: model.__call__ for name, model in models.items()}
    work["lookup"] = lambda batch: models["dhen"].sparse_arch(batch.sparse)
    work["product"] = lambda batch: left_BK @ right_KN
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in ("dhen", "dhen_default")}
    with torch.inference_mode():
        for name in parts:
            batch = columns[0].batch(together=CANDIDATES)
            torch.testing.assert_close(dhen_stages(models[name], batch)[0], models[name](batch)["logits_BT"])
        # A batch remembers its offsets once it has been asked for them, so each is made anew, as the server does.
        taken = alternating({"batch": lambda each: each.batch(together=CANDIDATES)}, columns, requests)
        taken |= alternating(work, columns, requests, lambda each: each.batch(together=CANDIDATES))
        for name, found in parts.items():
            found += [
                dhen_stages(models[name], each.batch(together=CANDIDATES))[1]
                for each in (columns * requests)[:requests]
            ]
    product = taken.pop("product")
    figures = {
        name: {"dense_parameters": sum(weight.numel() for weight in models[name].parameters())} | taken.pop(name)
        for name in RANKERS
    }
    for name, found in parts.items():
        figures[name]["parts_ms"] = {part: float(np.median([each[part] for each in found])) for part in found[0]}
    gflops = 2 * left_BK.numel() * right_KN.shape[1] / product["p50_ms"] / 1e6
    return {"gflops": gflops, "rankers": figures, "before_it": taken}


def alternating(
    work: dict[str, Callable[[Any], Any]],
    given: list[Any],
    rounds: int,
    prepare: Callable[[Any], Any] = lambda each: each,
) -> dict[str, dict[str, float]]:
    """Each in its turn, on the same; `prepare` is not timed."""
    wall: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-5, rounds):
        for name, each in work.items():
            argument = prepare(given[turn % len(given)])
            before = time.perf_counter(), time.thread_time()
            each(argument)
            after = time.perf_counter(), time.thread_time()
            if turn >= 0:
                wall[name].append(1000 * (after[0] - before[0]))
                cpu[name].append(1000 * (after[1] - before[1]))
    return {
        name: {
            "p50_ms": float(np.median(wall[name])),
            "p99_ms": float(np.quantile(wall[name], 0.99)),
            "cpu_ms": float(np.median(cpu[name])),
        }
        for name in work
    }


class NaiveLayer(nn.Module):
    """What a `DHENLayer` computes, as the paper writes it: a projection to [G, D] a module, added up one by one."""

    def __init__(self, layer: Any, dim: int) -> None:
        """With copies of the modules and weights of a `DHENLayer`."""
        super().__init__()
        out = layer.mix.out_features
        self.interactions = copy.deepcopy(layer.interactions)
        self.of_vectors, self.shape = layer.of_vectors, (out, dim)
        widths = [
            module.out_vectors if vectors else module.out_dim
            for module, vectors in zip(self.interactions, self.of_vectors, strict=True)
        ]
        features = layer.mix.in_features - sum(w for w, v in zip(widths, self.of_vectors, strict=True) if v)
        self.shortcut = nn.Linear(features, out, bias=False)
        self.projections = nn.ModuleList(
            nn.Linear(width, out, bias=False) if vectors else nn.Linear(width, out * dim, bias=False)
            for width, vectors in zip(widths, self.of_vectors, strict=True)
        )
        self.bias = nn.Parameter(layer.numbers.bias.detach().clone().view(out, dim))
        self.norm = copy.deepcopy(layer.norm)
        vector, number = features, 0
        with torch.no_grad():
            self.shortcut.weight.copy_(layer.mix.weight[:, :features])
            for projection, width, vectors in zip(self.projections, widths, self.of_vectors, strict=True):
                if vectors:
                    projection.weight.copy_(layer.mix.weight[:, vector : vector + width])
                    vector += width
                else:
                    projection.weight.copy_(layer.numbers.weight[:, number : number + width])
                    number += width

    def forward(self, x_BFD: Tensor) -> Tensor:
        """[B, F, D] → [B, G, D]."""
        y_BGD = self.shortcut(x_BFD.transpose(1, 2)).transpose(1, 2) + self.bias
        for module, projection, vectors in zip(self.interactions, self.projections, self.of_vectors, strict=True):
            found = module(x_BFD)
            if vectors:
                y_BGD = y_BGD + projection(found.transpose(1, 2)).transpose(1, 2)
            else:
                y_BGD = y_BGD + projection(found).view(-1, *self.shape)
        return self.norm(y_BGD)


def training(steps: int) -> dict[str, Any]:
    """Forward and backward through the layers and the over arch: ours, and with naive layers in their place."""
    known = schema()
    x_BFD = torch.randn(BATCH, USER + ITEM + BAGS + 1, DIM, requires_grad=True)
    label_B1 = torch.randint(2, (BATCH, 1)).float()
    found: dict[str, Any] = {}

    def step(module: nn.Module) -> None:
        module.zero_grad()
        x_BFD.grad = None
        nn.functional.binary_cross_entropy_with_logits(module(x_BFD), label_B1).backward()

    for name in ("dhen", "dhen_default"):
        model = ranker(name, known).train()
        ours = nn.Sequential(model.interaction_arch, nn.Flatten(1), model.over_arch.bottom, model.over_arch.head)
        naive = copy.deepcopy(ours)
        naive[0] = nn.Sequential(*(NaiveLayer(layer, DIM) for layer in model.interaction_arch))
        torch.testing.assert_close(naive(x_BFD), ours(x_BFD), rtol=1e-3, atol=1e-4)
        turns = {"ours": lambda _, module=ours: step(module), "naive": lambda _, module=naive: step(module)}
        taken = alternating(turns, [None], steps)
        for each in taken.values():
            each["rows_per_second"] = 1000 * BATCH / each["p50_ms"]
        found[name] = taken
    return found


def bars(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is aimed at."""
    value = found["scoring"]["rankers"]["dhen"]["p50_ms"]
    yield "dhen_500_candidates_p50_ms", {"value": value, "target": LATENCY_TARGET_MS, "ok": value <= LATENCY_TARGET_MS}
    for name in found["training"]:
        value = found["ratios"][f"{name}_naive_to_ours_training_cpu"]
        yield (
            f"{name}_training_beside_naive",
            {"value": value, "target": TRAINING_TARGET, "ok": value >= TRAINING_TARGET},
        )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests and steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--malloc", choices=("keep", "default"), default="keep", help="what glibc does with free memory"
    )
    asked = parser.parse_args()
    if asked.malloc == "keep" and not KEEP.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP, "OMP_NUM_THREADS": "1"})
    torch.set_num_threads(1)
    found: dict[str, Any] = {"malloc": asked.malloc, "load": os.getloadavg()[0]}
    found["scoring"] = scoring(60 if asked.quick else 400)
    found["training"] = training(12 if asked.quick else 40)
    rankers = found["scoring"]["rankers"]
    found["ratios"] = {
        f"{name}_to_dhen_p50": rankers[name]["p50_ms"] / rankers["dhen"]["p50_ms"] for name in rankers if name != "dhen"
    }
    for name, taken in found["training"].items():
        for unit, key in (("ms", "p50_ms"), ("cpu", "cpu_ms")):
            found["ratios"][f"{name}_naive_to_ours_training_{unit}"] = taken["naive"][key] / taken["ours"][key]
    found["bars"] = dict(bars(found))
    print(json.dumps(found) if asked.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
