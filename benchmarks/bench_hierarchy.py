"""What the hierarchy adds: recall of the true next item, and the time of a query, beside the usual ways.

    python benchmarks/bench_hierarchy.py --config configs/beauty/hierarchical.toml --peer configs/beauty/two_tower.toml

The hierarchical retriever is asked down its tree and by a look at every item; its vectors alone, without a graph, by a
look at every item; a two-tower retriever by a look at every item and through FAISS IVF, which is given as many lists to
look into as the time of the tree allows. All are trained here, on the training part, and asked the test questions; one
thread, one question at a time, from the history to a list of 100.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
from bench_retriever_quality import Bench, changed

from embeddings.histories import Histories
from features.encoder import load_schema
from recsys import checkpoint
from recsys.config import load
from recsys.evaluate_index import LIST, best, seen, timed
from recsys.index.tree import Tree
from recsys.inference import Config as RecommendConfig
from recsys.models.hierarchical import Hierarchical
from recsys.roles import RetrieverConfig, build_task, open_catalogue
from recsys.scorer import LearnedScorer, TreeSearcher
from recsys.stages import Run

TIMED = 500
"""Questions that are asked one at a time."""

Answer = Callable[[Histories], np.ndarray]
"""Histories → the best items, int64 [B, 100], 0 where there are no more."""


def main() -> None:
    """Parse, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/beauty/hierarchical.toml"))
    parser.add_argument("--peer", type=Path, default=Path("configs/beauty/two_tower.toml"))
    parser.add_argument("--epochs", type=int, help="at most; default: the configs'")
    parser.add_argument("--quick", action="store_true", help="one epoch each, and a tenth of the questions")
    parser.add_argument("--json", action="store_true")
    asked, overrides = parser.parse_known_args()
    config, peer = load(asked.config, overrides), load(asked.peer, overrides)
    run = Run(config, asked.config)
    run.prepare()
    examples = run.examples("leave_one_out").resolve()
    bench = Bench(config, examples, run.directory.resolve() / "hierarchy")
    epochs = 1 if asked.quick else asked.epochs
    ours, theirs = (
        _trained(bench, section if epochs is None else changed(section, {"train": {"epochs": epochs}}), name)
        for section, name in ((config.retriever, "hierarchical"), (peer.retriever, "two_tower"))
    )
    questions = pl.read_parquet(examples / "sequences" / "test.parquet").filter(pl.col("item_index") > 0)
    if asked.quick:
        questions = questions[::10]
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    some = questions[np.linspace(0, questions.height - 1, min(TIMED, questions.height)).astype(np.int64)]
    found: dict[str, Any] = {}

    def judge(name: str, answer: Answer) -> None:
        found[name] = {"recall@100": _recall(answer, questions), **timed(some, answer)}
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr)

    for name, answer in _ours(ours, config.recommend).items():
        judge(name, answer)
    judge("two-tower, exhaustive", lambda histories: best(theirs.scores(histories), histories))
    index = _ivf(theirs)
    while True:
        probes = index.nprobe
        judge(f"two-tower, IVF, {probes} lists", _through(theirs, index))
        if found[f"two-tower, IVF, {probes} lists"]["p50_ms"] > found["tree"]["p50_ms"] or probes == index.nlist:
            break
        index.nprobe = min(2 * probes, index.nlist)
    tree = found["tree"]
    in_time = [row["recall@100"] for name, row in found.items() if "IVF" in name and row["p50_ms"] <= tree["p50_ms"]]
    found["bars"] = {
        "above_two_tower_ivf_at_equal_time": _bar(tree["recall@100"], max(in_time, default=0.0)),
        "not_below_exhaustive": _bar(tree["recall@100"], found["exhaustive"]["recall@100"]),
        "not_below_exhaustive_by_the_vectors_alone": _bar(
            tree["recall@100"], found["same vectors, exhaustive"]["recall@100"]
        ),
    }
    print(json.dumps(found) if asked.json else json.dumps(found, indent=2))


def _trained(bench: Bench, section: RetrieverConfig, name: str) -> LearnedScorer:
    bench.train(changed(section, {"train": {"refit": False}}), name)
    task = build_task(section, load_schema(bench.examples), torch.device("cpu"), {})
    checkpoint.load_model(bench.folder / name / "retriever", task)
    catalogue = open_catalogue(section, bench.examples, "train")
    return LearnedScorer(task.eval().model, catalogue, bench.config.prepare.max_history)


def _ours(scorer: LearnedScorer, config: RecommendConfig) -> dict[str, Answer]:
    model = scorer.model
    assert isinstance(model, Hierarchical)
    vectors_ID = scorer.item_vectors_ID
    with torch.inference_mode():
        tree = Tree.build(vectors_ID.numpy(), model.paths(vectors_ID), model.quantizer.sizes)
    found: dict[str, Answer] = {}
    for name, share in (("tree", 1), ("tree, a quarter", 4)):
        beam, budget = max(1, config.beam // share), max(1, config.budget // share)
        searcher = TreeSearcher(scorer, tree, beam, budget, config.path_weight)
        found[name] = lambda histories, searcher=searcher: searcher.search(histories, LIST, seen(histories)).items_Bk
    found["exhaustive"] = lambda histories: best(scorer.scores(histories), histories)
    found["same vectors, exhaustive"] = lambda histories: best(
        (_users(scorer, histories) @ vectors_ID.T).numpy(), histories
    )
    return found


def _ivf(scorer: LearnedScorer) -> Any:
    vectors = scorer.item_vectors_ID.numpy()
    lists = round(4 * len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[1:])
    index.add(vectors[1:])
    index.nprobe = max(1, lists // 16)
    return index


def _through(scorer: LearnedScorer, index: Any) -> Answer:
    """The best items of an index of all of them, those of the history left out."""

    def answer(histories: Histories) -> np.ndarray:
        longest = LIST + int(histories.lengths_B.max())
        items = index.search(_users(scorer, histories).numpy(), longest)[1] + 1
        kept = np.zeros((len(items), LIST), dtype=np.int64)
        ends = np.cumsum(histories.lengths_B)
        for row, (answers, end, length) in enumerate(zip(items, ends, histories.lengths_B, strict=True)):
            fresh = answers[~np.isin(answers, histories.items_N[end - length : end])][:LIST]
            kept[row, : len(fresh)] = fresh
        return kept

    return answer


def _users(scorer: LearnedScorer, histories: Histories) -> torch.Tensor:
    with torch.inference_mode():
        return scorer.ask(histories).user_BD.float()


def _recall(answer: Answer, questions: pl.DataFrame) -> float:
    right = 0
    for part in questions.iter_slices(256):
        right += int((answer(Histories.of(part)) == part["item_index"].to_numpy()[:, None]).any(1).sum())
    return right / questions.height


def _bar(value: float, target: float) -> dict[str, Any]:
    return {"value": value, "target": target, "ok": value >= target}


if __name__ == "__main__":
    main()
