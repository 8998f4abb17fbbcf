"""What a Recommender is asked, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from features.online import Id, now_ms
from recsys.reasons import Reason


@dataclass(frozen=True)
class Request:
    """Ask for a feed."""

    user_id: Id
    k: int = 20
    timestamp: int | None = None
    """Unix time, ms; None: now."""
    exclude_seen: bool = True
    """Leave out what is in the person's history, for as long as `[recommend.blend] seen_again_after` says."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Values of the log's context columns."""
    explain: bool = False
    """Whether to say of each item why it is there."""


def requests_of(questions: pl.DataFrame, context: tuple[str, ...], k: int) -> list[Request]:
    """Requests for `k` items each, from a table with `user_id, timestamp` and columns of the context."""
    given = [name for name in context if name in questions.columns]
    rows = questions.select("user_id", "timestamp", *given).iter_rows(named=True)
    return [
        Request(user_id=row["user_id"], timestamp=row["timestamp"], k=k, context={name: row[name] for name in given})
        for row in rows
    ]


@dataclass(frozen=True)
class Recommended:
    """One place of a feed."""

    item_id: Id
    score: float
    """The blend's value of the item, by which the feed is ordered where the config asks for nothing else."""
    retrieval_score: float
    probability: float | None
    """The ranker's of its main task; None where there was no ranking."""
    propensity: float | None
    """The chance that this item had to be shown at this place, given those above; 1 where nothing is left to chance,
    None where the feed explores at no place."""
    reason: Reason | None = None
    """Why it is there, where the request asks for it."""


@dataclass(frozen=True)
class Response:
    """A feed."""

    user_id: Id
    items: tuple[Recommended, ...]
    source: Literal["model", "taste", "popularity"]
    """`taste` where nothing is known but what the person has said; `popularity` where not even that is."""
    latency_ms: dict[str, float]
    """By stage; for a batch, of the batch."""
    unknown: tuple[Id, ...] = ()
    """Candidates that are not in the catalogue."""


@dataclass(frozen=True)
class Similar:
    """An item that is like another."""

    item_id: Id
    score: float
    """Cosine of the retriever's vectors of both."""


Outcome = Literal["applied", "ignored", "repeated"]
"""Of an event: it entered histories and counters; its action is no interaction; one of its id was applied before."""


def times_of(requests: Sequence[Request]) -> np.ndarray:
    """When each is asked, Unix time in ms; int64 [B]."""
    now = now_ms()
    return np.array([now if request.timestamp is None else request.timestamp for request in requests], dtype=np.int64)
