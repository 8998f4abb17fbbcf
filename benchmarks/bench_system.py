"""What ranking adds to retrieval: the whole system beside its own retriever, full ranking, seeds of the ranker.

    python benchmarks/bench_system.py configs/beauty/full.toml --seeds 5

All seeds share one retriever and its lists, which are made if they are not there; every seed trains a ranker on them,
exports, and judges the test part once, as `recsys evaluate` does. Any `--section.field value` behind is an override.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from recsys.config import load
from recsys.console import quiet
from recsys.stages import Run

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given, overrides = parser.parse_known_args()
    quiet()
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        # The last of two equal overrides counts.
        run = Run(load(given.config, [*overrides, "--ranker.train.seed", str(seed)]), given.config)
        if "leave_one_out" not in run.config.prepare.splits:
            parser.error(f"{given.config}: prepare.splits has no leave_one_out, of which next items are asked")
        run.prepare()
        run.train()
        run.export()
        run.evaluate()
        found = run.results()
        rows.append({name: found[name] for name in ("retrieval", "system")})
        line = "  ".join(f"{name} {rows[-1]['system'][name]:.4f}" for name in METRICS)
        print(f"seed {seed}: {line}", file=sys.stderr)
    if given.json:
        print(json.dumps(summary(rows)))
        return
    table = Table("full ranking, test part", *METRICS)
    for name, means in summary(rows)["mean"].items():
        spread = summary(rows)["spread"][name]
        table.add_row(name, *(f"{means[metric]:.4f} ± {spread[metric]:.4f}" for metric in METRICS))
    Console().print(table)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and by what share the system's mean is above the retriever's."""
    every = {
        system: {metric: np.array([row[system][metric] for row in rows]) for metric in METRICS}
        for system in ("retrieval", "system")
    }
    mean = {system: {metric: float(of.mean()) for metric, of in named.items()} for system, named in every.items()}
    ddof = min(1, len(rows) - 1)
    spread = {system: {name: float(of.std(ddof=ddof)) for name, of in named.items()} for system, named in every.items()}
    gain = {metric: mean["system"][metric] / mean["retrieval"][metric] - 1 for metric in METRICS}
    return {"seeds": rows, "mean": mean, "spread": spread, "gain": gain}


if __name__ == "__main__":
    main()
