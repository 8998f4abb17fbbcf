"""Judge a bundle: full ranking of the next item beside baselines, pointwise metrics of the ranker.

Every list comes from the `Recommender`; the protocol is leave-one-out over the whole catalogue: all interactions of
the user before the one to find are known, what was seen is left out, nothing is sampled. As in all leave-one-out, other
people's training events may be later than the question: the item counters of the ranker are those of the snapshot.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from embeddings.batch import Columns
from features import registry
from features.examples import Examples
from features.online import MemoryStore
from features.schema import Schema
from features.settings import Settings
from recsys import bundle as bundles
from recsys import groups
from recsys.bundle import Bundle
from recsys.evaluate_index import evaluate_index
from recsys.experts import specialities
from recsys.inference import Config, Recommender, requests_of
from recsys.metrics import coverage, next_item_metrics, outcome_metrics, rank_of
from recsys.roles import predictions
from recsys.scorer import Scorer

BATCH = 256
"""Requests scored together."""

EXPLAINED = 100_000
"""Examples, about, from which it is found what experts specialise in."""

LIST = 10
"""Length of the lists whose coverage and popularity are reported."""


def evaluate_retrieval(
    directory: Path, examples: Path, config: Config, baselines: dict[str, Settings], report: Callable[[str], None]
) -> dict[str, Any]:
    """Next-item metrics on a leave-one-out split.

    Args:
        directory: the bundle.
        examples: the split.
        config: how the bundle recommends.
        baselines: name → Config of each file in `recsys/baselines` to compare with.
        report: told which system is being judged.

    Returns:
        `retrieval`, `system` (after ranking and blend), `baselines.<name>`, each with metrics and `coverage@10`; and
        `popularity`: for each system the share of its lists in ten popularity bands of the catalogue, and of the
        items to find (`actual`). Where the bundle is asked through its tree, `retrieval` is what the tree finds,
        `exhaustive` the same model's scores of all items, and `index` as in `evaluate_index`. `groups`: how
        well `system` serves each group of people and of items, see `recsys.groups`.
    """
    bundle = bundles.load(directory)
    store = MemoryStore(retain=bundle.config["prepare"]["retain"])
    full = Recommender(bundle, store, config)
    full.seed()
    questions = pl.read_parquet(examples / "sequences" / "test.parquet")
    band = popularity_bands(bundles.item_counts(bundle))
    found: dict[str, Any] = {"baselines": {}, "popularity": {}}
    known = questions["item_index"].to_numpy()
    found["popularity"]["actual"] = band_shares(known[known > 0], band)

    def judge(name: str, recommender: Recommender) -> dict[str, float]:
        report(name)
        rank, lists = retrieval_ranks(recommender, questions)
        found["popularity"][name] = band_shares(lists.ravel(), band)
        return next_item_metrics(rank) | {f"coverage@{LIST}": coverage(lists, bundle.items.height - 1)}

    found["retrieval"] = judge("retrieval", full)
    if full.searcher is not None:
        found["exhaustive"] = judge(
            "exhaustive", Recommender(bundle, store, config.model_copy(update={"index": "exact"}), rank=False)
        )
    for name, scorer in fit_baselines(examples, bundle.items, baselines).items():
        found["baselines"][name] = judge(name, Recommender(bundle, store, config, scorer, rank=False))
    report("system")
    rank, lists = feed_ranks(full, questions)
    found["popularity"]["system"] = band_shares(lists.ravel(), band)
    found["system"] = next_item_metrics(rank) | {f"coverage@{LIST}": coverage(lists, bundle.items.height - 1)}
    found["questions"] = questions.height
    known = Examples.open(examples).interactions(0, 1)
    of_questions = groups.question_groups(questions, bundle.users, known, has_clock=bundle.facts["has_clock"])
    found["groups"] = groups.quality(rank, of_questions)
    if full.searcher is not None:
        report("index")
        found["index"] = evaluate_index(full.searcher, questions.filter(pl.col("item_index") > 0))
    return found


def evaluate_ranking(directory: Path, examples: Path, config: Config) -> dict[str, Any]:
    """The bundle's ranker on the split's test examples; one of what is retrieved, on lists that have what came next.

    Returns:
        `ranking`: by task, see `outcome_metrics` (empty where there is nothing to judge), with `uncalibrated_…` beside
        where the bundle calibrates; `experts`, where it has some: see `specialities`, of about EXPLAINED examples.
    """
    bundle = bundles.load(directory)
    schema = bundle.encoder.schema
    found: dict[str, list[np.ndarray]] = {"predicted": [], "raw": [], "outcome": [], "user": []}
    looked_at: list[Columns] = []
    gates: list[np.ndarray] = []
    lists = any(spec.retrieved for spec in schema.features)
    for part in _of_lists(bundle, examples, config) if lists else _of_log(examples, schema):
        with torch.inference_mode():
            outputs = bundle.ranker(part.batch())
        found["predicted"].append(bundle.predictions(outputs["logits_BT"]).numpy())
        found["raw"].append(predictions(outputs["logits_BT"], schema).numpy())
        if "gates_BTE" in outputs and sum(columns.rows for columns in looked_at) < EXPLAINED:
            looked_at.append(part)
            gates.append(outputs["gates_BTE"].numpy())
        assert part.labels is not None
        assert part.user is not None
        found["outcome"].append(part.labels)
        found["user"].append(part.user)
    if not found["user"]:
        return {"ranking": {}}
    predicted, raw, outcome, user = (np.concatenate(parts) for parts in found.values())
    ranking = outcome_metrics(schema, predicted, outcome, user)
    if not np.array_equal(predicted, raw):
        for task, metrics in outcome_metrics(schema, raw, outcome, user).items():
            changed = [name for name in ("logloss", "ne", "calibration") if name in metrics]
            ranking[task] |= {f"uncalibrated_{name}": metrics[name] for name in changed}
    result: dict[str, Any] = {"ranking": ranking}
    if gates:
        result["experts"] = specialities(Columns.join(looked_at), np.concatenate(gates))
    return result


def _of_log(examples: Path, schema: Schema) -> Iterator[Columns]:
    """The test examples, some at a time."""
    for block in Examples.open(examples).of_part(2):
        columns = Columns.of(block, schema)
        for first in range(0, columns.rows, 64 * BATCH):
            yield columns.take(np.arange(first, min(first + 64 * BATCH, columns.rows)))


def _of_lists(bundle: Bundle, examples: Path, config: Config) -> Iterator[Columns]:
    """The candidates of everybody's first test question, where the list is full and has what came next."""
    recommender = Recommender(bundle, MemoryStore(retain=bundle.config["prepare"]["retain"]), config)
    recommender.seed()
    questions = pl.read_parquet(examples / "sequences" / "test.parquet").filter(pl.col("item_index") > 0)
    questions = questions.unique("user_id", keep="first", maintain_order=True)
    for part in questions[_by_length(questions)].iter_slices(BATCH):
        requests = requests_of(part, recommender.context_columns, LIST)
        histories = [recommender.store.history(request.user_id) for request in requests]
        items_BR, score_BR = recommender.retrieve(requests, histories)
        right_BR = items_BR == part["item_index"].to_numpy()[:, None]
        kept = np.flatnonzero(right_BR.any(1) & np.isfinite(score_BR).all(1))
        if len(kept):
            columns = recommender.encode(
                [requests[b] for b in kept], [histories[b] for b in kept], items_BR[kept], score_BR[kept]
            )
            user = np.repeat(part["user_index"].to_numpy()[kept], items_BR.shape[1])
            yield replace(columns, labels=right_BR[kept].reshape(-1, 1).astype(np.float32), user=user)


def fit_baselines(examples: Path, items: pl.DataFrame, configs: dict[str, Settings]) -> dict[str, Scorer]:
    """Every baseline, counted over all that is known when the test part begins."""
    interactions = Examples.open(examples).interactions(0, 1)
    return {
        name: registry.load("recsys.baselines", name, "baselines").fit(config, interactions, items)
        for name, config in configs.items()
    }


def retrieval_ranks(recommender: Recommender, questions: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each right item by retrieval alone, and the first ten of each list.

    Returns:
        float64 [Q]: 1 is first, inf where the item is not in the vocabulary or a tree has not found it; without a tree
        it is the rank in the whole catalogue, in which ties share their mean rank; int64 [Q, 10].
    """
    order = _by_length(questions)
    ranks, lists = [], []
    for part in questions[order].iter_slices(BATCH):
        requests = requests_of(part, recommender.context_columns, LIST)
        histories = [recommender.store.history(request.user_id) for request in requests]
        target_B1 = part["item_index"].to_numpy()[:, None].astype(np.int64)
        if recommender.searcher is None:
            score_BI = recommender.retrieval.scores(requests, histories)
            ranks.append(rank_of(score_BI, target_B1))
            lists.append(_first(score_BI, LIST))
        else:
            items_BR, score_BR = recommender.retrieve(requests, histories)
            items_BR = np.where(np.isfinite(score_BR), items_BR, 0)
            right_BR = (items_BR == target_B1) & (target_B1 > 0)
            ranks.append(np.where(right_BR.any(1), 1.0 + right_BR.argmax(1), np.inf))
            lists.append(np.pad(items_BR[:, :LIST], ((0, 0), (0, max(0, LIST - items_BR.shape[1])))))
    back = np.argsort(order)
    return np.concatenate(ranks)[back], np.concatenate(lists)[back]


def _by_length(questions: pl.DataFrame) -> np.ndarray:
    """The order in which histories that are asked about together are of like length, and little is padded."""
    return np.argsort(questions["items"].list.len().to_numpy(), kind="stable")


def _first(score_BI: np.ndarray, count: int) -> np.ndarray:
    """The best `count` columns of each row in no particular order, 0 where there are no more; int64 [B, count]."""
    width = min(count, score_BI.shape[1] - 1)
    top_BK = np.argpartition(-score_BI, width, axis=1)[:, :width]
    kept_BK = np.where(np.isfinite(np.take_along_axis(score_BI, top_BK, axis=1)), top_BK, 0)
    return np.pad(kept_BK, ((0, 0), (0, count - width)))


def feed_ranks(recommender: Recommender, questions: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Place of each right item among all retrieved, as blended, inf where it is not; float64 [Q], int64 [Q, 10]."""
    index, order = recommender.item_index, _by_length(questions)
    ranks, lists = [], []
    for part in questions[order].iter_slices(BATCH):
        responses = recommender.recommend_many(
            requests_of(part, recommender.context_columns, recommender.config.retrieved)
        )
        for response, target in zip(responses, part["item_id"], strict=True):
            shown = [item.item_id for item in response.items]
            ranks.append(shown.index(target) + 1 if target in shown else np.inf)
            lists.append([index[item] for item in shown[:LIST]] + [0] * (LIST - len(shown)))
    back = np.argsort(order)
    return np.array(ranks)[back], np.array(lists)[back]


def popularity_bands(counts_I: np.ndarray, bands: int = 10) -> np.ndarray:
    """The band of each item, 0 the most popular tenth of the catalogue; int64 [items + 1], −1 for index 0."""
    order = np.argsort(-counts_I[1:], kind="stable")
    band = np.full(len(counts_I), -1)
    band[1 + order] = np.arange(len(order)) * bands // len(order)
    return band


def band_shares(items: np.ndarray, band_I: np.ndarray, bands: int = 10) -> list[float]:
    """Share of `items` (indices, 0 left out) in each band."""
    counted = np.bincount(band_I[items[items > 0]], minlength=bands)
    return (counted / max(counted.sum(), 1)).tolist()
