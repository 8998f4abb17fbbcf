"""`POST /v1/recommend`: a feed."""

from fastapi import APIRouter

from recsys.inference import Request
from serving.protocol import FeedItem, RecommendRequest, RecommendResponse
from serving.service import Serving

router = APIRouter(prefix="/v1", tags=["feed"])


# The model is a few milliseconds of computation that hold the interpreter anyway: a thread would only add to them.
@router.post("/recommend")
async def recommend(asked: RecommendRequest, service: Serving) -> RecommendResponse:
    """The feed of a person: retrieved, ranked, blended."""
    user = service.user(asked.user_id)
    request = Request(
        user_id=user, k=asked.k, timestamp=asked.timestamp, exclude_seen=asked.exclude_seen, context=asked.context
    )
    response = service.recommender.recommend(request)
    return RecommendResponse(
        user_id=user,
        items=[
            FeedItem(
                item_id=item.item_id,
                title=service.title(item.item_id),
                score=item.score,
                retrieval_score=item.retrieval_score,
                probability=item.probability,
                propensity=item.propensity,
            )
            for item in response.items
        ],
        source=response.source,
        latency_ms=response.latency_ms,
    )
