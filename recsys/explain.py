"""Why a feed is what it is: for each item what is expected of it, which experts spoke, which features carried it.

    recsys explain CONFIG --user 294 --k 3

What a feature has done for an item is found by taking it away: the item keeps all else, and has in its place, one after
the other, what the feature says of other items that were retrieved for the same request. The mean of what the
prediction loses is the feature's effect. What is the same for all items, who asks and when, cannot have brought one of
them before another and has none.

R items retrieved, K shown, J others compared with, T tasks, E experts.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.markup import escape

from embeddings.batch import Columns
from features.errors import InputError
from features.online import MemoryStore
from features.schema import Schema
from recsys import bundle as bundles
from recsys.experts import heard
from recsys.inference import Config, Recommender, Request

OTHERS = 16
"""Items that each is compared with, at most."""

TELLING = 0.005
"""A change of the probability that is smaller is not told."""


@dataclass(frozen=True)
class Explained:
    """One item of a feed."""

    item_id: Any
    title: str
    score: float
    propensity: float | None
    """The chance with which it is shown at its place; None where the feed does not explore."""
    retrieval_place: int
    """1 for the item that the retriever liked best."""
    predictions: dict[str, float]
    """By task: a probability, or a number in the unit of the log."""
    effects: dict[str, float]
    """Feature → what it adds to the probability of the label, largest first; those that matter."""
    experts: dict[str, dict[str, float]]
    """As `recsys.experts.heard` tells them; empty where there are no experts."""


def served(directory: Path, config: Config) -> Recommender:
    """A recommender that knows what a bundle's snapshot knows."""
    bundle = bundles.load(directory)
    recommender = Recommender(bundle, MemoryStore(retain=bundle.config["prepare"]["retain"]), config)
    recommender.seed()
    return recommender


def request_of(recommender: Recommender, user: str, k: int, timestamp: int | None) -> Request:
    """A request as words of a command line have it; without a time, of the last moment that the snapshot knows.

    Raises:
        InputError: the log's users are numbers, and this is none; k is not positive.
    """
    if k < 1:
        raise InputError(f"--k {k}: a feed has at least one item")
    users = recommender.bundle.users["user_id"]
    if users.dtype.is_integer() and not re.fullmatch(r"-?\d+", user):
        raise InputError(f"--user {user!r}: users of this log are numbers, such as {users.drop_nulls()[0]}; give one")
    if timestamp is None:
        path = recommender.bundle.directory / "snapshot" / "users.parquet"
        timestamp = pl.scan_parquet(path).select(pl.col("timestamp").list.max().max()).collect().item()
    return Request(user_id=int(user) if users.dtype.is_integer() else user, k=k, timestamp=timestamp)


def explain(recommender: Recommender, request: Request) -> list[Explained]:
    """The feed of a request, with its reasons.

    Raises:
        InputError: nothing was ranked, for nothing is known of the person.
    """
    response = recommender.recommend(request)
    if response.source != "model":
        raise InputError(
            f"nothing is known of user {request.user_id!r}: the feed is what is popular, and the ranker's reasons "
            "would be of nobody; ask for someone with a history"
        )
    schema = recommender.encoder.schema
    assert request.timestamp is not None, "a request that is explained has a time"
    person = recommender.person(request)
    histories = [person.history]
    retrieved_1R, score_1R = recommender.retrieve([request], histories, [person.effect])
    there_R = np.isfinite(score_1R[0])
    retrieved_1R = retrieved_1R[:, there_R]
    columns = recommender.encode([request], histories, retrieved_1R, score_1R[:, there_R])
    place = {recommender.item_ids[item]: number for number, item in enumerate(retrieved_1R[0].tolist())}
    shown_K = np.array([place[item.item_id] for item in response.items])
    predicted_KT, gates_KTE = recommender.ranked(columns.take(shown_K).batch())
    effects = _effects(recommender, columns, shown_K, predicted_KT[:, 0])
    titles = recommender.bundle.items["title"].to_list() if "title" in recommender.bundle.items.columns else None
    return [
        Explained(
            item_id=item.item_id,
            title=str(item.item_id if titles is None else titles[retrieved_1R[0, shown_K[k]]]),
            score=item.score,
            propensity=item.propensity,
            retrieval_place=int(shown_K[k]) + 1,
            predictions=_in_units(predicted_KT[k], schema),
            effects=_largest({name: float(effect_K[k]) for name, effect_K in effects.items()}, TELLING),
            experts={} if gates_KTE is None else heard(gates_KTE[k], schema),
        )
        for k, item in enumerate(response.items)
    ]


def _effects(
    recommender: Recommender, columns: Columns, shown_K: np.ndarray, own_K: np.ndarray
) -> dict[str, np.ndarray]:
    """What each feature adds to the probability of the label of each item shown; float32 [K]."""
    others_J = np.unique(np.linspace(0, columns.rows - 1, OTHERS + 1).astype(np.int64))
    kept, put = np.repeat(shown_K, len(others_J)), np.tile(others_J, len(shown_K))
    mine, theirs = columns.take(kept), columns.take(put)
    schema = columns.schema
    parts = [_swapped(mine, theirs, place) for place in range(len(schema.embedded))]
    first = 0
    for feature in schema.dense:
        assert mine.dense is not None
        assert theirs.dense is not None
        dense, last = mine.dense.copy(), first + (feature.width or 1)
        dense[:, first:last] = theirs.dense[:, first:last]
        parts.append(replace(mine, dense=dense))
        first = last
    names = [feature.name for feature in (*schema.embedded, *schema.dense)]
    without_BT = recommender.predictions(Columns.join(parts).batch())
    without_FKJ = without_BT[:, 0].reshape(len(names), len(shown_K), len(others_J))
    weight_KJ = (others_J != shown_K[:, None]).astype(np.float32)
    mean_FK = (without_FKJ * weight_KJ).sum(2) / np.maximum(weight_KJ.sum(1), 1)
    alone_K = weight_KJ.sum(1) == 0
    return {name: np.where(alone_K, 0, own_K - mean_K) for name, mean_K in zip(names, mean_FK, strict=True)}


def _swapped(mine: Columns, theirs: Columns, place: int) -> Columns:
    """Rows with one embedded feature of other rows."""

    def swapped(lists: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        return [*lists[:place], others[place], *lists[place + 1 :]]

    return replace(
        mine,
        ids=swapped(mine.ids, theirs.ids),
        offsets=swapped(mine.offsets, theirs.offsets),
        weights=swapped(mine.weights, theirs.weights),
    )


def _in_units(predicted_T: np.ndarray, schema: Schema) -> dict[str, float]:
    found = {schema.label: float(predicted_T[0])}
    for task, value in zip(schema.tasks, predicted_T[1:], strict=True):
        found[task.name] = float(value) if task.binary else float(task.number(value))
    return found


def _largest(values: dict[Any, float], least: float) -> dict[Any, float]:
    """Those of more than the least size, largest first."""
    kept = {name: value for name, value in values.items() if abs(value) > least}
    return dict(sorted(kept.items(), key=lambda pair: -abs(pair[1])))


def as_json(explained: list[Explained]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(one) for one in explained]


def show(user: Any, explained: list[Explained], schema: Schema, console: Console | None = None) -> None:
    """For people who are not engineers."""
    console = console or Console(highlight=False)
    binary = {schema.label, *(task.name for task in schema.tasks if task.binary)}
    console.print(f"What was chosen for {user}, and why\n", style="bold")
    for number, one in enumerate(explained, start=1):
        expected = ", ".join(
            f"{_words(task)} {value:.0%}" if task in binary else f"{_words(task)} {value:,.0f}"
            for task, value in one.predictions.items()
        )
        console.print(f"{number}. [bold]{escape(one.title)}[/bold]")
        if one.propensity is not None and one.propensity < 1:
            console.print(f"   put here by chance, of 1 in {1 / one.propensity:.0f}, so that more is learned of it")
        console.print(f"   expected: {expected}")
        console.print(
            f"   found by what was watched before: place {one.retrieval_place} of all that came into question"
        )
        for words, sign in (("speaks for it", 1), ("speaks against it", -1)):
            named = [(name, effect) for name, effect in one.effects.items() if effect * sign > 0][:4]
            if named:
                told = ", ".join(f"{_words(name)} ({100 * effect:+.0f} points)" for name, effect in named)
                console.print(f"   {words}: {told}")
        for task, shares in one.experts.items():
            heard = ", ".join(f"{expert} ({share:.0%})" for expert, share in shares.items())
            console.print(f"   asked about {_words(task)}: {heard}")
        console.print()
    console.print(
        f"Points are of the chance of {_words(schema.label)}, in per cent, beside other items that came into question "
        "for the same person at the same moment.",
        style="dim",
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
