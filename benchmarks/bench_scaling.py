"""Does a bigger ranker keep paying, and how small may one be that is trained for longer, or taught by the big one?

    python benchmarks/bench_scaling.py --json --plot benchmarks/results/scaling.svg

A simulated world (`configs/synthetic/small.toml`, 2 million events), split by time. DHEN of three sizes is trained on
the newest sixteenth, the newest quarter and all of the training part, and judged on the same test part. The smallest
is then trained for four times as many epochs, and on what the largest expects of the training rows in place of what
happened (distillation: Hinton et al., 2015), for as many epochs and for four times as many.
Any `--section.field value` behind is an override.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from bench_ranker_quality import Bench, dense_parameters

from embeddings.batch import ranking_batch
from features.encoder import load_schema
from features.examples import BLOCKS, PART, Examples
from recsys import checkpoint
from recsys.config import RunConfig, load
from recsys.console import quiet
from recsys.roles import RankerConfig, build_task, predictions
from recsys.stages import Run

CONFIG = Path("configs/synthetic/small.toml")

WORLD = {"users": 20_000, "items": 5_000, "events": 2_000_000}

SIZES: dict[str, dict[str, Any]] = {
    "small": {"layers": 1, "features": 4, "over": {"layers": (16,)}},
    "middle": {"layers": 2, "features": 8, "over": {"layers": (64, 32)}},
    "large": {"layers": 3, "features": 24, "over": {"layers": (256, 64)}},
}

SHARES = (1 / 16, 1 / 4, 1.0)

UNUSED = 3
"""The part of rows that no reader reads."""


def newest(examples: Path, share: float, out: Path) -> Path:
    """The same split with the newest share of its training part alone; nothing that is large is copied."""
    split = Examples.open(examples)
    part = np.array(split.part)
    training = np.flatnonzero(part == 0)
    part[training[: round(len(training) * (1 - share))]] = UNUSED
    return _split_like(split, part, {}, out)


def taught(examples: Path, teacher: torch.nn.Module, out: Path) -> Path:
    """The same split with what the teacher expects in place of the labels of the training part."""
    split, labels = Examples.open(examples), {}
    for number in range(len(split.blocks)):
        requests = split.requests(number, 0)
        if requests.height:
            encoded = split.encoder.encode(requests).with_columns(requests["label"])
            with torch.inference_mode():
                logits = teacher(ranking_batch(encoded, split.schema))["logits_BT"]
            known = predictions(logits, split.schema)[:, 0].numpy()
            file = int(split.blocks[number, 0])
            labels.setdefault(file, []).append(pl.DataFrame({"row": requests["row"], "taught": known}))
    return _split_like(split, np.array(split.part), labels, out)


def _split_like(split: Examples, part: np.ndarray, labels: dict[int, list[pl.DataFrame]], out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    directory, frames = out / split.directory.name, out / "frames"
    shutil.copytree(split.directory, directory)
    frames.mkdir()
    blocks = split.blocks.copy()
    for number, source in enumerate(split.files):
        if number in labels:
            table = pl.read_parquet(source).join(pl.concat(labels[number]), on="row", how="left", maintain_order="left")
            label = pl.coalesce("taught", "label").cast(pl.Float32).alias("label")
            table.with_columns(label).drop("taught").write_parquet(frames / source.name)
        else:
            (frames / source.name).symlink_to(source)
        rows = pl.read_parquet(source, columns=["row"])["row"].to_numpy()
        for place in np.flatnonzero(blocks[:, 0] == number):
            _, first, count = blocks[place, :3]
            blocks[place, 3:] = np.bincount(part[rows[first : first + count]], minlength=UNUSED + 1)[:UNUSED]
    np.save(directory / PART, part)
    np.save(directory / BLOCKS, blocks)
    return directory


def sized(section: RankerConfig, size: str, epochs: int) -> RankerConfig:
    """DHEN of a size, trained for at most so many epochs."""
    tree = section.model_dump()
    tree["kind"], tree["model"] = "dhen", {**SIZES[size], "interactions": {"cross": {}, "deep": {}, "fm": {}}}
    tree["train"] |= {"epochs": epochs, "patience": epochs}
    return RankerConfig.model_validate(tree)


def measure(config: RunConfig, examples: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """All trainings: `grid`, NE by size and examples, and `small`, what becomes of the smallest otherwise."""
    schema = load_schema(examples)
    grid: list[dict[str, Any]] = []

    def judge(name: str, section: RankerConfig, of: Path) -> dict[str, float]:
        found = Bench(config, of, folder / "training").measure(section, 0)
        print(f"{name}: ne {found['ne']:.4f}, {found['seconds']:.0f} s", file=sys.stderr)
        return {"ne": found["ne"], "auc": found["auc"], "seconds": found["seconds"]}

    for size in SIZES:
        section = sized(config.ranker, size, epochs)
        for share in SHARES:
            of = newest(examples, share, folder / "newest")
            rows = int(Examples.open(of).of_part(0).rows.sum())
            row = {"size": size, "parameters": dense_parameters(section, schema), "examples": rows}
            grid.append(row | judge(f"{size}, {rows:,} examples", section, of))
    teacher = build_task(sized(config.ranker, "large", epochs), schema, torch.device("cpu"), {})
    checkpoint.load_model(folder / "training" / "ranker", teacher)
    soft = taught(examples, teacher.model.eval(), folder / "taught")
    longer = sized(config.ranker, "small", 4 * epochs)
    small = {
        "as it is": next(row for row in grid if row["size"] == "small" and row["examples"] == grid[-1]["examples"]),
        "four times as long": judge("small, four times as long", longer, examples),
        "taught": judge("small, taught", sized(config.ranker, "small", epochs), soft),
        "taught, four times as long": judge("small, taught, four times as long", longer, soft),
    }
    return {"grid": grid, "small": small, "large": grid[-1]["ne"]}


def plot(grid: list[dict[str, Any]], path: Path) -> None:
    """NE over parameters, a line for each number of examples; and over examples, a line a size."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, along, by in zip(axes, ("parameters", "examples"), ("examples", "size"), strict=True):
        for name in dict.fromkeys(row[by] for row in grid):
            rows = [row for row in grid if row[by] == name]
            label = f"{name:,} examples" if by == "examples" else name
            axis.plot([row[along] for row in rows], [row["ne"] for row in rows], marker="o", label=label)
        axis.set(xscale="log", yscale="log", xlabel="dense weights" if along == "parameters" else along)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter("{x:.3f}")
        axis.yaxis.set_minor_formatter("{x:.3f}")
        axis.grid(alpha=0.3, which="both")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("NE, test part")
    figure.savefig(path)


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    given, overrides = parser.parse_known_args()
    quiet()
    world = [word for name, value in WORLD.items() for word in (f"--dataset.{name}", str(value))]
    config = load(CONFIG, [*world, "--run.name", "scaling", "--prepare.splits", '["time"]', *overrides])
    run = Run(config, CONFIG)
    run.prepare()
    with tempfile.TemporaryDirectory(dir=run.directory) as folder:
        found = measure(config, run.examples("time").resolve(), Path(folder).resolve(), given.epochs)
    if given.plot:
        plot(found["grid"], given.plot)
    if given.json:
        print(json.dumps(found))
        return
    for row in [*found["grid"], *({"size": f"small, {name}"} | row for name, row in found["small"].items())]:
        print(f"{row['size']:32} {row.get('parameters', ''):>9} {row.get('examples', ''):>10} {row['ne']:.4f}")


if __name__ == "__main__":
    main()
