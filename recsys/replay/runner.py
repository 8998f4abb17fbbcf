"""Replay the held-out tail of a log in time order: ask for a feed, judge it by what happened, let it happen."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field

from features.examples import Examples
from features.online import Event, MemoryStore
from features.settings import Settings
from recsys import bundle as bundles
from recsys import inference
from recsys.inference import Recommender, Request
from recsys.metrics import next_item_metrics

DAY_MS = 86_400_000


class Config(Settings):
    """The section [replay]."""

    k: int = Field(default=10, ge=10)
    """Length of the feeds that are judged."""
    max_events: int | None = Field(default=None, gt=0)
    """Replay only so many of the first events of the tail; None: all."""


def replay(
    directory: Path, examples: Path, recommend: inference.Config, config: Config, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Replay the test part of a split through its bundle, and through its popularity fallback beside it.

    Both see the same histories, which grow with every event. Histories start from the bundle's snapshot.

    Args:
        directory: the bundle.
        examples: its split.
        recommend: how it recommends.
        config: the replay.
        advance: told how many events have been replayed.

    Returns:
        Next-item metrics over all events, `popularity` with the same of the fallback, `by_day`, `latency_ms` (p50, p90,
        p99 and mean, and by stage), `events`, `strangers` (requests from people without history).
    """
    # One request at a time is too little work to share between threads; waking them costs more than they bring.
    torch.set_num_threads(1)
    bundle = bundles.load(directory)
    store = MemoryStore(retain=bundle.config["prepare"]["retain"])
    feed = Recommender(bundle, store, recommend)
    feed.seed()
    popular = Recommender(bundle, store, recommend, feed.fallback, rank=False)
    tail = Examples.open(examples).interactions(2)
    if config.max_events is not None:
        tail = tail.head(config.max_events)

    rank: dict[str, list[float]] = {"feed": [], "popularity": []}
    latency: list[float] = []
    stages: dict[str, list[float]] = {}
    strangers = 0
    given = [name for name in feed.context_columns if name in tail.columns]
    contexts = tail.select(given).to_dicts() if given else [{}] * tail.height
    for event, context in zip(events(tail), contexts, strict=True):
        request = Request(user_id=event.user_id, k=config.k, timestamp=event.timestamp, context=context)
        response = feed.recommend(request)
        rank["feed"].append(place(response, event))
        rank["popularity"].append(place(popular.recommend(request), event))
        latency.append(sum(response.latency_ms.values()))
        for stage, milliseconds in response.latency_ms.items():
            stages.setdefault(stage, []).append(milliseconds)
        strangers += response.source == "popularity"
        feed.observe([event])
        advance(len(latency))
    day = tail["timestamp"].to_numpy() // DAY_MS
    return {
        **next_item_metrics(np.array(rank["feed"])),
        "popularity": next_item_metrics(np.array(rank["popularity"])),
        "by_day": _by_day(day, rank) if bundle.facts["has_clock"] else [],
        "latency_ms": {
            **{f"p{q}": float(np.percentile(latency, q)) for q in (50, 90, 99)},
            "mean": float(np.mean(latency)),
            "stages": {stage: float(np.mean(values)) for stage, values in stages.items()},
            "histogram": np.histogram(latency, bins=40, range=(0, float(np.percentile(latency, 99.5))))[0].tolist(),
            "histogram_end": float(np.percentile(latency, 99.5)),
        },
        "events": tail.height,
        "strangers": strangers,
    }


def events(tail: pl.DataFrame) -> list[Event]:
    """The rows of a log as events."""
    columns = [name for name in ("user_id", "item_id", "timestamp", "action", "value") if name in tail.columns]
    rows = tail.select(pl.col(name).fill_null("") if name == "action" else name for name in columns)
    return [Event(**row) for row in rows.iter_rows(named=True)]


def place(response: inference.Response, event: Event) -> float:
    """Where the event's item stands in the feed, 1 for first; inf where it is not in it."""
    shown = [item.item_id for item in response.items]
    return shown.index(event.item_id) + 1 if event.item_id in shown else np.inf


def _by_day(day: np.ndarray, rank: dict[str, list[float]]) -> list[dict[str, Any]]:
    ranks = {name: np.array(values) for name, values in rank.items()}
    return [
        {
            "day": datetime.datetime.fromtimestamp(int(d) * DAY_MS / 1000, tz=datetime.UTC).date().isoformat(),
            "events": int((day == d).sum()),
            **{name: next_item_metrics(values[day == d]) for name, values in ranks.items()},
        }
        for d in np.unique(day)
    ]
