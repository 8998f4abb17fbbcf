"""`POST /v1/recommend`: a feed. `POST /v1/rank`: given items in their order. `POST /v1/similar`: items like one."""

from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Header

from recsys import inference
from serving.gate import READ, Telling
from serving.model import Model
from serving.protocol import (
    Because,
    FeedItem,
    RankRequest,
    RankResponse,
    ReasonMessage,
    RecommendRequest,
    RecommendResponse,
    SimilarItem,
    SimilarRequest,
    SimilarResponse,
)
from serving.service import Answer, Serving

router = APIRouter(prefix="/v1", tags=["feed"], dependencies=[READ])

Deadline = Annotated[
    float | None,
    Header(alias="X-Deadline-Ms", gt=0, le=60_000, description="answer by then, ms; lowers that of the service"),
]


@router.post("/recommend")
async def recommend(
    asked: RecommendRequest,
    service: Serving,
    told: Telling,
    after: BackgroundTasks,
    deadline_ms: Deadline = None,
) -> RecommendResponse:
    """The feed of a person: retrieved, ranked, blended."""
    user, variant = service.chosen(told, asked.user_id)
    request = inference.Request(
        user_id=user,
        k=asked.k,
        timestamp=asked.timestamp,
        exclude_seen=asked.exclude_seen,
        context=asked.context,
        explain=asked.explain,
    )
    answer = await service.feed(variant, request, service.due(told, deadline_ms))
    service.shown(told, answer, variant.model.bundle)
    service.impressions(told, request, answer)
    if service.variants.shadows:
        after.add_task(service.ask_shadows, told, request)
    return RecommendResponse(
        user_id=user,
        items=_items(variant.model, answer.response),
        source=answer.response.source,
        fallback=answer.fallback,
        variant=told.variant,
        model=told.model,
        request_id=told.request_id,
        latency_ms=_latency(answer),
    )


@router.post("/rank")
async def rank(asked: RankRequest, service: Serving, told: Telling, deadline_ms: Deadline = None) -> RankResponse:
    """Given items in the order of their value to a person."""
    user, variant = service.chosen(told, asked.user_id)
    candidates = tuple(variant.model.item(candidate) for candidate in asked.candidates)
    request = inference.Request(user_id=user, timestamp=asked.timestamp, context=asked.context, explain=asked.explain)
    answer = await service.rank(variant, request, candidates, service.due(told, deadline_ms))
    service.shown(told, answer)
    return RankResponse(
        user_id=user,
        items=_items(variant.model, answer.response),
        source=answer.response.source,
        fallback=answer.fallback,
        variant=told.variant,
        model=told.model,
        request_id=told.request_id,
        latency_ms=_latency(answer),
        unknown=list(answer.response.unknown),
    )


@router.post("/similar")
async def similar(asked: SimilarRequest, service: Serving, told: Telling) -> SimilarResponse:
    """The items most like one, as the retriever sees them."""
    variant = service.variants.control
    service.answers(told, variant)
    model = variant.model
    item = model.item(asked.item_id)
    found = await service.of_store("similar", lambda: model.recommender.similar(item, asked.k))
    return SimilarResponse(
        item_id=item,
        items=[
            SimilarItem(
                item_id=like.item_id,
                title=model.title(like.item_id),
                categories=list(model.categories(like.item_id)),
                score=like.score,
            )
            for like in found
        ],
        variant=told.variant,
        model=told.model,
        request_id=told.request_id,
    )


def _items(model: Model, response: inference.Response) -> list[FeedItem]:
    return [
        FeedItem(
            item_id=item.item_id,
            title=model.title(item.item_id),
            categories=list(model.categories(item.item_id)),
            score=item.score,
            retrieval_score=item.retrieval_score,
            probability=item.probability,
            propensity=item.propensity,
            reason=None if item.reason is None else _reason(model, item.reason),
        )
        for item in response.items
    ]


def _reason(model: Model, reason: inference.Reason) -> ReasonMessage:
    return ReasonMessage(
        because=[Because(item_id=item, title=model.title(item), share=share) for item, share in reason.because],
        experts=reason.experts,
        liked_category=reason.liked_category,
        source=reason.source,
    )


def _latency(answer: Answer) -> dict[str, float]:
    return {"queue": answer.waited_s * 1000, **answer.response.latency_ms}
