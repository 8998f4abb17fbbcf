"""Small catalogues, histories and batches, made without the pipeline, that several tests share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.batch import Batch, Known
from embeddings.catalogue import Catalogue, Content
from embeddings.histories import Histories, retrieval_batch
from features.graph import Config as GraphConfig
from features.graph import Graph

Lists = Sequence[Sequence[int]]


def flat(lists: Lists) -> tuple[np.ndarray, np.ndarray]:
    """(values, lengths); int64."""
    values = [value for items in lists for value in items]
    return np.array(values, dtype=np.int64), np.array([len(items) for items in lists], dtype=np.int64)


def histories(*items: Sequence[int], times: Lists | None = None, actions: Lists | None = None) -> Histories:
    """Of a user each; `times` are of the steps and of the request, by default ever further apart."""
    values, lengths = flat(items)
    times = times or [[60_000 * step * step for step in range(len(steps) + 1)] for steps in items]
    return Histories(
        items_N=values,
        lengths_B=lengths,
        timestamps_N=flat([steps[:-1] for steps in times])[0],
        actions_N=np.full(len(values), -1, dtype=np.int16) if actions is None else flat(actions)[0].astype(np.int16),
        asked_B=np.array([steps[-1] for steps in times], dtype=np.int64),
    )


def catalogue(
    items: int,
    met: Lists = (),
    content: Mapping[str, Lists] | None = None,
    graph: GraphConfig | None = None,
    neighbours: int = 0,
    recency: float | None = None,
    numbers: int = 0,
) -> Catalogue:
    """Items 1 … `items`.

    Args:
        items: how many.
        met: histories of the training part; without any, every item counts as met.
        content: ids of each item from 1 on.
        graph: of `met`.
        neighbours: that are looked up.
        recency: of links; None: there are none.
        numbers: that describe each item, drawn at random.
    """
    values, lengths = flat(met)
    trained = np.isin(np.arange(items + 1), values) if len(values) else np.arange(items + 1) > 0
    known = {}
    for name, lists in (content or {}).items():
        assert len(lists) == items
        ids, count = flat([[], *lists])
        known[name] = Content(ids.astype(np.int32), np.concatenate([[0], np.cumsum(count)]), int(ids.max()) + 1)
    made = None if graph is None else Graph.of(values, lengths, items, graph)
    drawn = np.random.default_rng(0).normal(size=(items + 1, numbers)).astype(np.float32) if numbers else None
    return Catalogue(trained, known, made, neighbours, recency, drawn)


def questions(known: Catalogue, past: Histories, **more: Any) -> Batch:
    """Histories to be asked about, with the whole catalogue as candidates."""
    walk = known.walk()
    links = None if walk is None else walk.of_histories(past, np.arange(known.items + 1) - 1)
    return retrieval_batch(past, known.whole, past.items_N - 1, **{"links": links, **more})


def looked_up(known: Known) -> dict[str, list[list[float]]]:
    """Key → ids of each item; and `numbers`, if there are some."""
    found = {
        name: [ids.tolist() for ids in known.ids[name].values().split(known.ids[name].lengths().tolist())]
        for name in known.ids.keys()  # noqa: SIM118 - a KeyedJaggedTensor is no mapping
    }
    return found if known.numbers is None else found | {"numbers": known.numbers.tolist()}


def tensors(batch: Batch) -> dict[str, Tensor]:
    """All that a batch holds."""
    found = {**(batch.sequences or {}), **(batch.labels or {})}
    for name in ("sparse", "items"):
        if (jagged := getattr(batch, name)) is not None:
            found |= {f"{name} values": jagged.values(), f"{name} lengths": jagged.lengths()}
    plain = {name: getattr(batch, name) for name in ("item_numbers", "dense", "weights")}
    return found | {name: tensor for name, tensor in plain.items() if tensor is not None}


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    """That batches are the same, bit by bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.share == other.share
        ours, theirs = tensors(one), tensors(other)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
