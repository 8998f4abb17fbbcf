"""How long the nearest hundred of many items take: a tree of residual codes, all items, FAISS's IVF and HNSW.

    python benchmarks/bench_index.py                            10⁴, 10⁵ and 10⁶ items × 64, some minutes
    python benchmarks/bench_index.py --quick --json             10⁴ and 10⁵
    python benchmarks/bench_index.py --vectors ITEMS.npy        real ones, float32 [items, D]

One thread, one query at a time. What may miss something is made to look further until it finds 95 % of the true
hundred, on average over the queries; every system is measured at that point. Vectors are drawn from a mixture of
mixtures of Gaussians of unequal weights, with norms that differ, and queries from the same.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIM, K, RECALL, BEAM = 64, 100, 0.95, 32
SHAPES = {10**4: (16, 16), 10**5: (128, 16), 10**6: (256, 16)}
"""Items → codes of each level."""
TRIED = ((64, 64), (128, 128), (256, 16), (256, 64), (1024, 16))
"""Shapes that are compared at the largest size."""
LISTS = {10**4: 256, 10**5: 1024, 10**6: 4096}
"""Items → lists of FAISS's IVF, about 4 √items, as its documentation advises."""

PEERS = {"ivf": 1, "ivf_by_distance": 1, "hnsw": 16}
"""FAISS's indices → the first setting that is tried: lists that are probed, length of the queue."""

Search = Callable[[np.ndarray], np.ndarray]
"""One query [1, D] → the items found, from 0."""


def synthetic(items: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [items, D], [queries, D]: 64 groups of clusters, 250 items to a cluster on average."""
    rng = np.random.default_rng(7)
    clusters = items // 250
    groups = rng.standard_normal((64, DIM), dtype=np.float32)
    centres = groups[rng.integers(0, 64, clusters)] + 0.7 * rng.standard_normal((clusters, DIM), dtype=np.float32)
    weights = rng.random(clusters) ** 2

    def draw(count: int) -> np.ndarray:
        of = rng.choice(clusters, count, p=weights / weights.sum())
        vectors = centres[of] + 0.7 * rng.standard_normal((count, DIM), dtype=np.float32)
        return vectors * np.exp(0.25 * rng.standard_normal((count, 1), dtype=np.float32))

    return draw(items), draw(queries)


def exhaustive(vectors: np.ndarray) -> Search:
    """torch: a matrix product, and the best of it."""
    import torch

    vectors_ID = torch.from_numpy(vectors)
    return lambda query: torch.topk(torch.from_numpy(query) @ vectors_ID.T, K).indices[0].numpy()


def tree_of(vectors: np.ndarray, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """The index, and what it took."""
    import torch

    from embeddings.semantic_ids import ResidualQuantizer
    from recsys.index.tree import Tree

    marks = [time.perf_counter()]
    quantizer = ResidualQuantizer(shape, vectors.shape[1])
    quantizer.fit(torch.from_numpy(vectors), seed=0)
    marks.append(time.perf_counter())
    codes = quantizer.assign(torch.from_numpy(vectors)).numpy()
    marks.append(time.perf_counter())
    row_0 = np.zeros((1, vectors.shape[1]), np.float32)
    tree = Tree.build(np.concatenate([row_0, vectors]), np.concatenate([np.full_like(codes[:1], -1), codes]), shape)
    marks.append(time.perf_counter())
    sizes = np.diff(tree.leaves)
    arrays = (tree.codes, tree.means, tree.first, tree.leaves, tree.vectors, tree.items, tree.places)
    facts = {
        "shape": shape,
        "build_seconds": marks[-1] - marks[0],
        "seconds": dict(zip(("fit", "assign", "build"), np.diff(marks).tolist(), strict=True)),
        "bytes": sum(array.nbytes for array in arrays),
        "paths": len(sizes),
        "largest_path": int(sizes.max()),
    }
    return tree, facts


def tree_search(tree: Any, budget: int) -> Search:
    """With a budget of leaves; so large a one that all are looked at takes all paths, too."""
    beam = max(BEAM, budget // 256)
    return lambda query: tree.search(query, K, beam=beam, budget=budget).items_Bk[0] - 1


def ladder(first: int) -> Iterator[int]:
    """Numbers that grow by a fifth."""
    while True:
        yield first
        first += max(1, first // 5)


def recall(search: Search, queries: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true ones that are found."""
    return float(np.mean([np.isin(truth[i], search(queries[i : i + 1])).mean() for i in range(len(queries))]))


def tuned(
    settings: Iterable[int], search: Callable[[int], Search], queries: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """The first setting that finds enough, and its figures."""
    for setting in settings:
        found = recall(search(setting), queries, truth)
        if found >= RECALL:
            return {"setting": setting, "recall": found} | latency(search(setting), queries)
    raise AssertionError("settings end")


def latency(search: Search, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds of a query, each asked twice."""
    taken = []
    for query in (*queries[:, None], *queries[:, None]):
        started = time.perf_counter()
        search(query)
        taken.append(1000 * (time.perf_counter() - started))
    return {"median_ms": statistics.median(taken), "p99_ms": float(np.quantile(taken, 0.99))}


def faiss_index(kind: str, vectors: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """An index of FAISS for inner products, by `index_factory`, with its defaults.

    For inner products FAISS finds lists by directions alone. Where norms differ that is the weaker choice, and so IVF
    is measured in another form, too: lists are found by distance, as the tree's are, and then probed by inner product.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    started = time.perf_counter()
    lists = LISTS[min(LISTS, key=lambda items: abs(np.log(items / len(vectors))))]
    form = "HNSW32,Flat" if kind == "hnsw" else f"IVF{lists},Flat"
    metric = faiss.METRIC_L2 if kind == "ivf_by_distance" else faiss.METRIC_INNER_PRODUCT
    index: Any = faiss.index_factory(vectors.shape[1], form, metric)
    index.train(vectors)
    index.add(vectors)
    if kind == "ivf_by_distance":
        products: Any = faiss.IndexFlatIP(vectors.shape[1])
        products.add(index.quantizer.reconstruct_n(0, lists))
        # The index holds a bare pointer.
        products.this.disown()
        index.quantizer, index.metric_type = products, faiss.METRIC_INNER_PRODUCT
    seconds = time.perf_counter() - started
    return index, {"shape": form, "build_seconds": seconds, "bytes": len(faiss.serialize_index(index))}


def faiss_search(kind: str, index: Any, setting: int) -> Search:
    """With so many lists, or such a queue."""
    import faiss

    if kind != "hnsw":
        parameters = faiss.SearchParametersIVF(nprobe=setting)  # pyright: ignore[reportCallIssue]
    else:
        parameters = faiss.SearchParametersHNSW(efSearch=setting)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda query: index.search(query, K, params=parameters)[1][0]


def measure(vectors: np.ndarray, queries: np.ndarray, shape: tuple[int, ...], peers: list[str]) -> dict[str, Any]:
    """All systems on the same vectors."""
    whole = exhaustive(vectors)
    truth = np.stack([whole(query) for query in queries[:, None]])
    found: dict[str, Any] = {"items": len(vectors), "exhaustive": {"recall": 1.0, "bytes": vectors.nbytes}}
    found["exhaustive"] |= latency(whole, queries)
    found["tree"] = measure_tree(vectors, shape, queries, truth)
    for kind in peers:
        gc.collect()
        index, facts = faiss_index(kind, vectors)
        found[f"faiss_{kind}"] = facts | tuned(
            ladder(PEERS[kind]),
            lambda setting, kind=kind, index=index: faiss_search(kind, index, setting),
            queries,
            truth,
        )
    return found


def measure_tree(vectors: np.ndarray, shape: tuple[int, ...], queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """The tree, tuned, and where its time goes."""
    tree, facts = tree_of(vectors, shape)
    facts |= tuned(ladder(200), lambda budget: tree_search(tree, budget), queries, truth)
    searched = [tree.search(query, K, beam=BEAM, budget=facts["setting"]) for query in queries[:, None]]
    facts["scored"] = float(np.mean([each.scored_B[0] for each in searched]))
    # Of 100 leaves and a bit, which are as few as may be, most is the call and the way down.
    facts["call_and_descent_ms"] = latency(tree_search(tree, 1), queries)["median_ms"]
    return facts


def shapes(vectors: np.ndarray, queries: np.ndarray) -> list[dict[str, Any]]:
    """Codes of several sizes, on the same vectors."""
    whole = exhaustive(vectors)
    truth = np.stack([whole(query) for query in queries[:, None]])
    return [measure_tree(vectors, shape, queries, truth) for shape in TRIED]


def shape_for(items: int) -> tuple[int, ...]:
    """That of the nearest size."""
    return SHAPES[min(SHAPES, key=lambda size: abs(np.log(size / items)))]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 10⁵ items")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--shapes", action="store_true", help="compare sizes of codes instead, at the largest size")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="FAISS's indices to measure")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SHAPES, help="items, in the place of all sizes")
    parser.add_argument("--vectors", type=Path, help="float32 [items, D], in the place of synthetic ones")
    parser.add_argument(
        "--queries", type=Path, help="float32 [queries, D]; without, some of the items, which are left out"
    )
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    count = 200 if asked.quick else 500
    sizes = asked.sizes or list(SHAPES)[: 2 if asked.quick else 3]
    if asked.vectors:
        vectors = np.load(asked.vectors).astype(np.float32)
        if asked.queries:
            cases = [(vectors, np.load(asked.queries).astype(np.float32)[:count])]
        else:
            order = np.random.default_rng(7).permutation(len(vectors))
            cases = [(vectors[np.sort(order[count:])], vectors[order[:count]])]
    else:
        cases = (synthetic(items, count) for items in (sizes[-1:] if asked.shapes else sizes))
    if asked.shapes:
        found: dict[str, Any] = {"shapes": [each for case in cases for each in shapes(*case)]}
    else:
        found = {"cases": [measure(*case, shape_for(len(case[0])), asked.peers) for case in cases]}
        found["ratios"] = {
            f"{name}_to_tree_{case['items']}": case[name]["median_ms"] / case["tree"]["median_ms"]
            for case in found["cases"]
            for name in ("exhaustive", *(f"faiss_{peer}" for peer in asked.peers))
        }
        found["bars"] = dict(bars(found["cases"]))
    print(
        json.dumps(found, indent=2)
        if asked.json
        else "\n".join(f"{k}: {json.dumps(v, indent=2)}" for k, v in found.items())
    )


def bars(cases: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is aimed at."""
    for case in cases:
        value = case["tree"]["recall"]
        yield f"recall_{case['items']}", {"value": value, "target": RECALL, "ok": value >= RECALL}
        if case["items"] >= 10**6:
            value = case["tree"]["median_ms"] / case["exhaustive"]["median_ms"]
            yield f"share_of_exhaustive_{case['items']}", {"value": value, "target": 0.1, "ok": value <= 0.1}


if __name__ == "__main__":
    main()
