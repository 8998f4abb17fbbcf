"""What a replica holds: models, the lane to them, the store and its health, keys, limits, figures, logs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from fastapi import Depends, Request

from features.errors import StoreError
from features.online import Event, Id, StateStore
from features.settings import Settings
from recsys import inference
from recsys.bundle import Bundle
from recsys.inference import Outcome, Recommender
from serving import events_log as events_logs
from serving import lane as lanes
from serving import limits as limiting
from serving import logs
from serving.auth import Keys
from serving.drift import Drift
from serving.events_log import EventsLog
from serving.gate import Told
from serving.lane import Lane, TooLate
from serving.limits import Rates
from serving.logs import RequestLog
from serving.metrics import Metrics, Shared
from serving.trouble import StoreHealth
from serving.variants import Variant, Variants

EVENTS_SECONDS = 30.0
"""How long events may wait: given up sooner, nobody would know whether they were applied."""

WARM = 5
"""People that a model is asked about before it answers anybody."""


class Config(Settings):
    """What the section [serve] says of requests."""

    keys: str | None = None
    """File of API keys, relative to the run: `python -m serving.keys`. None: no key is needed, on a loopback address
    alone."""
    demo: bool = False
    """Tell some people's ids to `admin` keys, for a page to choose from."""
    limits: limiting.Config = limiting.Config()
    """What a request may say, and how many a key may send."""
    lane: lanes.Config = lanes.Config()
    """How requests wait for the model."""
    log: logs.Config = logs.Config()
    """The log of requests."""
    events: events_logs.Config = events_logs.Config()
    """The log of events, for training."""


class NotWritten(Exception):
    """The log of events cannot be written; nothing entered the store."""


@dataclass(frozen=True)
class Answer:
    """A feed, and how it came about."""

    response: inference.Response
    fallback: Literal["deadline", "store"] | None
    waited_s: float


class Service:
    """Answers requests on one event loop; models and store are asked in the thread of the lane."""

    def __init__(
        self, variants: Variants, store: StateStore, config: Config, directory: Path, figures: Path | None = None
    ) -> None:
        """Begin to serve; `close` ends it.

        Args:
            variants: the models.
            store: theirs.
            config: what [serve] says of requests.
            directory: of the run.
            figures: directory in which the replicas of a server leave their metrics for each other.

        Raises:
            InputError: the file of keys cannot be read.
        """
        # A request is too little work to share between threads, and replicas share the cores.
        torch.set_num_threads(1)
        self.variants, self.store, self.config = variants, store, config
        self.keys = None if config.keys is None else Keys(directory / config.keys)
        self.rates = Rates(config.limits)
        self.metrics = Metrics()
        self.log = RequestLog(config.log, directory, self.metrics)
        self.events_log: EventsLog | None = None
        if config.events.log is not None:
            self.events_log = EventsLog(directory / config.events.log, durable=config.events.durable)
        self.health = StoreHealth(store, lambda: variants.control.model.recommender.seed())
        _warm(variants)
        self.lane = Lane(config.lane)
        self.drift = Drift()
        self.shared = Shared(self.metrics, figures or directory / "metrics")
        self._read_gauges()

    def close(self) -> None:
        """Answer what waits, then release all but the store."""
        self.lane.close()
        self.health.close()
        self.shared.close()
        self.log.close()
        if self.events_log is not None:
            self.events_log.close()

    def due(self, told: Told, deadline_ms: float | None) -> float:
        """When an answer comes too late, by the monotonic clock, s."""
        allowed = self.config.lane.deadline_ms
        return told.began + (allowed if deadline_ms is None else min(allowed, deadline_ms)) / 1000

    def chosen(self, told: Told, given: Id) -> tuple[Id, Variant]:
        """A person's id as the log writes it, and the variant that answers them.

        Raises:
            InputError: there can be no such id.
        """
        user = self.variants.control.model.user(given)
        variant = self.variants.of(user)
        self.answers(told, variant)
        told.user = user
        return user, variant

    def answers(self, told: Told, variant: Variant) -> None:
        """Note which variant a request was given."""
        told.variant, told.model = variant.name, variant.model.name

    async def feed(self, variant: Variant, request: inference.Request, due: float) -> Answer:
        """A feed: the model's, or what is popular where the store or the deadline do not let it be.

        Raises:
            InputError: the request cannot be meant.
            Overloaded: too much is waiting.
        """
        recommender = variant.model.recommender
        return await self._answer(
            "recommend", recommender.recommend_many, request, due, lambda: recommender.popular(request)
        )

    async def rank(
        self, variant: Variant, request: inference.Request, candidates: tuple[Id, ...], due: float
    ) -> Answer:
        """Candidates in their order; the most popular first where `feed` would show what is popular."""
        recommender = variant.model.recommender

        def ranked(_: Sequence[None]) -> list[inference.Response]:
            return [recommender.rank(request, candidates)]

        return await self._answer("rank", ranked, None, due, lambda: popular_first(recommender, request, candidates))

    async def _answer(
        self,
        kind: str,
        together: Callable[[Sequence[Any]], Sequence[inference.Response]],
        argument: object,
        due: float,
        popular: Callable[[], inference.Response],
    ) -> Answer:
        if self.health.problem is None:
            try:
                response, waited_s = await self.lane.run(kind, together, argument, due)
            except TooLate:
                return Answer(popular(), "deadline", 0.0)
            except StoreError as error:
                self.health.unreadable(error)
                self.metrics.store_errors.inc()
            else:
                return Answer(response, None, waited_s)
        return Answer(popular(), "store", 0.0)

    async def of_store(self, kind: str, function: Callable[[], Any]) -> Any:
        """A call of the store or a model, in the lane.

        Raises:
            StoreError: the store cannot be used; say so.
            Overloaded: too much is waiting.
            TooLate: it was not answered in time.
        """
        due = time.monotonic() + self.config.lane.deadline_ms / 1000
        try:
            return await self.lane.call(kind, function, due)
        except StoreError as error:
            self.metrics.store_errors.inc()
            self.health.unreadable(error)
            raise

    async def observe(self, events: Sequence[Event], rows: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Write events down and let them enter the store, in this order; what became of each.

        Raises:
            NotWritten: the log of events cannot be written.
            StoreError: the store cannot be written.
            Overloaded: too much is waiting; none of them was written or applied.
        """

        def write() -> list[Outcome]:
            if self.events_log is not None:
                try:
                    self.events_log.append(rows)
                except OSError as error:
                    self.metrics.log_errors.labels(log="events").inc()
                    raise NotWritten(error.strerror) from error
            return self.variants.observe(events)

        if self.health.problem is not None:
            raise StoreError(self.health.problem)
        try:
            outcomes = await self.lane.call("events", write, time.monotonic() + EVENTS_SECONDS)
        except StoreError:
            self.metrics.store_errors.inc()
            self.health.unwritable()
            raise
        for outcome in outcomes:
            self.metrics.events.labels(outcome=outcome).inc()
        return outcomes

    async def erase(self, user: Id) -> bool:
        """Forget a person; whether anything was there.

        Raises:
            NotWritten: the log of events cannot be written; nothing is forgotten.
            StoreError: the store cannot be written.
        """

        def forget() -> bool:
            if self.events_log is not None:
                try:
                    self.events_log.erase(user, time.time_ns() // 1_000_000)
                except OSError as error:
                    raise NotWritten(error.strerror) from error
            return self.variants.control.model.recommender.erase(user)

        return await self.of_store("erase", forget)

    def shown(self, told: Told, answer: Answer, bundle: Bundle | None = None) -> None:
        """Count an answer; the scores of a feed, whose bundle is given, say whether there is drift."""
        response, metrics = answer.response, self.metrics
        told.fallback = answer.fallback
        told.items = [item.item_id for item in response.items]
        metrics.feeds.labels(source=response.source, variant=told.variant).inc()
        if answer.fallback is not None:
            metrics.fallbacks.labels(reason=answer.fallback).inc()
            return
        metrics.stages.labels(stage="queue").observe(answer.waited_s)
        for stage, milliseconds in response.latency_ms.items():
            metrics.stages.labels(stage=stage).observe(milliseconds / 1000)
        if bundle is not None and response.source == "model":
            self.drift.add(told.model, bundle, [item.score for item in response.items])

    def impressions(self, told: Told, request: inference.Request, answer: Answer) -> None:
        """Write down what was shown, with the chance it had, where [serve.events] asks for it."""
        if self.events_log is None or not self.config.events.impressions:
            return
        now = time.time_ns() // 1_000_000 if request.timestamp is None else request.timestamp
        rows = [
            {
                **request.context,
                "user_id": answer.response.user_id,
                "item_id": item.item_id,
                "timestamp": now,
                "action": "impression",
                "value": None,
                "event_id": f"{told.request_id}/{position}",
                "request_id": told.request_id,
                "position": position,
                # Where nothing is left to chance, what was shown had to be.
                "propensity": 1.0 if item.propensity is None else item.propensity,
                "variant": told.variant,
                "model": told.model,
            }
            for position, item in enumerate(answer.response.items, start=1)
        ]
        try:
            self.events_log.append(rows)
        except OSError:
            self.metrics.log_errors.labels(log="impressions").inc()

    def ask_shadows(self, told: Told, request: inference.Request) -> None:
        """Ask the shadows the same, when nobody waits."""
        for shadow in self.variants.shadows:
            if not self.lane.later(lambda shadow=shadow: self._shadow(shadow, told, request)):
                self.metrics.shadows.labels(variant=shadow.name, outcome="dropped").inc()

    def _shadow(self, shadow: Variant, told: Told, request: inference.Request) -> None:
        began = time.monotonic()
        try:
            found = {item.item_id for item in shadow.model.recommender.recommend(request).items}
        except Exception as error:
            self.metrics.shadows.labels(variant=shadow.name, outcome="failed").inc()
            self.log.defect(told.request_id, error)
            return
        self.metrics.shadows.labels(variant=shadow.name, outcome="answered").inc()
        same = len(found.intersection(told.items)) / max(1, len(told.items))
        entry = {"request_id": told.request_id, "shadow": shadow.name, "model": shadow.model.name}
        self.log.write({**entry, "ms": round((time.monotonic() - began) * 1000, 3), "same_items": round(same, 4)})

    def leave(self, told: Told, endpoint: str) -> None:
        """Count an answered request and write its line."""
        seconds = time.monotonic() - told.began
        key = told.key.name if told.key is not None else ""
        self.metrics.requests.labels(endpoint=endpoint, status=str(told.status), variant=told.variant, key=key).inc()
        self.metrics.seconds.labels(endpoint=endpoint).observe(seconds)
        entry: dict[str, Any] = {
            "request_id": told.request_id,
            "route": endpoint,
            "status": told.status,
            "ms": round(seconds * 1000, 3),
            "key": key,
            "variant": told.variant,
            "model": told.model,
            "fallback": told.fallback,
        }
        if self.log.ids:
            entry |= {"user_id": told.user, "items": told.items}
        self.log.write(entry)

    def _read_gauges(self) -> None:
        read = self.metrics.read
        read("queue_waiting", "Requests that wait for the model.", "", lambda: {"": self.lane.depth().waiting})
        read("queue_seconds", "How long one more would wait.", "", lambda: {"": self.lane.depth().wait_s})
        read("store_up", "Whether the store can be read.", "", lambda: {"": float(self.health.problem is None)})
        read("score_mean", "Of the scores that were shown.", "model", self.drift.means)
        read("score_deviation", "Standard deviation of them.", "model", self.drift.deviations)
        read("score_psi", "How far they are from the bundle's own; above 0.25: far.", "model", self.drift.indices)


def popular_first(recommender: Recommender, request: inference.Request, candidates: Sequence[Id]) -> inference.Response:
    """Known candidates, the most popular first; needs neither store nor model."""
    known = {item: recommender.item_index[item] for item in candidates if item in recommender.item_index}
    score = {item: float(recommender.fallback.log_count_I[index]) for item, index in known.items()}
    return inference.Response(
        user_id=request.user_id,
        items=tuple(
            inference.Recommended(item, score[item], score[item], None, None)
            for item in sorted(score, key=score.__getitem__, reverse=True)
        ),
        source="popularity",
        latency_ms={},
        unknown=tuple(item for item in dict.fromkeys(candidates) if item not in known),
    )


def _warm(variants: Variants) -> None:
    """Ask each model some questions: its first answers take a hundred times longer than all others."""
    for variant in (*variants.all, *variants.shadows):
        recommender = variant.model.recommender
        known = [*islice(recommender.user_index, WARM), ""]
        for user in known:
            recommender.recommend(inference.Request(user_id=user, explain=True))
        recommender.recommend_many([inference.Request(user_id=user) for user in known])


async def _service(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(_service)]
"""An endpoint's parameter of this type is the replica's service."""
