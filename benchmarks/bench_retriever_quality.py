"""Next-item quality of a retriever: seeds, and what each of its parts gives.

    python benchmarks/bench_retriever_quality.py configs/beauty/hierarchical.toml --seeds 3
    python benchmarks/bench_retriever_quality.py configs/beauty/hierarchical.toml --ablate --epochs 12

Seeds: validation picks the epochs once, with the first seed; every seed is then trained on all that is known before the
test items, for so many epochs, and tested once. Ablations are judged on the validation part alone.

Any `--section.field value` behind is an override of the config, as everywhere.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.encoder import load_schema
from features.manifest import read
from recsys import checkpoint, distributed
from recsys.config import RunConfig, load
from recsys.data import Place
from recsys.resume import Training
from recsys.roles import RetrieverConfig, build_task, open_catalogue, validate_retrieval
from recsys.sequences import NextItemReader
from recsys.stages import Run
from recsys.train import launch

METRICS = ("recall@5", "recall@10", "ndcg@10")

NO_GRAPH: dict[str, Any] = {"items": {"graph": None, "neighbours": 0}}


def ablations(section: RetrieverConfig) -> dict[str, dict[str, Any]]:
    """What is changed in each row; rows that would change nothing are not there."""
    dim, graph = section.model.get("dim", 64), section.items.graph
    by_people = None if graph is None else graph.model_copy(update={"content": 0.0}).model_dump()
    found: dict[str, dict[str, Any]] = {
        "without the graph": NO_GRAPH,
        "without content": {"items": {"content": (), "graph": by_people}},
        "no edges by content": {"items": {"graph": by_people}},
        "ids alone": {"items": {"content": (), "graph": None, "neighbours": 0}},
        "without the hierarchy": {"kind": "sequential"},
        "twice the width": {"model": {"dim": 2 * dim}},
        "two blocks": {"model": {"blocks": 2}},
        "softmax block": {"model": {"block": "softmax"}},
        "gated block": {"model": {"block": "gated"}},
        "HSTU block": {"model": {"block": "hstu"}},
        "cosine, temperature 0.07": {"model": {"temperature": 0.07}},
        "full softmax": {"loss": {"kind": "full", "in_batch": False}},
        "512 uniform negatives": {"loss": {"kind": "sampled", "negatives": 512, "in_batch": False}},
        "512 uniform and in-batch negatives": {"loss": {"kind": "sampled", "negatives": 512, "in_batch": True}},
        "cold items, 10 %": {"items": {"cold": 0.1}},
    }
    if graph is not None:
        found["with neighbours' embeddings"] = {"items": {"neighbours": 16, "drawn": 4}}
    return {"whole": {}} | {name: parts for name, parts in found.items() if changed(section, parts) != section}


def changed(section: RetrieverConfig, parts: dict[str, Any]) -> RetrieverConfig:
    """The section with some of its fields replaced, those of sections below too."""
    tree = section.model_dump()
    for name, value in parts.items():
        tree[name] = {**tree[name], **value} if isinstance(value, dict) else value
    if tree["kind"] == "sequential":
        for name in ("codes", "path_width", "path_loss", "commitment", "follow_every"):
            tree["model"].pop(name, None)
    return RetrieverConfig.model_validate(tree)


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of each ablation, and at most of the choice; default: the config's")
    parser.add_argument("--refit", type=int, help="epochs of every seed, in place of a choice by validation")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of ablations")
    parser.add_argument("--json", action="store_true")
    given, overrides = parser.parse_known_args()
    config = load(given.config, overrides)
    run = Run(config, given.config)
    run.prepare()
    section = config.retriever
    if given.epochs is not None:
        section = changed(section, {"train": {"epochs": given.epochs}})
    bench = Bench(config, run.examples("leave_one_out").resolve(), run.directory.resolve() / "quality")
    found = bench.ablations(section, given.only) if given.ablate else bench.seeds(section, given.seeds, given.refit)
    if given.json:
        print(json.dumps(found))


class Bench:
    """Trainings on one split, each in a directory that is thrown away."""

    def __init__(self, config: RunConfig, examples: Path, folder: Path) -> None:
        self.config, self.examples, self.folder = config, examples, folder
        shutil.rmtree(folder, ignore_errors=True)

    def seeds(self, section: RetrieverConfig, count: int, epochs: int | None) -> dict[str, Any]:
        """Test metrics of some seeds, their mean and spread; `epochs` None: validation chooses how many."""
        chosen: dict[str, Any] = {"valid": None, "wall": 0.0}
        if epochs is None:
            chosen = self.train(section, "choice")
            epochs = chosen["best_epoch"] + 1
            print(
                f"validation picks {epochs} epochs: {_line(chosen['valid'])}, {chosen['wall']:.0f} s", file=sys.stderr
            )
        assert epochs is not None
        rows: list[dict[str, float]] = []
        for seed in range(count):
            mine = changed(section, {"train": {"seed": seed}})
            facts = self.train(mine, f"seed-{seed}", refit=epochs)
            rows.append(self.test(mine, f"seed-{seed}") | {"seconds": facts["wall"]})
            print(f"seed {seed}: {_line(rows[-1])}, {facts['wall']:.0f} s", file=sys.stderr)
        mean = {name: float(np.mean([row[name] for row in rows])) for name in METRICS}
        spread = {name: float(np.std([row[name] for row in rows], ddof=min(1, count - 1))) for name in METRICS}
        print(f"mean: {_line(mean)}; spread: {_line(spread)}", file=sys.stderr)
        return {
            "epochs": epochs,
            "valid": chosen["valid"],
            "seconds": {"choice": chosen["wall"], "refit": float(np.mean([row["seconds"] for row in rows]))},
            "test": rows,
            "mean": mean,
            "spread": spread,
        }

    def ablations(self, section: RetrieverConfig, only: list[str] | None) -> dict[str, Any]:
        """Validation metrics with one part changed at a time."""
        found: dict[str, Any] = {}
        for name, parts in ablations(section).items():
            if only and name not in only:
                continue
            facts = self.train(changed(section, parts), "ablation")
            found[name] = facts["valid"] | {"epochs": facts["best_epoch"] + 1, "seconds": facts["seconds"]}
            print(
                f"| {name} | {_line(facts['valid'], ' | ')} | {facts['best_epoch'] + 1} | {facts['seconds']:.0f} |",
                file=sys.stderr,
            )
        return found

    def train(self, section: RetrieverConfig, name: str, refit: int | None = None) -> dict[str, Any]:
        """The manifest of a training, and `wall`, its seconds with everything."""
        out = self.folder / name / "retriever"
        shutil.rmtree(out, ignore_errors=True)
        training = Training(
            section=section,
            sharding=self.config.sharding,
            tables=self.config.tables,
            examples=self.examples,
            out=out,
            run=self.folder,
        )
        started = time.perf_counter()
        launch(replace(training, refit=refit), self.config.launch)
        facts = read(out)
        assert facts is not None
        return facts | {"wall": time.perf_counter() - started}

    def test(self, section: RetrieverConfig, name: str) -> dict[str, float]:
        """Full ranking of the test items by a refitted model."""
        task = build_task(section, load_schema(self.examples), torch.device("cpu"), {})
        checkpoint.load_model(self.folder / name / "retriever", task)
        catalogue = open_catalogue(section, self.examples, "known")
        path = self.examples / "sequences" / "test.parquet"
        found: dict[str, float] = {}

        def judge() -> None:
            questions = NextItemReader(path, catalogue, 512, 10**9, Place())
            found.update(validate_retrieval(task.eval(), questions, torch.device("cpu")))

        distributed.launch(judge, distributed.Config())
        return found


def _line(metrics: dict[str, float], between: str = "  ") -> str:
    return between.join(f"{metrics[name]:.4f}" for name in METRICS)


if __name__ == "__main__":
    main()
