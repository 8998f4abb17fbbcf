"""The Recommender: retrieve → rank → blend, from a bundle and a store, on CPU, in one process.

Evaluation, replay and serving all call it; nothing else turns a history into a feed.
B requests, I items of the catalogue, R retrieved for each, K shown.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from embeddings.batch import Batch, Columns
from embeddings.histories import Histories
from features import pipeline
from features.counters import milliseconds
from features.encoder import Encoder
from features.errors import InputError
from features.fold import Plan
from features.instant import Instant
from features.moment import Asked, Moment, load_snapshot
from features.online import Event, Id, StateStore
from features.schema import RETRIEVED
from features.settings import Settings
from recsys import bundle as bundles
from recsys.baselines import popularity
from recsys.blend import Blend
from recsys.blend import Config as BlendConfig
from recsys.bundle import Bundle
from recsys.index.protocol import Lists
from recsys.scorer import LearnedScorer, Scorer, TreeSearcher
from recsys.sources import scores_of


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
    blend: BlendConfig = BlendConfig()
    """What becomes of what was retrieved and ranked."""


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
            config: how to retrieve and blend.
            scorer: a retriever to use instead of the bundle's.
            rank: whether to rank what was retrieved.

        Raises:
            InputError: the config asks for what the bundle does not have.
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
        self._learned = learned
        self._of_retriever = {name for name in self.encoder.requested if name.startswith(RETRIEVED)}
        self.searcher: TreeSearcher | None = None
        if scorer is None and config.index == "tree":
            if bundle.tree is None:
                raise InputError(
                    f"{bundle.directory}: recommend.index = 'tree', but the bundle's retriever has no tree; train a "
                    "retriever.kind = 'hierarchical', or set recommend.index = 'exact'"
                )
            self.searcher = TreeSearcher(learned, bundle.tree, config.beam, config.budget, config.path_weight)
        self.blend = Blend(config.blend, bundle.items, self.encoder.schema)
        again = config.blend.seen_again_after
        self.seen_ms = None if again is None else milliseconds(again)
        if again is not None and not bundle.facts["has_clock"]:
            raise InputError(
                f"{bundle.directory}: recommend.blend.seen_again_after = {again!r}, but the log has no clock; "
                "take it out"
            )
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
        times_B = _times(requests)
        prediction_BRT: np.ndarray | None = None
        if self.rank:
            with clock("features"):
                columns = self.encode(requests, histories, retrieved_BR, score_BR)
            with clock("rank"):
                prediction_BRT = self.predictions(columns.batch(together=retrieved_BR.shape[1])).reshape(
                    *retrieved_BR.shape, -1
                )
        known_B = np.array([any(event.item_id in self.item_index for event in history) for history in histories])
        with clock("blend"):
            value_BR = self.blend.values(score_BR, prediction_BRT)
            if self._of_retriever:
                # A ranker of what was retrieved has learned from lists of people with a history alone.
                value_BR = np.where(known_B[:, None], value_BR, score_BR)
            users, longest = [request.user_id for request in requests], max(request.k for request in requests)
            places = self.blend.fill(value_BR, retrieved_BR, users, times_B, longest)
        return [
            Response(
                user_id=request.user_id,
                items=tuple(
                    Recommended(
                        item_id=self.item_ids[retrieved_BR[b, r]],
                        score=float(value_BR[b, r]),
                        retrieval_score=float(score_BR[b, r]),
                        probability=None if prediction_BRT is None else float(prediction_BRT[b, r, 0]),
                        propensity=None if places.propensities_BK is None else float(places.propensities_BK[b, place]),
                    )
                    for place, r in enumerate(places.candidates_BK[b, : request.k])
                    if r >= 0
                ),
                source="model" if known_B[b] else "popularity",
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
            # Those who are not known have no steps, so that the steps of the others are all there are.
            hidden_N = self._hidden(requests, past)
            counts_B = np.bincount(past.rows_N[hidden_N], minlength=len(requests))[known_B]
            hidden = Lists(past.items_N[hidden_N], np.concatenate([[0], np.cumsum(counts_B)]))
            found = self.searcher.search(past.users(known_B), items_BR.shape[1], hidden)
            items_BR[known_B], score_BR[known_B] = found.items_Bk, found.scores_Bk
        if not known_B.all():
            strangers = [place for place in range(len(requests)) if not known_B[place]]
            popular = self.retrieval_scores([requests[b] for b in strangers], [histories[b] for b in strangers])
            items_BR[~known_B], score_BR[~known_B] = _top(popular, items_BR.shape[1])
        return items_BR, score_BR

    def retrieval_scores(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> np.ndarray:
        """float32 [B, I + 1]; −inf for what must not be shown: column 0, and what was seen where that is hidden."""
        past = self._past(requests, histories)
        score_BI = np.array(self.scorer.scores(past))
        stranger_B = past.lengths_B == 0
        score_BI[stranger_B] = self.fallback.log_count_I
        score_BI[:, 0] = -np.inf
        hidden_N = self._hidden(requests, past)
        score_BI[past.rows_N[hidden_N], past.items_N[hidden_N]] = -np.inf
        return score_BI

    def encode(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        items_BR: np.ndarray,
        score_BR: np.ndarray,
    ) -> Columns:
        """The features of candidates as `retrieve` gives them, request by request; B · R rows."""
        asked = [
            Asked(request.user_id, moment, request.context)
            for request, moment in zip(requests, _times(requests).tolist(), strict=True)
        ]
        found = self.retrieved(requests, histories, items_BR, score_BR, self._of_retriever)
        examples = self.instant.encode(asked, histories, items_BR, self.store, found)
        return Columns.of_arrays(examples.rows, examples.columns, self.encoder.schema)

    def retrieved(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        items_BR: np.ndarray,
        score_BR: np.ndarray,
        columns: Collection[str],
    ) -> dict[str, np.ndarray]:
        """Columns `retrieved.…`: of candidates as `retrieve` gives them float64 [B · R], of requests float32 [B, D]."""
        if not columns:
            return {}
        past = self._past(requests, histories)
        makers: dict[str, Callable[[], np.ndarray]] = {
            "score": lambda: np.where(np.isfinite(score_BR), score_BR, 0.0),
            "graph": lambda: self._learned.graph_scores(past, items_BR),
            "place": lambda: np.broadcast_to(1.0 + np.arange(items_BR.shape[1]), items_BR.shape),
            "user": lambda: self._learned.user_vectors(past),
        }
        found: dict[str, np.ndarray] = {}
        for column in columns:
            name = column.removeprefix(RETRIEVED)
            made = makers[name]() if name in makers else scores_of(self.bundle.sources[name], past, items_BR)
            found[column] = made if name == "user" else made.ravel().astype(np.float64)
        return found

    def _hidden(self, requests: Sequence[Request], past: Histories) -> np.ndarray:
        """Whether the item of each step must not be shown; bool [N]."""
        hidden_N = np.repeat([request.exclude_seen for request in requests], past.lengths_B)
        if self.seen_ms is None:
            return hidden_N
        return hidden_N & (past.timestamps_N > np.repeat(past.asked_B, past.lengths_B) - self.seen_ms)

    def _past(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> Histories:
        """What of the histories the retriever knows."""
        known = [[event for event in history if event.item_id in self.item_index] for history in histories]
        events = [event for history in known for event in history]
        actions = self.moment.actions
        return Histories(
            items_N=np.array([self.item_index[event.item_id] for event in events], dtype=np.int64),
            lengths_B=np.array([len(history) for history in known], dtype=np.int64),
            timestamps_N=np.array([event.timestamp for event in events], dtype=np.int64),
            actions_N=np.array([actions.get(event.action, -1) for event in events], dtype=np.int16),
            asked_B=_times(requests),
        )

    def predictions(self, batch: Batch) -> np.ndarray:
        """The ranker's calibrated predictions for encoded examples, see `recsys.roles.predictions`; float32 [B, T]."""
        with torch.inference_mode():
            return self.bundle.predictions(self.bundle.ranker(batch)["logits_BT"]).numpy()

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


def _times(requests: Sequence[Request]) -> np.ndarray:
    """When each is asked, Unix time in ms; int64 [B]."""
    now = time.time_ns() // 1_000_000
    return np.array([now if request.timestamp is None else request.timestamp for request in requests], dtype=np.int64)


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
