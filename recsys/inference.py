"""The Recommender: retrieve → rank → blend, from a bundle and a store, on CPU, in one process.

Evaluation, replay and serving all call it; nothing else turns a history into a feed.
B requests, I items of the catalogue, R retrieved for each, K shown.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from embeddings.batch import Batch, Columns
from embeddings.histories import Histories
from features import pipeline
from features.encoder import Encoder
from features.errors import InputError
from features.fold import Plan
from features.instant import Instant
from features.moment import Asked, Moment, load_snapshot
from features.online import Event, Id, StateStore
from features.settings import Settings
from recsys import bundle as bundles
from recsys.baselines import popularity
from recsys.bundle import Bundle
from recsys.index.protocol import Lists
from recsys.roles import predictions
from recsys.scorer import LearnedScorer, Scorer, TreeSearcher


class Config(Settings):
    """The section [recommend]."""

    retrieved: int = Field(default=100, gt=0)
    """Items that the retriever passes to the ranker."""
    index: Literal["exact", "tree"] = "exact"
    """`exact`: the retriever scores every item; `tree`: a hierarchical one descends its tree."""
    beam: int = Field(default=32, gt=0)
    """Nodes of a level of the tree whose children are looked at."""
    budget: int = Field(default=2048, gt=0)
    """Items at the ends of the best paths that are scored, about; what the graph joins to a history comes on top."""
    path_weight: float = Field(default=0.0, ge=0)
    """Weight of the log-probability of its path in the score of an item."""
    retriever_weight: float = Field(default=1.0, ge=0)
    """Weight of the retriever's score in the blend."""
    ranker_weight: float = Field(default=1.0, ge=0)
    """Weight of the log of the ranker's probability in the blend."""


@dataclass(frozen=True)
class Request:
    """Ask for a feed."""

    user_id: Id
    k: int = 20
    timestamp: int | None = None
    """Unix time, ms; None: now."""
    exclude_seen: bool = True
    """Leave out what is in the person's history."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """Values of the log's context columns."""


@dataclass(frozen=True)
class Recommended:
    """One place of a feed."""

    item_id: Id
    score: float
    """What the feed is ordered by."""
    retrieval_score: float
    probability: float | None
    """The ranker's; None where there was no ranking."""


@dataclass(frozen=True)
class Response:
    """A feed."""

    user_id: Id
    items: tuple[Recommended, ...]
    source: Literal["model", "popularity"]
    """`popularity` where nothing is known of the person."""
    latency_ms: dict[str, float]
    """By stage; for a batch, of the batch."""


class Recommender:
    """Feeds from a bundle and a store. Not thread-safe; a process has one."""

    def __init__(
        self, bundle: Bundle, store: StateStore, config: Config, scorer: Scorer | None = None, *, rank: bool = True
    ) -> None:
        """The bundle's own retriever and ranker, or another `scorer`, or no ranking, for comparison.

        Args:
            bundle: what was exported.
            store: histories and counters; fill an empty one with `seed`.
            config: numbers of the blend.
            scorer: a retriever to use instead of the bundle's.
            rank: whether to rank what was retrieved.
        """
        self.bundle, self.store, self.config, self.rank = bundle, store, config, rank
        self.encoder: Encoder = bundle.encoder
        self.item_ids: list[Id] = [_NO_ITEM, *bundle.items["item_id"].to_list()[1:]]
        self.user_index = {user: index for index, user in enumerate(bundle.users["user_id"].to_list()) if index > 0}
        prepared = pipeline.Config.model_validate(bundle.config["prepare"])
        self.history_actions = frozenset(prepared.history_actions)
        self.label = prepared.label
        sources = [spec.source for spec in self.encoder.schema.features]
        plan = Plan.of(prepared.counters, sources, prepared.ranker_history, 0, 0)
        self.moment = Moment.load(bundle.directory, plan, self.encoder.requested, self.item_ids, self.user_index)
        self.item_index = self.moment.item_index
        self.context_columns = self.moment.context
        self.instant = Instant(self.encoder, self.moment)
        learned = LearnedScorer(bundle.retriever, bundle.catalogue, prepared.max_history)
        self.scorer = scorer or learned
        self.searcher: TreeSearcher | None = None
        if scorer is None and config.index == "tree":
            if bundle.tree is None:
                raise InputError(
                    f"{bundle.directory}: recommend.index = 'tree', but the bundle's retriever has no tree; train a "
                    "retriever.kind = 'hierarchical', or set recommend.index = 'exact'"
                )
            self.searcher = TreeSearcher(learned, bundle.tree, config.beam, config.budget, config.path_weight)
        self.fallback = popularity.from_counts(bundles.item_counts(bundle))

    def seed(self) -> bool:
        """Fill an empty store with the bundle's snapshot; whether it was empty."""
        return self.store.seed(*load_snapshot(self.bundle.directory))

    def recommend(self, request: Request) -> Response:
        """One feed."""
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[Response]:
        """Feeds for several requests, scored together."""
        if not requests:
            return []
        clock = _Clock()
        with clock("state"):
            histories = [self.store.history(request.user_id) for request in requests]
        with clock("retrieve"):
            retrieved_BR, score_BR = self.retrieve(requests, histories)
        probability_BR: np.ndarray | None = None
        blended_BR = self.config.retriever_weight * score_BR
        if self.rank:
            with clock("features"):
                now = time.time_ns() // 1_000_000
                asked = [
                    Asked(request.user_id, now if request.timestamp is None else request.timestamp, request.context)
                    for request in requests
                ]
                examples = self.instant.encode(asked, histories, retrieved_BR, self.store)
            with clock("rank"):
                columns = Columns.of_arrays(examples.rows, examples.columns, self.encoder.schema)
                probability_BR = self.predictions(columns.batch())[:, 0].reshape(retrieved_BR.shape)
                blended_BR = blended_BR + self.config.ranker_weight * np.log(np.maximum(probability_BR, _TINY))
        with clock("blend"):
            order_BR = np.argsort(-blended_BR, axis=1, kind="stable")
        return [
            Response(
                user_id=request.user_id,
                items=tuple(
                    Recommended(
                        item_id=self.item_ids[retrieved_BR[b, place]],
                        score=float(blended_BR[b, place]),
                        retrieval_score=float(score_BR[b, place]),
                        probability=None if probability_BR is None else float(probability_BR[b, place]),
                    )
                    for place in order_BR[b, : request.k]
                    if np.isfinite(score_BR[b, place])
                ),
                source="model" if any(event.item_id in self.item_index for event in histories[b]) else "popularity",
                latency_ms=clock.milliseconds,
            )
            for b, request in enumerate(requests)
        ]

    def retrieve(
        self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each request, best first, and their scores, −inf where there are no more; [B, R] each."""
        count = max(self.config.retrieved, *(request.k for request in requests))
        if self.searcher is None:
            return _top(self.retrieval_scores(requests, histories), count)
        past = self._past(requests, histories)
        known_B = past.lengths_B > 0
        items_BR = np.zeros((len(requests), min(count, len(self.item_ids) - 1)), dtype=np.int64)
        score_BR = np.full(items_BR.shape, -np.inf, dtype=np.float32)
        if known_B.any():
            asked = past.users(known_B)
            hides_B = np.array([request.exclude_seen for request in requests])[known_B]
            edges = np.concatenate([[0], np.cumsum(np.where(hides_B, asked.lengths_B, 0))])
            seen = Lists(asked.items_N[np.repeat(hides_B, asked.lengths_B)], edges)
            found = self.searcher.search(asked, items_BR.shape[1], seen)
            items_BR[known_B], score_BR[known_B] = found.items_Bk, found.scores_Bk
        if not known_B.all():
            strangers = [place for place in range(len(requests)) if not known_B[place]]
            popular = self.retrieval_scores([requests[b] for b in strangers], [histories[b] for b in strangers])
            items_BR[~known_B], score_BR[~known_B] = _top(popular, items_BR.shape[1])
        return items_BR, score_BR

    def retrieval_scores(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> np.ndarray:
        """float32 [B, I + 1]; −inf for what must not be shown: column 0, and what was seen where that is asked for."""
        past = self._past(requests, histories)
        score_BI = np.array(self.scorer.scores(past))
        stranger_B = past.lengths_B == 0
        score_BI[stranger_B] = self.fallback.log_count_I
        score_BI[:, 0] = -np.inf
        seen = np.repeat([request.exclude_seen for request in requests], past.lengths_B)
        score_BI[past.rows_N[seen], past.items_N[seen]] = -np.inf
        return score_BI

    def _past(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> Histories:
        """What of the histories the retriever knows."""
        known = [[event for event in history if event.item_id in self.item_index] for history in histories]
        events = [event for history in known for event in history]
        now = time.time_ns() // 1_000_000
        actions = self.moment.actions
        return Histories(
            items_N=np.array([self.item_index[event.item_id] for event in events], dtype=np.int64),
            lengths_B=np.array([len(history) for history in known], dtype=np.int64),
            timestamps_N=np.array([event.timestamp for event in events], dtype=np.int64),
            actions_N=np.array([actions.get(event.action, -1) for event in events], dtype=np.int16),
            asked_B=np.array([now if r.timestamp is None else r.timestamp for r in requests], dtype=np.int64),
        )

    def predictions(self, batch: Batch) -> np.ndarray:
        """The ranker's predictions for encoded examples, see `recsys.roles.predictions`; float32 [B, T]."""
        with torch.inference_mode():
            return predictions(self.bundle.ranker(batch)["logits_BT"], self.encoder.schema).numpy()

    def observe(self, events: Sequence[Event]) -> int:
        """Apply what happened, in order; how many were applied, for actions that are no interactions change nothing."""
        interactions = [self._labelled(event) for event in events if self._is_interaction(event)]
        self.store.append(interactions, [self.moment.increments(event) for event in interactions])
        return len(interactions)

    def _is_interaction(self, event: Event) -> bool:
        return not self.history_actions or event.action in self.history_actions

    def _labelled(self, event: Event) -> Event:
        if self.label.actions:
            return replace(event, positive=event.action in self.label.actions)
        if self.label.at_least is None:
            return replace(event, positive=True)
        return replace(event, positive=event.value is not None and event.value >= self.label.at_least)


_NO_ITEM = ""
"""Stands at index 0, which is never shown; a list is filled up with it where the catalogue is shorter."""

_TINY = float(np.finfo(np.float32).tiny)
"""A probability that has underflowed is taken for this, so that its logarithm is a number."""


def _top(score_BI: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` columns of each row, best first, and their scores; [B, R] each."""
    score, index = torch.topk(torch.from_numpy(score_BI), min(count, score_BI.shape[1] - 1), dim=1)
    return index.numpy(), score.numpy()


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.milliseconds[stage] = (time.perf_counter() - started) * 1000
