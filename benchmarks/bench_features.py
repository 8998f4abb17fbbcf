"""Features of a simulated log: Feedline against pandas, and against Polars merely rewriting the same files.

    python benchmarks/bench_features.py                # 20 million events; the peer on two million, scaled by rows
    python benchmarks/bench_features.py --events 100000000 --no-peer
    python benchmarks/bench_features.py --quick --json

Every measurement is a process of its own: its wall time and its largest resident memory are what the operating system
says. Feedline's time is all of `prepare` (validation, codes, as-of features, split, fit, sequences, snapshot) and then
every training, validation and test example encoded once. The peer reads the same Parquet, computes the same features
with what pandas offers for each (grouped running sums, rolling windows, merge_asof, factorize, qcut) and writes them to
Parquet; what both keep as it is, is compared value by value.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

HISTORY = 20
CLICKS = ("click", "like", "share")
FEATURES = """
user sparse user.index index
item sparse item.index index
history bag request.history index
past_categories bag history.categories lookup
categories bag item.categories lookup
country sparse user.country lookup
age_group sparse user.age_group lookup
device sparse request.device lookup
hour sparse request.timestamp calendar
weekday sparse request.timestamp calendar
price dense item.price numeric
price_level sparse item.price quantile
item_age dense item.created_at elapsed
idle dense request.user_last_timestamp elapsed
user_events dense request.user_events numeric
user_rate dense request.user_positives rate
item_events dense request.item_events numeric
item_rate dense request.item_positives rate
item_day dense request.day_events numeric
taste dense request.taste_events numeric
abroad dense request.abroad_events numeric
"""
MORE: dict[str, dict[str, Any]] = {
    "history": {"table": "item"},
    "past_categories": {"table": "categories"},
    "weekday": {"params": {"part": "weekday"}},
    "user_rate": {"params": {"per": "user_events"}},
    "item_rate": {"params": {"per": "item_events"}},
    "user_events": {"params": {"log": True}},
    "item_events": {"params": {"log": True}},
    "item_day": {"params": {"log": True}},
    "taste": {"params": {"log": True}},
    "abroad": {"params": {"log": True}},
}


def simulate(directory: Path, events: int) -> None:
    """A log in files of two million events, with its tables of items and users."""
    from features.datasets import synthetic

    users, items = max(events // 50, 1000), max(min(events // 100, 200_000), 500)
    world = synthetic.World(synthetic.Config(users=users, items=items, events=events, seed=7))
    (directory / "log").mkdir(parents=True)
    for number, chunk in enumerate(world.chunks(2_000_000)):
        chunk.write_parquet(directory / "log" / f"{number:05}.parquet")
    world.items().write_parquet(directory / "items.parquet")
    world.users().write_parquet(directory / "users.parquet")


def feedline(directory: Path) -> dict[str, Any]:
    """Prepare, then encode every example."""
    from features import pipeline
    from features.counters import Counter
    from features.datasets import files
    from features.examples import Examples
    from features.schema import FeatureSpec

    specs = tuple(
        FeatureSpec.model_validate(
            dict(zip(("name", "kind", "source", "transform"), line.split(), strict=True))
            | MORE.get(line.split()[0], {})
        )
        for line in FEATURES.strip().splitlines()
    )
    config = pipeline.Config(
        splits=("time",),
        history_actions=CLICKS,
        label=pipeline.Label(name="click", actions=CLICKS),
        ranker_history=HISTORY,
        retain=100,
        counters=(
            Counter(name="day", by=("item",), window="24h", resolution="1h"),
            Counter(name="taste", by=("user", "item.categories")),
            Counter(name="abroad", by=("item", "user.country")),
        ),
    )
    log = files.load(
        files.Config(
            events=str(directory / "log" / "*.parquet"),
            items=directory / "items.parquet",
            users=directory / "users.parquet",
            context=("device",),
            partitioned=True,
        )
    )
    started = time.perf_counter()
    pipeline.prepare(log, config, specs, directory / "examples", {}, report=lambda line: print(line, file=sys.stderr))
    prepared = time.perf_counter()
    examples = Examples.open(directory / "examples" / "time")
    rows = sum(block.height for part in range(3) for block in examples.of_part(part))
    done = time.perf_counter()
    return {"seconds": done - started, "prepare_seconds": prepared - started, "rows": rows, "features": len(specs)}


def rewrite(directory: Path) -> dict[str, Any]:
    """Read the same files and write them again, nothing else."""
    started = time.perf_counter()
    pl.scan_parquet(directory / "log").sink_parquet(directory / "copy.parquet")
    seconds = time.perf_counter() - started
    (directory / "copy.parquet").unlink()
    return {"seconds": seconds}


def peer(directory: Path, rows: int) -> dict[str, Any]:
    """The same features in pandas, of the first `rows` events; leaves those that are compared in a file."""
    import pandas as pd

    pl.scan_parquet(directory / "log").head(rows).sink_parquet(directory / "slice.parquet")
    started = time.perf_counter()
    events = pd.read_parquet(directory / "slice.parquet")
    items, users = pd.read_parquet(directory / "items.parquet"), pd.read_parquet(directory / "users.parquet")
    events["row"] = np.arange(len(events))
    events["clicked"] = events["action"].isin(CLICKS).astype("int64")
    events = events.merge(users, on="user_id", how="left").merge(
        items[["item_id", "price", "created_at", "categories"]], on="item_id", how="left"
    )
    out = pd.DataFrame(index=events.index)

    for column in ("user_id", "item_id", "country", "age_group", "device"):
        out[column] = pd.factorize(events[column])[0] + 1
    when = pd.to_datetime(events["timestamp"], unit="ms")
    out["hour"], out["weekday"] = when.dt.hour + 1, when.dt.weekday + 1

    def before(by: list[str]) -> Any:
        return events.groupby(by, sort=False)["clicked"].cumsum() - events["clicked"]

    def standard(values: Any) -> Any:
        return ((values - values.mean()) / values.std()).fillna(0).astype("float32")

    counts = {"user": before(["user_id"]), "item": before(["item_id"]), "abroad": before(["item_id", "country"])}
    for name in ("user", "item"):
        # Every interaction is a positive here, as in the run beside it.
        rate = (counts[name] + 10.0) / (counts[name] + 10.0)
        out[f"{name}_rate"] = rate.astype("float32")
    for name, count in counts.items():
        out[f"{name}_events"] = standard(np.log1p(count))

    # A window that slides exactly; by the hour it would take another join.
    timed = events.assign(when=when).set_index("when")
    day = timed.groupby("item_id", sort=False)["clicked"].rolling("24h", closed="left").sum()
    order = events.sort_values("item_id", kind="stable", key=lambda ids: pd.factorize(ids)[0]).index
    out["item_day"] = standard(np.log1p(pd.Series(day.to_numpy(), index=order).fillna(0)))

    exploded = events[["row", "user_id", "categories", "clicked"]].explode("categories")
    own = exploded.groupby(["user_id", "categories"], sort=False)["clicked"].cumsum() - exploded["clicked"]
    taste = own.groupby(exploded["row"], sort=False).sum()
    out["taste"] = standard(np.log1p(taste))
    vocabulary = {name: number for number, name in enumerate(exploded["categories"].dropna().unique(), start=1)}
    names = items["categories"].map(lambda values: [vocabulary.get(value, 0) for value in values])
    of_item = dict(zip(items["item_id"], names, strict=True))
    out["categories"] = events["item_id"].map(of_item)

    out["price"] = standard(events["price"])
    out["price_level"] = pd.qcut(events["price"], 10, labels=False, duplicates="drop") + 1
    out["item_age"] = standard(np.log1p((events["timestamp"] - events["created_at"]).clip(lower=0) / 3_600_000))

    # The last interactions of each person as of each interaction, then as of each event.
    clicks = events.loc[events["clicked"] == 1, ["row", "user_id", "timestamp"]].copy()
    clicks["item"] = out["item_id"][clicks.index]
    grouped = clicks.groupby("user_id", sort=False)["item"]
    steps = [grouped.shift(step) for step in range(HISTORY)]
    clicks["history"] = [[int(item) for item in reversed(row) if item == item] for row in np.stack(steps, axis=1)]
    last = pd.merge_asof(
        events[["row", "user_id"]],
        clicks.rename(columns={"timestamp": "last"}),
        on="row",
        by="user_id",
        allow_exact_matches=False,
    )
    out["history"] = last["history"]
    out["idle"] = standard(np.log1p((events["timestamp"] - last["last"]).clip(lower=0) / 3_600_000))
    code_to_categories = dict(zip(out["item_id"], out["categories"], strict=True))
    out["past_categories"] = out["history"].map(
        lambda past: [kind for item in past for kind in code_to_categories[item]] if isinstance(past, list) else []
    )
    out.to_parquet(directory / "peer_features.parquet")
    seconds = time.perf_counter() - started
    kept = pd.DataFrame({f"{name}_events": count for name, count in counts.items()})
    kept["taste_events"], kept["user_last_timestamp"] = taste, last["last"]
    kept["length"] = out["history"].map(lambda past: len(past) if isinstance(past, list) else 0)
    pl.from_pandas(kept).write_parquet(directory / "peer.parquet")
    return {"seconds": seconds, "rows": len(events), "features": out.shape[1]}


def differences(directory: Path) -> int:
    """Values in which the two differ, among those that both keep as they are."""
    theirs = pl.read_parquet(directory / "peer.parquet")
    frames = sorted((directory / "examples" / "frames").glob("*.parquet"))
    mine = pl.scan_parquet(frames).head(theirs.height).with_columns(length=pl.col("history").list.len()).collect()
    return sum(
        int((mine[name].cast(pl.Float64).ne_missing(theirs[name].cast(pl.Float64))).sum()) for name in theirs.columns
    )


def in_process(work: str, directory: Path, *words: str) -> dict[str, Any]:
    """Run one of the measurements in a process of its own; what it returns, with its peak memory."""
    command = [sys.executable, __file__, "--work", work, "--directory", str(directory), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(events: int, peer_rows: int, directory: Path, *, with_peer: bool) -> dict[str, Any]:
    """All of it."""
    in_process("simulate", directory, "--events", str(events))
    copied = in_process("rewrite", directory)
    mine = in_process("feedline", directory)
    rate = mine["rows"] / mine["seconds"]
    found: dict[str, Any] = {
        "rows": mine["rows"],
        "features": mine["features"],
        "rows_per_second": rate,
        "seconds": mine["seconds"],
        "prepare_seconds": mine["prepare_seconds"],
        "peak_memory_gb": mine["peak_memory_gb"],
        "rewrite_rows_per_second": mine["rows"] / copied["seconds"],
        "ratios": {"share_of_rewriting": rate / (mine["rows"] / copied["seconds"])},
        "bars": {"peak_memory_gb": {"value": mine["peak_memory_gb"], "target": 6, "ok": mine["peak_memory_gb"] < 6}},
    }
    if with_peer:
        theirs = in_process("peer", directory, "--events", str(peer_rows))
        speedup = rate / (theirs["rows"] / theirs["seconds"])
        wrong = differences(directory)
        found |= {
            "pandas_rows_per_second": theirs["rows"] / theirs["seconds"],
            "pandas_rows": theirs["rows"],
            "pandas_peak_memory_gb": theirs["peak_memory_gb"],
            "values_that_differ": wrong,
        }
        found["ratios"]["pandas"] = speedup
        found["bars"]["times_pandas"] = {"value": speedup, "target": 10, "ok": speedup >= 10}
        found["bars"]["values_that_differ"] = {"value": wrong, "target": 0, "ok": wrong == 0}
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--peer-rows", type=int, default=2_000_000)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a million events; under a minute")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", choices=("simulate", "rewrite", "feedline", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help="where to simulate; default: a directory that is removed again")
    asked = parser.parse_args()
    if asked.work:
        work = {
            "simulate": lambda: simulate(asked.directory, asked.events),
            "rewrite": lambda: rewrite(asked.directory),
            "feedline": lambda: feedline(asked.directory),
            "peer": lambda: peer(asked.directory, asked.events),
        }[asked.work]
        result = work() or {}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(result | {"peak_memory_gb": round(peak, 2)}))
        return
    events = 1_000_000 if asked.quick else asked.events
    peer_rows = 200_000 if asked.quick else asked.peer_rows
    with tempfile.TemporaryDirectory(dir=asked.directory) as scratch:
        found = measure(events, peer_rows, Path(scratch) / "bench", with_peer=not asked.no_peer)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:26}{value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
