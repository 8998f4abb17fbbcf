"""How good the first feed of a new person is who has chosen three things they like.

    python benchmarks/bench_taste.py                 of the finished run of configs/quickstart/ml-100k.toml
    python benchmarks/bench_taste.py --config configs/synthetic/small.toml --run.directory runs
    python benchmarks/bench_taste.py --quick --json  a small simulated world is prepared and trained first

Of people of the test part of the split by time the first three items that they liked there stand for their choices, and
what they met afterwards is what is looked for. They come with no history: the recommender knows their three choices
alone, as a taste. Beside it what is popular, and item-kNN from the same three, counted on what came before. All leave
the three out; all are asked at the moment after the third.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from embeddings.histories import Histories
from features.examples import Examples
from features.online import MemoryStore
from features.taste import NOTHING, Taste
from recsys import bundle as bundles
from recsys import config as configs
from recsys.baselines import item_knn
from recsys.console import quiet
from recsys.inference import Recommender, Request
from recsys.stages import Run

CHOICES = 3
LATER = 1
"""Items that somebody must have met after their choices to be asked about."""
K = 10
SYSTEMS = ("taste", "item-knn", "popularity")
QUICK = {
    "dataset.users": "250",
    "dataset.items": "200",
    "dataset.events": "40000",
    "retriever.train.epochs": "10",
    "ranker.train.epochs": "4",
}


@dataclass(frozen=True)
class Newcomer:
    """Somebody of the test part, as if they were new."""

    choices: tuple[Any, ...]
    """The items they liked first."""
    asked: int
    """When they chose the last of them, ms."""
    later: frozenset[Any]
    """What they met afterwards."""


def newcomers(tail: pl.DataFrame, known: set[Any], most: int) -> list[Newcomer]:
    """People of the test part who liked enough and met enough.

    Args:
        tail: interactions of the test part with `positive`, by time.
        known: items of the catalogue.
        most: so many at most.
    """
    found: list[Newcomer] = []
    for person in tail.partition_by("user_id", maintain_order=True):
        rows = list(person.select("item_id", "timestamp", "positive").iter_rows())
        choices: list[Any] = []
        for place, (item, timestamp, positive) in enumerate(rows):
            if positive and item in known and item not in choices:
                choices.append(item)
            if len(choices) == CHOICES:
                later = {item for item, *_ in rows[place + 1 :]} & known - set(choices)
                if len(later) >= LATER:
                    found.append(Newcomer(tuple(choices), timestamp, frozenset(later)))
                break
    return found[:most]


def quality(lists: list[list[Any]], asked: list[Newcomer]) -> dict[str, float]:
    """Recall and ndcg of the first `K`, each person counting once; recall of as many as could be found."""
    recalls: list[float] = []
    gains: list[float] = []
    weight_K = 1 / np.log2(np.arange(2, K + 2))
    for shown, one in zip(lists, asked, strict=True):
        hits_K = np.array([item in one.later for item in shown[:K]] + [False] * (K - len(shown)))
        most = min(K, len(one.later))
        recalls.append(hits_K.sum() / most)
        gains.append(float(weight_K[hits_K].sum() / weight_K[:most].sum()))
    return {f"recall@{K}": float(np.mean(recalls)), f"ndcg@{K}": float(np.mean(gains))}


def measure(config: configs.RunConfig, most: int) -> dict[str, Any]:
    """Ask all systems for the first feeds of newcomers to a finished run."""
    torch.set_num_threads(1)
    bundle = bundles.load(config.directory / "bundle" / "time")
    examples = Examples.open(config.directory / "examples" / "time")
    feed = Recommender(bundle, MemoryStore(), config.recommend)
    feed.seed()
    tail = examples.interactions(2)
    asked = newcomers(tail, set(feed.item_index), most)
    counted = pl.concat([examples.interactions(0), examples.interactions(1)])
    knn = item_knn.fit(item_knn.Config(), counted, bundle.items)
    lists: dict[str, list[list[Any]]] = {name: [] for name in SYSTEMS}
    sources: set[str] = set()
    for number, one in enumerate(asked):
        user = -1 - number if isinstance(bundle.users["user_id"][1], int) else f"newcomer {number}"
        feed.set_taste(user, Taste(one.choices), one.asked)
        request = Request(user, K, one.asked + 1)
        response = feed.recommend(request)
        sources.add(response.source)
        lists["taste"].append([item.item_id for item in response.items])
        feed.set_taste(user, NOTHING)
        popular = feed.popular(Request(user, K + CHOICES)).items
        lists["popularity"].append([item.item_id for item in popular if item.item_id not in one.choices][:K])
        chosen = np.array([feed.item_index[item] for item in one.choices])
        past = Histories(
            chosen,
            np.array([CHOICES]),
            np.full(CHOICES, one.asked),
            np.full(CHOICES, -1, np.int16),
            np.array([one.asked]),
        )
        score_I = np.array(knn.scores(past))[0]
        score_I[[0, *chosen]] = -np.inf
        lists["item-knn"].append([feed.item_ids[item] for item in np.argsort(-score_I, kind="stable")[:K]])
    found = {name: quality(lists[name], asked) for name in SYSTEMS}
    assert sources <= {"taste"}
    ratios = {
        f"{metric}_to_{name}": found["taste"][metric] / max(found[name][metric], 1e-9)
        for name in SYSTEMS[1:]
        for metric in found["taste"]
    }
    bars = {
        f"{metric}_to_{name}": {"value": value, "target": 1.0, "ok": value >= 1.0}
        for name in SYSTEMS[1:]
        for metric in (f"ndcg@{K}",)
        for value in (ratios[f"{metric}_to_{name}"],)
    }
    return {"run": config.run.name, "people": len(asked), "systems": found, "ratios": ratios, "bars": bars}


def show(found: dict[str, Any]) -> None:
    """A table."""
    console = Console()
    table = Table(title=f"First feeds of {found['people']} people who have chosen {CHOICES} items ({found['run']})")
    table.add_column("")
    metrics = list(found["systems"]["taste"])
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, values in found["systems"].items():
        table.add_row(name, *(f"{values[metric]:.4f}" for metric in metrics))
    console.print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="prepare and train a small simulated world first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart/ml-100k.toml"))
    parser.add_argument("--people", type=int, default=1000, help="at most so many")
    asked, overrides = parser.parse_known_args()
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        if asked.quick:
            path = Path("configs/synthetic/small.toml")
            overrides = [word for name, value in QUICK.items() for word in (f"--{name}", value)] + overrides
            config = configs.load(path, ["--run.directory", scratch, *overrides])
            run = Run(config, path)
            for stage in (run.prepare, run.train, run.export):
                stage()
        else:
            config = configs.load(asked.config, overrides)
        found = measure(config, asked.people)
    print(json.dumps(found, indent=2)) if asked.json else show(found)


if __name__ == "__main__":
    main()
