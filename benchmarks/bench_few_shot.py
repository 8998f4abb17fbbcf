"""How well people and items are served that training has not met, by how many of their events are known.

    python benchmarks/bench_few_shot.py                     two retrievers are trained, as long as the config says
    python benchmarks/bench_few_shot.py --quick --json      a tenth of the users, three epochs
    python benchmarks/bench_few_shot.py --config configs/beauty/two_tower.toml --retriever.items.cold 0.2

A twentieth of the items and a tenth of the people of a log in the S3-Rec form are taken out of it; a retriever is
trained on the rest. The catalogue knows the items and their attributes. Then it is asked, over the whole catalogue,
what was seen left out, and not trained any further:
- people: for the last item of each new person, given the last 1, 2, 3, … events before it;
- items: for new items where they stand in histories, after the graph was told 0, 1, 2, … of their other events.

No answer is known to training in any other way: the items are asked for in histories of new people, and at the ends of
those of others, which leave-one-out holds back. Where a person or an item has fewer events, all are given. Beside it:
the same model knowing ids alone, and the counted baselines, which know the same events.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from embeddings import catalogue
from embeddings.catalogue import Catalogue
from embeddings.histories import Histories
from features import pipeline, registry
from features.datasets import sequences
from features.encoder import load_schema
from features.errors import InputError
from features.examples import Examples
from features.slices import gather_slices
from features.splits import windows
from recsys import checkpoint
from recsys import config as configs
from recsys.config_file import check_dataset
from recsys.console import quiet
from recsys.metrics import rank_of
from recsys.resume import Training
from recsys.roles import RetrieverConfig, build_task, open_catalogue
from recsys.scorer import LearnedScorer, Scorer
from recsys.train import launch

NEW_USERS, NEW_ITEMS = 0.1, 0.05
OF_USERS, OF_ITEMS = (1, 2, 3, 5, 10), (0, 1, 2, 4, 8)
"""How many events are given."""
CUTS = (10, 100)
MODEL, IDS = "model", "ids alone"


def hold_out(events: pl.DataFrame, described: pl.Series, seed: int) -> pl.DataFrame:
    """Events by person and in order, and what becomes of each.

    New columns: `new_user, new_item`; `before`, how many of the person's events with items that are not new come before
    it; `taught`, whether training may know it, were its item not new; `asked`, whether the item is new and asked for;
    `turn`, when an event of a new item is given: 1 for the first that is given of the item, null for never.

    Args:
        events: `user_id, item_id, timestamp`.
        described: items that may be taken out.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)

    def drawn(ids: pl.Series, share: float) -> pl.Series:
        ids = ids.unique().sort()
        return ids[rng.choice(len(ids), round(share * len(ids)), replace=False)].implode()

    events = events.sort("user_id", "timestamp").with_columns(
        new_user=pl.col("user_id").is_in(drawn(events["user_id"], NEW_USERS)),
        new_item=pl.col("item_id").is_in(
            drawn(events["item_id"].filter(events["item_id"].is_in(described.implode())), NEW_ITEMS)
        ),
        draw=pl.Series(rng.random(events.height)),
    )
    kept = ~pl.col("new_item")
    events = events.with_columns(
        before=(kept.cum_sum() - kept.cast(pl.Int64)).over("user_id"),
        after=(kept.sum() - kept.cum_sum()).over("user_id"),
        kept=kept.sum().over("user_id"),
    )
    asked = pl.col("new_item") & (pl.col("before") > 0) & (pl.col("new_user") | (pl.col("after") == 0))
    # Leave-one-out holds back the last two of three or more.
    taught = ~pl.col("new_user") & ((pl.col("after") >= 2) | (pl.col("kept") < 3)) & ~asked
    turn = pl.when(taught & pl.col("new_item")).then("draw").rank("ordinal").over("item_id")
    return events.with_columns(asked=asked, taught=taught, turn=turn).drop("draw", "kept")


def prepare(config: configs.RunConfig, dataset: sequences.Config, events: pl.DataFrame, directory: Path) -> Path:
    """Examples of what training may know, and of what validation asks it."""
    path = directory / "log.txt"
    lines = events.filter(~pl.col("new_user") & ~pl.col("new_item")).group_by("user_id", maintain_order=True)
    path.write_text(
        "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in lines.agg("item_id").iter_rows())
    )
    log = sequences.load(dataset.model_copy(update={"path": path}))
    section = config.prepare.model_copy(update={"splits": ("leave_one_out",)})
    pipeline.prepare(log, section, config.features, directory / "examples", {})
    return directory / "examples" / "leave_one_out"


def train(config: configs.RunConfig, section: RetrieverConfig, examples: Path, out: Path) -> nn.Module:
    """The retriever, as validation has chosen it."""
    training = Training(
        section=section, sharding=config.sharding, tables=config.tables, examples=examples, out=out, run=out.parent
    )
    launch(training, config.launch)
    task = build_task(section, load_schema(examples), torch.device("cpu"), config.tables.managed)
    checkpoint.load_model(out, task)
    return task.eval().get_submodule("model")


@dataclass(frozen=True)
class Systems:
    """Retrievers that are not trained any more, and baselines, for any events that are known."""

    config: configs.RunConfig
    path: Path
    """The config's file."""
    examples: Examples
    models: dict[str, tuple[RetrieverConfig, nn.Module]]

    def given(self, known: pl.DataFrame) -> dict[str, Scorer]:
        """All of them, knowing these events (`user_index, item_index, timestamp`), by person and in order."""
        longest = self.config.prepare.max_history
        columns = known.with_columns(user_code=pl.col("user_index"), action_code=pl.lit(-1, dtype=pl.Int16))
        cut = windows(columns, longest)["items"]
        found: dict[str, Scorer] = {}
        for name, (section, model) in self.models.items():
            now = Catalogue.of(self.examples.encoder, cut, section.items)
            before = open_catalogue(section, self.examples.directory, "train")
            found[name] = LearnedScorer(model, replace(now, trained=before.trained), longest)
        items = pl.read_parquet(self.examples.directory / "items.parquet")
        for name, section in configs.baseline_configs(self.config, self.path).items():
            found[name] = registry.load("recsys.baselines", name, "baselines").fit(section, known, items)
        return found


def questions(events: pl.DataFrame, chosen: pl.Expr, last: int) -> tuple[Histories, np.ndarray]:
    """At most the `last` events with items that are not new before each chosen one, and its item; int64 [Q]."""
    events = events.with_columns(kept=~pl.col("new_item")).with_columns(end=pl.col("kept").cum_sum() - pl.col("kept"))
    kept, rows = events.filter("kept"), events.filter(chosen)
    end = rows["end"].to_numpy()
    start = end - np.minimum(rows["before"].to_numpy(), last)
    items, _ = gather_slices(kept["item_index"].to_numpy(), start, end)
    times, _ = gather_slices(kept["timestamp"].to_numpy(), start, end)
    actions = np.full(len(items), -1, dtype=np.int16)
    histories = Histories(items, end - start, times, actions, rows["timestamp"].to_numpy())
    return histories, rows["item_index"].to_numpy()


def recall(scorer: Scorer, histories: Histories, target_Q: np.ndarray) -> dict[str, float]:
    """Share of the questions whose item is among the first of the whole catalogue."""
    rank_Q = np.empty(len(target_Q))
    for first in range(0, len(target_Q), 256):
        rows = np.arange(first, min(first + 256, len(target_Q)))
        asked = histories.users(rows)
        score_BI = np.array(scorer.scores(asked))
        score_BI[:, 0] = -np.inf
        score_BI[asked.rows_N, asked.items_N] = -np.inf
        rank_Q[rows] = rank_of(score_BI, target_Q[rows, None])
    return {f"recall@{cut}": float((rank_Q <= cut).mean()) for cut in CUTS}


def of_users(events: pl.DataFrame, trained: np.ndarray, systems: Systems) -> dict[str, Any]:
    """New people, by how many of their events are given."""
    scorers = systems.given(events.filter(pl.col("taught") & ~pl.col("new_item")))
    known = pl.Series(trained)[events["item_index"]]
    last = pl.col("new_user") & ~pl.col("new_item") & (pl.col("after") == 0) & (pl.col("before") > 0) & known
    found: dict[str, Any] = {"given": {}, "recall": {name: {} for name in scorers}}
    found["questions"] = found["users"] = events.filter(last).height
    for count in OF_USERS:
        histories, target_Q = questions(events, last, count)
        found["given"][count] = float(histories.lengths_B.mean())
        for name, scorer in scorers.items():
            found["recall"][name][count] = recall(scorer, histories, target_Q)
    return found


def of_items(events: pl.DataFrame, systems: Systems) -> dict[str, Any]:
    """New items, by how many of their events the graph and the baselines are given."""
    histories, target_Q = questions(events, pl.col("asked"), events.height)
    of_item = events.filter(pl.col("turn").is_not_null())["item_index"].to_numpy()
    there_I = np.bincount(of_item, minlength=int(events["item_index"].max()) + 1)  # pyright: ignore[reportArgumentType]
    found: dict[str, Any] = {"given": {}, "recall": {}}
    for count in OF_ITEMS:
        scorers = systems.given(events.filter(pl.col("taught") & (~pl.col("new_item") | (pl.col("turn") <= count))))
        found["given"][count] = float(np.minimum(there_I[target_Q], count).mean())
        for name, scorer in scorers.items():
            found["recall"].setdefault(name, {})[count] = recall(scorer, histories, target_Q)
    return found | {"questions": len(target_Q), "items": len(np.unique(target_Q))}


def measure(config: configs.RunConfig, path: Path, users: float, seed: int, directory: Path) -> dict[str, Any]:
    """Hold out, train, ask; `users` is the share of the people that are looked at at all."""
    module, dataset = check_dataset({"dataset": config.dataset}, path)
    log = module.load(dataset)
    if module is not sequences or log.items is None:
        raise InputError(f"{path}: dataset is not of kind 'sequences' with attributes; only those can be held out here")
    once = config.retriever.train.model_copy(update={"refit": False})
    section = config.retriever.model_copy(update={"train": once})
    if section.items == catalogue.Config():
        raise InputError(f"{path}: retriever.items is empty, there is nothing to compare; set content or graph")
    (events,) = (part.read() for part in log.parts)
    people = events["user_id"].unique().sort().sample(fraction=users, seed=seed).implode()
    events = hold_out(events.filter(pl.col("user_id").is_in(people)), log.items["item_id"], seed)
    examples = prepare(config, dataset, events, directory)
    index = pl.read_parquet(examples / "items.parquet", columns=["item_id", "index"]).rename({"index": "item_index"})
    events = events.with_columns(user_index=pl.col("user_id").rank("dense").cast(pl.Int64)).join(
        index.with_columns(pl.col("item_index").cast(pl.Int64)), on="item_id", how="left", maintain_order="left"
    )
    found: dict[str, Any] = {"config": str(path), "new_users": NEW_USERS, "new_items": NEW_ITEMS, "seconds": {}}
    models: dict[str, tuple[RetrieverConfig, nn.Module]] = {}
    plain = section.model_copy(update={"items": catalogue.Config()})
    for name, of_name in ((MODEL, section), (IDS, plain)):
        started = time.perf_counter()
        models[name] = of_name, train(config, of_name, examples, directory / "checkpoints" / name.replace(" ", "_"))
        found["seconds"][name] = time.perf_counter() - started
    systems = Systems(config, path, Examples.open(examples), models)
    trained = open_catalogue(section, examples, "train").trained
    found["users"] = of_users(events, trained, systems)
    found["items"] = of_items(events, systems)
    return found | judged(found)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The model beside each other system, and the best of those, after a few events."""
    ratios: dict[str, float] = {}
    bars: dict[str, Any] = {}
    for kind, count, metric in (("users", 3, "recall@10"), ("items", 0, "recall@100"), ("items", 4, "recall@100")):
        # A system that has found nothing counts as if it had found one.
        value = {
            name: max(by_count[count][metric], 1 / found[kind]["questions"])
            for name, by_count in found[kind]["recall"].items()
        }
        mine = value.pop(MODEL)
        title = f"new_{kind}_{count}_{metric}"
        ratios |= {f"{title}_to_{name.replace(' ', '_')}": mine / other for name, other in value.items()}
        best = mine / max(value.values())
        bars[f"{title}_to_the_best_other"] = {"value": best, "target": 1.0, "ok": best >= 1.0}
    return {"ratios": ratios, "bars": bars}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the users, three epochs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--config", type=Path, default=Path("configs/beauty/hierarchical.toml"))
    parser.add_argument("--epochs", type=int, help="at most so many; what the config says if not given")
    parser.add_argument("--seed", type=int, default=0, help="of what is held out")
    asked, overrides = parser.parse_known_args()
    quiet()
    epochs = asked.epochs or (3 if asked.quick else None)
    if epochs is not None:
        overrides += ["--retriever.train.epochs", str(epochs)]
    config = configs.load(asked.config, overrides)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(config, asked.config, 0.1 if asked.quick else 1.0, asked.seed, Path(scratch))
    if asked.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """A table a question."""
    console = Console(width=110)
    for kind, word in (("users", "New people: events of theirs"), ("items", "New items: events of theirs")):
        of_kind = found[kind]
        shares = [share for by in of_kind["recall"].values() for value in by.values() for share in value.values()]
        error = max((share * (1 - share) / of_kind["questions"]) ** 0.5 for share in shares)
        table = Table(
            title=f"{word} that are known; {of_kind['questions']:,} questions, {of_kind[kind]:,} {kind}, "
            f"standard errors up to {error:.3f}"
        )
        table.add_column("")
        for count, mean in of_kind["given"].items():
            table.add_column(f"{count} ({mean:.1f})", justify="right", no_wrap=True)
        for cut in CUTS:
            for name, by_count in of_kind["recall"].items():
                values = [f"{value[f'recall@{cut}']:.4f}" for value in by_count.values()]
                table.add_row(f"{name}, recall@{cut}", *values, end_section=name == list(of_kind["recall"])[-1])
        console.print(table)
    for name, bar in found["bars"].items():
        console.print(f"{name}: {bar['value']:.2f} (target {bar['target']})")
    console.print(", ".join(f"{name}: {seconds:.0f} s of training" for name, seconds in found["seconds"].items()))


if __name__ == "__main__":
    main()
