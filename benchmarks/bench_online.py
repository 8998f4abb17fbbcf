"""Fifty features of a request, from a store: how long for one item, and for a hundred.

    python benchmarks/bench_online.py
    python benchmarks/bench_online.py --quick --json

A simulated world is prepared; then requests of its people are answered from memory and from LMDB: histories, eight
counters, and the encoding of all fifty features into the arrays that a batch is made of. Beside it, in the same run:
the fifty features by the Polars expressions of the batch side, for a row of a frame that is there already.
Published elsewhere: Feast's feature server, 250 features, p99 of 45 ms in Python.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import pipeline
from features.counters import Counter
from features.datasets import synthetic
from features.examples import Examples
from features.fold import Plan
from features.instant import Instant
from features.moment import Asked, Moment, load_snapshot
from features.online import MemoryStore, StateStore
from features.schema import FeatureSpec
from serving.store import Config as StoreConfig
from serving.store import open_store

CLICKS = ("click", "like", "share")
COUNTERS = (
    Counter(name="day", by=("item",), window="24h"),
    Counter(name="week", by=("item",), window="7d"),
    Counter(name="trend", by=("item",), half_life="12h"),
    Counter(name="mine", by=("user",), half_life="2d"),
    Counter(name="taste", by=("user", "item.categories")),
    Counter(name="abroad", by=("item", "user.country")),
)
COUNTED = ("user", "item", *(counter.name for counter in COUNTERS))
IDS = """
user sparse user.index index
item sparse item.index index
country sparse user.country lookup
age_group sparse user.age_group lookup
country_hash sparse user.country hashing
device sparse request.device lookup
device_hash sparse request.device hashing
hour sparse request.timestamp calendar
price_level sparse item.price quantile
categories bag item.categories lookup
history bag request.history index
past_categories bag history.categories lookup
past_prices bag history.price quantile
past_actions bag request.history_actions lookup
past_gaps bag request.history_gaps quantile
price dense item.price numeric
item_age dense item.created_at elapsed
idle dense request.user_last_timestamp elapsed
"""


def specs() -> tuple[FeatureSpec, ...]:
    """Fifty of them."""
    fields = ("name", "kind", "source", "transform")
    found = [dict(zip(fields, line.split(), strict=True)) for line in IDS.strip().splitlines()]
    for name in COUNTED:
        source = f"request.{name}_events"
        found.append({"name": f"{name}_log", "kind": "dense", "source": source, "transform": "numeric"})
        found.append({"name": f"{name}_level", "kind": "sparse", "source": source, "transform": "quantile"})
        found.append(
            {"name": f"{name}_rate", "kind": "dense", "source": f"request.{name}_positives", "transform": "rate"}
        )
    crosses = [("country", "price_level"), ("device", "hour"), ("age_group", "price_level"), ("country", "device")]
    crosses += [("hour", "item_level"), ("age_group", "hour"), ("user_level", "item_level"), ("device", "age_group")]
    found += [
        {"name": f"{a}_{b}", "kind": "sparse", "source": f"feature.{a}", "transform": "cross", "params": {"with": [b]}}
        for a, b in crosses
    ]
    for spec in found:
        if spec["transform"] == "rate":
            spec["params"] = {"per": spec["source"].removeprefix("request.").replace("positives", "events")}
        if spec["name"].endswith("_log"):
            spec["params"] = {"log": True}
    return tuple(FeatureSpec.model_validate(spec) for spec in found)


def milliseconds(work: Callable[[Any], Any], asked: list[Any]) -> dict[str, float]:
    """Median and 99th percentile over single calls."""
    for one in asked[:20]:
        work(one)
    taken: list[float] = []
    for one in asked:
        started = time.perf_counter()
        work(one)
        taken.append((time.perf_counter() - started) * 1000)
    return {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))}


def measure(directory: Path, events: int, requests: int) -> dict[str, Any]:
    """Prepare, then ask."""
    config = pipeline.Config(
        splits=("time",),
        history_actions=CLICKS,
        label=pipeline.Label(name="click", actions=CLICKS),
        counters=COUNTERS,
        retain=100,
    )
    world = synthetic.Config(users=2_000, items=1_000, events=events, base_rate=0.2, seed=5)
    features = specs()
    pipeline.prepare(synthetic.load(world), config, features, directory / "examples", {})
    split = directory / "examples" / "time"
    opened = Examples.open(split)
    encoder = opened.encoder
    ids = {name: pl.read_parquet(split / f"{name}s.parquet")[f"{name}_id"].to_list() for name in ("user", "item")}
    plan = Plan.of(COUNTERS, encoder.requested, config.ranker_history, 0, 0)
    people = {user: index for index, user in enumerate(ids["user"]) if index}
    moment = Moment.load(split, plan, encoder.requested, ids["item"], people)
    instant = Instant(encoder, moment)
    now = world.start_ms + world.days * 86_400_000
    rng = np.random.default_rng(0)
    asked = [
        (Asked(ids["user"][user], now, {"device": "phone"}), rng.permutation(len(ids["item"]) - 1)[:100][None] + 1)
        for user in rng.integers(1, len(ids["user"]), requests)
    ]

    def from_store(store: StateStore, width: int) -> Callable[[Any], Any]:
        def answer(one: Any) -> Any:
            return instant.encode([one[0]], [store.history(one[0].user_id)], one[1][:, :width], store)

        return answer

    found: dict[str, Any] = {"features": len(features), "requests": requests}
    stores: dict[str, StateStore] = {
        "memory": MemoryStore(config.retain),
        "lmdb": open_store(StoreConfig(map_size_gb=1.0), directory, config.retain),
    }
    for name, store in stores.items():
        store.seed(*load_snapshot(split))
        for width in (1, 100):
            found[f"{name}_{width}_ms"] = milliseconds(from_store(store, width), asked)
    frame = opened.requests(len(opened.blocks) - 1, 2)
    found["expressions_1_ms"] = milliseconds(lambda row: encoder.encode(frame[row : row + 1]), list(range(100)))
    median = found["memory_1_ms"]["p50"]
    found["ratios"] = {"expressions": found["expressions_1_ms"]["p50"] / median}
    found["bars"] = {"one_request_ms": {"value": median, "target": 1.0, "ok": median < 1.0}}
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller world and fewer requests")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), 50_000 if asked.quick else 400_000, 200 if asked.quick else 2_000)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:20}{value}")


if __name__ == "__main__":
    main()
