"""What retrieval costs: an epoch of training, an evaluation of all users against all items, a query of the index.

    python benchmarks/bench_retrieval.py --data ../shared/data/beauty/Beauty.txt --json

Training is `configs/beauty/sequential.toml` with d = 64 and one block, beside RecTools' SASRec of the same size in an
environment of its own (`_peer_sasrec.py`), two threads each; and again with one thing changed at a time. The index is
measured by `bench_index.py`, on one thread. Without the file, or with --quick, users are made up.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _peer_sasrec
import numpy as np
import polars as pl
import torch

from features.encoder import load_schema
from features.manifest import read
from recsys import checkpoint, distributed
from recsys.config import RunConfig, load
from recsys.data import Place
from recsys.modules.attention import SoftmaxBlock, steps_of
from recsys.resume import Training
from recsys.roles import build_task, open_catalogue, validate_retrieval
from recsys.sequences import NextItemReader
from recsys.stages import Run
from recsys.train import launch

CONFIG = Path(__file__).parent.parent / "configs" / "beauty" / "sequential.toml"
SMALL = ["--retriever.model.dim", "64", "--retriever.model.blocks", "1", "--retriever.train.refit", "false"]
SMALL += ["--retriever.train.valid_rows", "100"]  # validations are timed apart
VARIANTS: dict[str, list[str]] = {
    "as it is": [],
    "fp32": ["--retriever.train.precision", "fp32"],
    "full softmax": ["--retriever.loss.kind", "full"],
    "256 negatives": ["--retriever.loss.negatives", "256"],
    "no worker": ["--retriever.train.workers", "0"],
}
EPOCHS = 3
"""Of each training; the time of an epoch is their mean."""

EPOCH_TARGET_S, EVALUATION_TARGET_S = 4.0, 10.0


def made_up(users: int, items: int) -> str:
    """Lines of the S3-Rec form, as long as those of Beauty and with as many items to a user."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.27, users) - 1, 200)
    chance = 1 / np.arange(10, items + 10)
    chosen = 1 + rng.choice(items, size=(users, int(lengths.max())), p=chance / chance.sum())
    return "\n".join(
        " ".join(map(str, [user + 1, *dict.fromkeys(row[:length].tolist())]))
        for user, (row, length) in enumerate(zip(chosen, lengths, strict=True))
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the users, made up; no peer; a small index")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, help="a file of the S3-Rec form")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-index", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = asked.data
        if data is None or asked.quick:
            data = Path(scratch) / "log.txt"
            data.write_text(made_up(*((2_236, 1_210) if asked.quick else (22_363, 12_101))))
        found = training(data, Path(scratch), quick=asked.quick)
        bars: dict[str, Any] = {
            "epoch_s": _bar(found["training"]["as it is"]["seconds_per_epoch"], EPOCH_TARGET_S),
            "evaluation_s": _bar(found["evaluation"]["seconds"], EVALUATION_TARGET_S),
        }
        ratios: dict[str, float] = {}
        if not (asked.quick or asked.no_peer):
            found["rectools"] = _peer_sasrec.run(_events(data, Path(scratch)), torch.get_num_threads())
            ours = found["training"]["as it is"]["seconds_per_epoch"]
            ratios["rectools_to_feedline_epoch"] = found["rectools"]["seconds_per_epoch"] / ours
    if not asked.no_index:
        command = [sys.executable, str(Path(__file__).parent / "bench_index.py"), "--json"]
        done = subprocess.run([*command, *["--quick"] * asked.quick], stdout=subprocess.PIPE, check=True, text=True)
        found["index"] = json.loads(done.stdout)
        ratios |= found["index"].pop("ratios")
        bars |= found["index"].pop("bars")
    found |= {"ratios": ratios, "bars": bars}
    print(json.dumps(found) if asked.json else json.dumps(found, indent=2))


def training(data: Path, scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Seconds of an epoch for every variant, what length-sorted batches save, and seconds of an evaluation."""
    attributes, names = scratch / "attributes.json", scratch / "names.json"
    attributes.write_text('{"1": ["1"]}')  # ids are all that is trained on
    names.write_text('{"1": "one"}')
    given = ["--dataset.path", str(data), "--dataset.attributes", str(attributes)]
    given += ["--dataset.attribute_names", str(names), *SMALL]
    given += ["--run.directory", str(scratch / "runs"), "--run.name", "bench"]
    config = load(CONFIG, given)
    run = Run(config, CONFIG)
    run.prepare()
    examples = run.examples("leave_one_out").resolve()
    found: dict[str, Any] = {}
    for name in list(VARIANTS)[: 2 if quick else None]:
        print(f"training: {name}", file=sys.stderr)
        facts = _train(load(CONFIG, [*given, *VARIANTS[name]]), examples, scratch / name)
        found[name] = {"seconds_per_epoch": facts["seconds"] / EPOCHS, "ndcg@10": facts["valid"]["ndcg@10"]}
    return {
        "threads": torch.get_num_threads(),
        "training": found,
        "block": _block(examples),
        "evaluation": _evaluation(config, examples, scratch / "as it is" / "retriever"),
    }


def _train(config: RunConfig, examples: Path, folder: Path) -> dict[str, Any]:
    section = config.retriever.model_copy(
        update={"train": config.retriever.train.model_copy(update={"epochs": EPOCHS, "patience": EPOCHS})}
    )
    out = folder / "retriever"
    launch(Training(section, config.sharding, config.tables, examples, out, folder), config.launch)
    facts = read(out)
    assert facts is not None
    return facts


def _block(examples: Path) -> dict[str, float]:
    """Milliseconds of an attention block, forward and backward, over one batch of 128: jagged, and padded to 50."""
    lengths = pl.read_parquet(examples / "sequences" / "train.parquet")["items"].list.len().to_numpy()[:6400] - 1
    # As the reader has it: sorted among 50 batches; this is the one in the middle.
    lengths_B = torch.from_numpy(np.sort(lengths)[len(lengths) // 2 :][:128].astype(np.int64))
    block = SoftmaxBlock(64, 2, 4, 0.0, None, 1, gated=False)
    found: dict[str, float] = {}
    for name, each_B in (("jagged", lengths_B), ("padded to 50", torch.full_like(lengths_B, 50))):
        steps = steps_of(each_B, None, None, None, 50)
        x_ND = torch.randn(int(each_B.sum()), 64, requires_grad=True)
        taken: list[float] = []
        for _ in range(20):
            started = time.perf_counter()
            block(x_ND, steps).sum().backward()
            taken.append(1000 * (time.perf_counter() - started))
        found[name] = float(np.median(taken))
    return found


def _evaluation(config: RunConfig, examples: Path, trained: Path) -> dict[str, float]:
    """Every user's test item ranked among all items."""
    task = build_task(config.retriever, load_schema(examples), torch.device("cpu"), {})
    checkpoint.load_model(trained, task)
    catalogue = open_catalogue(config.retriever, examples)
    found: dict[str, float] = {}

    def judge() -> None:
        started = time.perf_counter()
        questions = NextItemReader(examples / "sequences" / "test.parquet", catalogue, 512, 10**9, Place())
        found.update(validate_retrieval(task.eval(), questions, torch.device("cpu")))
        found.update(seconds=time.perf_counter() - started, users=questions.rows, items=catalogue.items)

    distributed.launch(judge, distributed.Config())
    return found


def _events(data: Path, scratch: Path) -> Path:
    """The training events as the peer takes them."""
    table = pl.DataFrame({"line": data.read_text().splitlines()}).with_columns(pl.col("line").str.split(" "))
    events = (
        table.with_columns(user_id=pl.col("line").list.first(), item_id=pl.col("line").list.slice(1))
        .with_columns(item_id=pl.col("item_id").list.head(pl.col("item_id").list.len() - 2))
        .with_columns(timestamp=pl.int_ranges(pl.col("item_id").list.len()))
        .select("user_id", "item_id", "timestamp")
        .explode("item_id", "timestamp")
        .drop_nulls()
        .cast(pl.Int64)
    )
    path = scratch / "events.parquet"
    events.write_parquet(path)
    return path


def _bar(value: float, target: float) -> dict[str, Any]:
    return {"value": value, "target": target, "ok": value <= target}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
