"""The Recommender: retrieve → rank → blend, from a bundle and a store, on CPU, in one process.

Evaluation, replay and serving all call it; nothing else turns a history and a taste into a feed.
B requests, I items of the catalogue, R retrieved for each, K shown.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from embeddings.batch import Batch, Columns
from features import pipeline
from features.counters import milliseconds
from features.encoder import Encoder
from features.errors import InputError
from features.fold import Plan
from features.instant import Instant
from features.moment import Asked, Moment, load_snapshot
from features.online import Event, Id, StateStore, now_ms
from features.schema import RETRIEVED
from features.settings import Settings
from features.taste import Taste
from recsys import bundle as bundles
from recsys import state
from recsys.baselines import popularity
from recsys.blend import Blend
from recsys.blend import Config as BlendConfig
from recsys.bundle import Bundle
from recsys.experts import heard
from recsys.feeds import Outcome as Outcome
from recsys.feeds import Recommended as Recommended
from recsys.feeds import Request as Request
from recsys.feeds import Response as Response
from recsys.feeds import Similar as Similar
from recsys.feeds import requests_of as requests_of
from recsys.feeds import times_of
from recsys.reasons import Reason, reason, speaking
from recsys.retrieval import Retrieval
from recsys.scorer import LearnedScorer, Scorer, TreeSearcher
from recsys.sources import scores_of
from recsys.taste import Config as TasteConfig
from recsys.taste import Effect, Tastes


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
    taste: TasteConfig = TasteConfig()
    """What is made of what people say they like and dislike."""


@dataclass(frozen=True)
class Person:
    """What is known of who asks."""

    history: Sequence[Event]
    """What models see: what was done, and what was said to be liked."""
    taste: Taste
    effect: Effect | None
    """What else was said does to the feed; None: nothing was said."""
    source: Literal["model", "taste", "popularity"]


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
        self.bundle, self.store, self.config, self.ranks = bundle, store, config, rank
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
        if again is not None and not bundle.facts["has_clock"]:
            raise InputError(
                f"{bundle.directory}: recommend.blend.seen_again_after = {again!r}, but the log has no clock; "
                "take it out"
            )
        self.fallback = popularity.from_counts(bundles.item_counts(bundle))
        self.retrieval = Retrieval(
            scorer=self.scorer,
            searcher=self.searcher,
            fallback=self.fallback,
            item_index=self.item_index,
            actions=self.moment.actions,
            count=config.retrieved,
            seen_ms=None if again is None else milliseconds(again),
        )
        self._popular_I = np.argsort(-self.fallback.log_count_I[1:], kind="stable") + 1
        self.tastes = Tastes(
            config.taste, bundle.items, self.item_index, lambda: learned.item_vectors_ID.numpy(), self._like()
        )

    def seed(self) -> bool:
        """Fill an empty store with the bundle's snapshot; whether it was empty.

        Raises:
            InputError: it was filled by a bundle whose counters mean something else.
        """
        if self.store.meaning() is None and self.store.seed(
            *load_snapshot(self.bundle.directory), state.meaning(self.bundle)
        ):
            return True
        state.require_fit(self.bundle, self.store)
        return False

    def recommend(self, request: Request) -> Response:
        """One feed."""
        return self.recommend_many([request])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[Response]:
        """Feeds for several requests, scored together."""
        if not requests:
            return []
        clock = _Clock()
        with clock("state"):
            people = [self.person(request) for request in requests]
        with clock("retrieve"):
            retrieved_BR, score_BR = self.retrieve(
                requests, [person.history for person in people], [person.effect for person in people]
            )
        value_BR, prediction_BRT, gates_BRTE = self._valued(requests, people, retrieved_BR, score_BR, clock)
        with clock("blend"):
            users, longest = [request.user_id for request in requests], max(request.k for request in requests)
            places = self.blend.fill(value_BR, retrieved_BR, users, times_of(requests), longest)
        responses: list[Response] = []
        for b, (request, person) in enumerate(zip(requests, people, strict=True)):
            shown_K = places.candidates_BK[b, : request.k]
            shown_K = shown_K[shown_K >= 0]
            reasons: Sequence[Reason | None] = [None] * len(shown_K)
            if request.explain:
                with clock("reasons"):
                    gates_KTE = None if gates_BRTE is None else gates_BRTE[b, shown_K]
                    reasons = self._reasons(request, person, retrieved_BR[b, shown_K], gates_KTE)
            items = tuple(
                Recommended(
                    item_id=self.item_ids[retrieved_BR[b, r]],
                    score=float(value_BR[b, r]),
                    retrieval_score=float(score_BR[b, r]),
                    probability=None if prediction_BRT is None else float(prediction_BRT[b, r, 0]),
                    propensity=None if places.propensities_BK is None else float(places.propensities_BK[b, place]),
                    reason=reasons[place],
                )
                for place, r in enumerate(shown_K)
            )
            responses.append(Response(request.user_id, items, person.source, clock.milliseconds))
        return responses

    def rank(self, request: Request, candidates: Sequence[Id]) -> Response:
        """Every candidate that is known, in the order of its value; what is disliked comes last, what was seen stays.

        Neither `k` nor `exclude_seen` of the request matters, and nothing is capped, kept apart or left to chance.
        """
        clock = _Clock()
        distinct = list(dict.fromkeys(candidates))
        unknown = tuple(item for item in distinct if item not in self.item_index)
        index_R = np.array([self.item_index[item] for item in distinct if item in self.item_index], dtype=np.int64)
        with clock("state"):
            person = self.person(request)
        if not len(index_R):
            return Response(request.user_id, (), person.source, clock.milliseconds, unknown)
        with clock("retrieve"):
            free = replace(request, exclude_seen=False)
            score_R = self.retrieval.scores([free], [person.history])[0, index_R]
            order_R = np.argsort(-score_R, kind="stable")
            items_1R, score_1R = index_R[None, order_R], score_R[None, order_R]
        value_1R, prediction_1RT, gates_1RTE = self._valued([free], [person], items_1R, score_1R, clock)
        with clock("blend"):
            hidden_R = np.isin(items_1R[0], [] if person.effect is None else person.effect.hidden)
            best_R = np.lexsort((-value_1R[0], hidden_R))
        reasons: Sequence[Reason | None] = [None] * len(best_R)
        if request.explain:
            with clock("reasons"):
                gates_RTE = None if gates_1RTE is None else gates_1RTE[0, best_R]
                reasons = self._reasons(request, person, items_1R[0, best_R], gates_RTE)
        items = tuple(
            Recommended(
                item_id=self.item_ids[items_1R[0, r]],
                score=float(value_1R[0, r]),
                retrieval_score=float(score_1R[0, r]),
                probability=None if prediction_1RT is None else float(prediction_1RT[0, r, 0]),
                propensity=None,
                reason=reasons[place],
            )
            for place, r in enumerate(best_R)
        )
        return Response(request.user_id, items, person.source, clock.milliseconds, unknown)

    def similar(self, item_id: Id, k: int) -> tuple[Similar, ...]:
        """The `k` items whose vectors are most like that of one; of equals, the one of the lower index.

        Raises:
            InputError: there is no such item.
        """
        if item_id not in self.item_index:
            raise InputError(f"item_id = {item_id!r} is not in this model's catalogue; ask for one that is")
        index, unit_ID = self.item_index[item_id], self.tastes.unit_ID
        cosine_I = unit_ID @ unit_ID[index]
        cosine_I[[0, index]] = -np.inf
        best = np.argsort(-cosine_I, kind="stable")[: min(k, len(cosine_I) - 2)]
        return tuple(Similar(self.item_ids[item], float(cosine_I[item])) for item in best)

    def popular(self, request: Request) -> Response:
        """What most people do, whoever asks: for when there is neither time nor a store to ask for more."""
        clock = _Clock()
        with clock("popular"):
            best = self._popular_I[: request.k]
            because = Reason((), {}, None, "popular") if request.explain else None
            items = tuple(
                Recommended(self.item_ids[item], score, score, None, None, because)
                for item, score in zip(best.tolist(), self.fallback.log_count_I[best].tolist(), strict=True)
            )
        return Response(request.user_id, items, "popularity", clock.milliseconds)

    def person(self, request: Request) -> Person:
        """What is known of who asks."""
        history, taste = self.store.history(request.user_id), self.store.taste(request.user_id)
        asked = now_ms() if request.timestamp is None else request.timestamp
        done = self.tastes.done(history, taste)
        known = any(event.item_id in self.item_index for event in done)
        return Person(
            history=self.tastes.seen(done, taste, asked),
            taste=taste,
            effect=self.tastes.effect(taste),
            source="model" if known else "taste" if taste else "popularity",
        )

    def _valued(
        self,
        requests: Sequence[Request],
        people: Sequence[Person],
        items_BR: np.ndarray,
        score_BR: np.ndarray,
        clock: "_Clock",
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """The value of each candidate [B, R], and where there is ranking what the ranker expects [B, R, T].

        The third are the gates of its experts where it has some; [B, R, T, E].
        """
        histories = [person.history for person in people]
        prediction_BRT: np.ndarray | None = None
        gates_BRTE: np.ndarray | None = None
        if self.ranks:
            with clock("features"):
                columns = self.encode(requests, histories, items_BR, score_BR)
            with clock("rank"):
                predictions, gates = self.ranked(columns.batch(together=items_BR.shape[1]))
                prediction_BRT = predictions.reshape(*items_BR.shape, -1)
                gates_BRTE = None if gates is None else gates.reshape(*items_BR.shape, *gates.shape[1:])
        with clock("blend"):
            value_BR = self.blend.values(score_BR, prediction_BRT)
            if self._of_retriever:
                # A ranker of what was retrieved has learned from lists of people with a history alone.
                known_B = np.array([any(event.item_id in self.item_index for event in past) for past in histories])
                value_BR = np.where(known_B[:, None], value_BR, score_BR)
            for b, person in enumerate(people):
                if person.effect is not None:
                    value_BR[b] += person.effect.shift(items_BR[b])
        return value_BR, prediction_BRT, gates_BRTE

    def _reasons(
        self, request: Request, person: Person, items_K: np.ndarray, gates_KTE: np.ndarray | None
    ) -> list[Reason]:
        past = self.retrieval.past([request], [person.history])
        because: list[list[tuple[int, float]]] = [[] for _ in items_K]
        if len(past.items_N) and len(items_K):
            because = speaking(self.scorer, past, items_K)
        return [
            reason(
                [(self.item_ids[item], share) for item, share in because[k]],
                frozenset(person.taste.liked_items),
                self.tastes.liked_category(person.taste, int(items_K[k])),
                {} if gates_KTE is None else heard(gates_KTE[k], self.encoder.schema),
            )
            for k in range(len(items_K))
        ]

    def retrieve(
        self,
        requests: Sequence[Request],
        histories: Sequence[Sequence[Event]],
        effects: Sequence[Effect | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Retrieval.retrieve`; [B, R] each."""
        return self.retrieval.retrieve(requests, histories, effects)

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
            for request, moment in zip(requests, times_of(requests).tolist(), strict=True)
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
        past = self.retrieval.past(requests, histories)
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

    def predictions(self, batch: Batch) -> np.ndarray:
        """The ranker's calibrated predictions for encoded examples, see `recsys.roles.predictions`; float32 [B, T]."""
        return self.ranked(batch)[0]

    def ranked(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        """The same, and the gates of the ranker's experts; float32 [B, T, E], None where it has none."""
        with torch.inference_mode():
            outputs = self.bundle.ranker(batch)
            predictions_BT = self.bundle.predictions(outputs["logits_BT"]).numpy()
            return predictions_BT, outputs["gates_BTE"].numpy() if "gates_BTE" in outputs else None

    def observe(self, events: Sequence[Event]) -> list[Outcome]:
        """Apply what happened, in order; what became of each."""
        interactions = [self._labelled(event) for event in events if self._is_interaction(event)]
        applied = iter(self.store.append(interactions, [self.moment.increments(event) for event in interactions]))
        return [
            "ignored" if not self._is_interaction(event) else "applied" if next(applied) else "repeated"
            for event in events
        ]

    def taste(self, user_id: Id) -> Taste:
        """What a person has said; likes with their times, of which the latest is last."""
        return self.store.taste(user_id)

    def set_taste(self, user_id: Id, taste: Taste, timestamp: int | None = None) -> Taste:
        """Keep this in place of what a person has said before: the next feed follows it.

        Args:
            user_id: who.
            taste: all that is to be known; what was liked before keeps its time.
            timestamp: when what is new was said, Unix time, ms; None: now.

        Returns:
            What is kept.

        Raises:
            InputError: it names an item or a category that this model does not know, and was not said before.
        """
        before = self.store.taste(user_id)
        self.tastes.require_known(taste, before)
        after = taste.said_after(before, now_ms() if timestamp is None else timestamp)
        self.store.set_taste(user_id, after)
        return after

    def erase(self, user_id: Id) -> bool:
        """Forget a person: history, taste, and all that is counted by them; whether anything was known.

        What is counted by items, or by what people have in common, stays: it is of nobody.
        """
        return self.store.erase(user_id, self.moment.keys_of(user_id, self.store.history(user_id)))

    def _like(self) -> tuple[str, float | None]:
        """Action and value of the interaction that a liked item counts as."""
        actions = self.label.actions or sorted(self.history_actions) or list(self.moment.actions)
        return (actions[0] if actions else ""), self.label.at_least

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


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent = (time.perf_counter() - started) * 1000
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent
