"""How fast the reader feeds, beside how fast the DLRM learns from it.

    python benchmarks/bench_reader.py
    python benchmarks/bench_reader.py --quick --json

A simulated log is prepared; the reader alone goes through an epoch of its training part, encoding as it reads, with
more rows than it keeps in memory; then a DLRM is trained for an epoch in one process on the same rows.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from embeddings import sharding, tables
from features import manifest, pipeline
from features.datasets import synthetic
from features.examples import Examples
from features.schema import FeatureSpec
from recsys import data, distributed
from recsys.data import Place, RankingReader
from recsys.resume import Training
from recsys.roles import RankerConfig, RankerLoop
from recsys.train import launch

CLICKS = ("click", "like", "share")
BATCH = 2048
FEATURES = (
    FeatureSpec(name="user", kind="sparse", source="user.index", transform="index"),
    FeatureSpec(name="item", kind="sparse", source="item.index", transform="index"),
    FeatureSpec(name="history", kind="bag", source="request.history", transform="index", table="item"),
    FeatureSpec(name="categories", kind="bag", source="item.categories", transform="lookup"),
    FeatureSpec(name="country", kind="sparse", source="user.country", transform="lookup"),
    FeatureSpec(name="device", kind="sparse", source="request.device", transform="lookup"),
    FeatureSpec(name="hour", kind="sparse", source="request.timestamp", transform="calendar"),
    FeatureSpec(name="price", kind="dense", source="item.price", transform="numeric"),
    FeatureSpec(name="views", kind="dense", source="request.item_events", transform="numeric", params={"log": True}),
    FeatureSpec(name="visits", kind="dense", source="request.user_events", transform="numeric", params={"log": True}),
    FeatureSpec(name="idle", kind="dense", source="request.user_last_timestamp", transform="elapsed"),
)


def fed(examples: Path, workers: int) -> float:
    """Rows a second that the reader alone gives, over an epoch that begins with an empty memory."""
    reader = RankingReader(Examples.open(examples).of_part(0), BATCH, 0, Place(), workers)
    started = time.perf_counter()
    rows = sum(batch.share.rows for batch in reader.epoch(0) if batch.share is not None)
    return rows / (time.perf_counter() - started)


def measure(directory: Path, events: int) -> dict[str, Any]:
    """Prepare, read, train."""
    world = synthetic.Config(users=20_000, items=5_000, events=events, seed=5)
    config = pipeline.Config(
        splits=("time",), history_actions=CLICKS, label=pipeline.Label(name="click", actions=CLICKS)
    )
    pipeline.prepare(synthetic.load(world), config, FEATURES, directory / "examples", {})
    examples = directory / "examples" / "time"
    data.POOL_ROWS = min(data.POOL_ROWS, events // 3)
    rates = {f"workers_{workers}": fed(examples, workers) for workers in (0, 1, 2)}
    section = RankerConfig(train=RankerLoop(epochs=1, batch_size=BATCH, workers=0))
    out = directory / "checkpoint"
    training = Training(
        section=section,
        sharding=sharding.Config(),
        tables=tables.Config(),
        examples=examples,
        out=out,
        run=directory,
    )
    launch(training, distributed.Config())
    facts = manifest.read(out)
    assert facts is not None
    best = max(rates.values())
    trained = facts["rows_per_second"]
    return {
        "rows": int(Examples.open(examples).of_part(0).rows.sum()),
        "reader_rows_per_second": rates,
        "dlrm_rows_per_second": trained,
        "ratios": {"dlrm": best / trained},
        "bars": {"times_dlrm": {"value": best / trained, "target": 5, "ok": best / trained >= 5}},
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the events")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), 600_000 if asked.quick else 3_000_000)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:24}{value}")


if __name__ == "__main__":
    main()
