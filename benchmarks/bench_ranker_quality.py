"""Is an ensemble of unlike interactions a better ranker than each of them alone, at the same number of parameters?

    python benchmarks/bench_ranker_quality.py configs/kuairand/dhen.toml --seeds 5

Every model is trained on the training part of the split by time for as many epochs as validation picks, with each seed,
and judged once on the test part. The width of each model's over arch is set such that its dense weights are as many as
those of the config's DHEN, within a tenth; tables are the same. Any `--section.field value` behind is an override.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from embeddings.quantized import table_names
from features import registry
from features.encoder import load_schema
from features.examples import Examples
from features.schema import Schema
from recsys import checkpoint, distributed
from recsys.config import RunConfig, load
from recsys.console import quiet
from recsys.data import Place, RankingReader
from recsys.resume import Training
from recsys.roles import RankerConfig, build_task, validate_ranking
from recsys.stages import Run
from recsys.train import launch

WHOLE, SHARED = "DHEN", "DHEN, a shared bottom"
CLAIM = 0.0027
"""Relative NE by which DHEN claims to be better than its best single module."""


def variants(section: RankerConfig) -> dict[str, RankerConfig]:
    """The config's DHEN; each of its interactions alone; its layers without experts; models of their own."""
    model = section.model
    found = {WHOLE: section}
    for name, settings in model["interactions"].items():
        found[f"{name} alone"] = _with(section, model={"interactions": {name: settings}})
    if model.get("over", {}).get("experts"):
        found[SHARED] = _with(section, model={"over": {**model["over"], "experts": 0}})
    if "attention" in model:
        found["DHEN, no target attention"] = _with(section, model={"attention": None})
    for kind in ("dlrm", "dcnv2", "wukong"):
        known = registry.load("recsys.models", kind, "kind").Config.model_fields
        kept = {name: value for name, value in model.items() if name in known}
        found[kind] = RankerConfig.model_validate(
            {**section.model_dump(), "kind": kind, "model": kept if kind != "wukong" else {**kept, "layers": 2}}
        )
    return found


def _with(section: RankerConfig, **parts: dict[str, Any]) -> RankerConfig:
    tree = section.model_dump()
    for name, value in parts.items():
        tree[name] = {**tree[name], **value}
    return RankerConfig.model_validate(tree)


def dense_parameters(section: RankerConfig, schema: Schema) -> int:
    """Weights that are in no table."""
    model: nn.Module = build_task(section, schema, torch.device("meta"), {}).model
    tables = set(table_names(model))
    return sum(value.numel() for name, value in model.named_parameters() if name not in tables)


def of_size(section: RankerConfig, schema: Schema, wanted: int) -> RankerConfig:
    """The same with the first layer of its over arch as wide as makes it nearest to the wanted size."""
    over = {"layers": (128, 64), **section.model.get("over", {})}

    def wide(width: int) -> RankerConfig:
        return _with(section, model={"over": {**over, "layers": (width, *over["layers"][1:])}})

    low, high = 4, 4096
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dense_parameters(wide(middle), schema) <= wanted else (low, middle)
    return min((wide(low), wide(high)), key=lambda made: abs(dense_parameters(made, schema) - wanted))


class Bench:
    """Trainings on one split, each in a directory that is thrown away."""

    def __init__(self, config: RunConfig, examples: Path, folder: Path) -> None:
        self.config, self.examples, self.folder = config, examples, folder
        self.schema = load_schema(examples)
        shutil.rmtree(folder, ignore_errors=True)

    def measure(self, section: RankerConfig, seed: int) -> dict[str, float]:
        """Test metrics, by name as `validate_ranking` gives them, and `seconds`."""
        tree = section.model_dump()
        tree["train"]["seed"] = seed
        mine = RankerConfig.model_validate(tree)
        out = self.folder / "ranker"
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        launch(
            Training(
                section=mine,
                sharding=self.config.sharding,
                tables=self.config.tables,
                examples=self.examples,
                out=out,
                run=self.folder,
            ),
            self.config.launch,
        )
        seconds = time.perf_counter() - started
        task = build_task(mine, self.schema, torch.device("cpu"), {})
        checkpoint.load_model(out, task)
        found: dict[str, float] = {"seconds": seconds}

        def judge() -> None:
            reader = RankingReader(Examples.open(self.examples).of_part(2), 8192, 0, Place())
            found.update(validate_ranking(task.eval(), reader, torch.device("cpu")))

        distributed.launch(judge, distributed.Config())
        return found


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    parser.add_argument("--json", action="store_true")
    given, overrides = parser.parse_known_args()
    quiet()
    if given.quick:
        given.seeds, overrides = 1, [*overrides, "--ranker.train.epochs", "1"]
    config = load(given.config, overrides)
    run = Run(config, given.config)
    run.prepare()
    bench = Bench(config, run.examples("time").resolve(), run.directory.resolve() / "ranker_quality")
    wanted = dense_parameters(config.ranker, bench.schema)
    found: dict[str, Any] = {}
    for name, section in variants(config.ranker).items():
        if given.only and name not in given.only:
            continue
        sized = section if name == WHOLE else of_size(section, bench.schema, wanted)
        rows = [bench.measure(sized, seed) for seed in range(given.seeds)]
        means = {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}
        spread = {
            metric: float(np.std([row[metric] for row in rows], ddof=min(1, len(rows) - 1))) for metric in rows[0]
        }
        found[name] = {"parameters": dense_parameters(sized, bench.schema), "mean": means, "spread": spread}
        print(f"{name}: ne {means['ne']:.4f} ± {spread['ne']:.4f}", file=sys.stderr)
    result = {"models": found, **judged(found)}
    if given.json:
        print(json.dumps(result))
    else:
        show(result, bench.schema)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """DHEN beside its best single module, and experts beside a shared bottom."""
    bars: dict[str, Any] = {}
    alone = [one["mean"]["ne"] for name, one in found.items() if name.endswith(" alone")]
    if WHOLE in found and alone:
        value = 1 - found[WHOLE]["mean"]["ne"] / min(alone)
        bars["relative_ne_better_than_the_best_module"] = {"value": value, "target": CLAIM, "ok": value >= CLAIM}
    if WHOLE in found and SHARED in found:
        value = 1 - found[WHOLE]["mean"]["ne"] / found[SHARED]["mean"]["ne"]
        bars["relative_ne_better_than_a_shared_bottom"] = {"value": value, "target": 0.0, "ok": value >= 0}
    return {"ratios": {name: bar["value"] for name, bar in bars.items()}, "bars": bars}


def show(result: dict[str, Any], schema: Schema) -> None:
    """A row a model."""
    binary = [name for name, yes in zip(schema.outcomes, schema.binary, strict=True) if yes]
    columns = {
        f"{name} {metric}": metric if name == schema.label else f"{name}/{metric}"
        for name in binary
        for metric in ("ne", "auc")
    }
    columns |= {f"{task.name} r2": f"{task.name}/r2" for task in schema.tasks if not task.binary}
    table = Table(title="Test part, mean ± spread over seeds")
    for name in ("model", "dense weights", *columns, "seconds"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, one in result["models"].items():
        values = [f"{one['mean'][key]:.4f} ± {one['spread'][key]:.4f}" for key in columns.values()]
        table.add_row(name, f"{one['parameters']:,}", *values, f"{one['mean']['seconds']:.0f}")
    console = Console(width=200)
    console.print(table)
    for name, bar in result["bars"].items():
        console.print(f"{name}: {bar['value']:+.4f} (target {bar['target']})")


if __name__ == "__main__":
    main()
