"""What the messages of `feed.proto` say, in the words of `protocol`, where they are checked; and back."""

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from features.online import Id
from serving import feed_pb2, protocol


def recommend_request(said: feed_pb2.RecommendRequest) -> protocol.RecommendRequest:
    """The feed that is asked for.

    Raises:
        pydantic.ValidationError: the request cannot be meant.
    """
    given = _given(said, "k", "timestamp", "exclude_seen")
    return protocol.RecommendRequest.model_validate(
        {**_user(said.user_id), **given, "context": _context(said.context), "explain": said.explain}
    )


def rank_request(said: feed_pb2.RankRequest) -> protocol.RankRequest:
    """The order that is asked for.

    Raises:
        pydantic.ValidationError: the request cannot be meant.
    """
    return protocol.RankRequest.model_validate(
        {
            **_user(said.user_id),
            **_given(said, "timestamp"),
            "candidates": [_kind(candidate) for candidate in said.candidates],
            "context": _context(said.context),
            "explain": said.explain,
        }
    )


def recommend_response(answer: protocol.RecommendResponse) -> feed_pb2.RecommendResponse:
    """A feed."""
    return feed_pb2.RecommendResponse(**_feed(answer))


def rank_response(answer: protocol.RankResponse) -> feed_pb2.RankResponse:
    """An order."""
    return feed_pb2.RankResponse(**_feed(answer), unknown=_ids(answer.unknown))


def _given(said: Message, *names: str) -> dict[str, Any]:
    """Fields that are set: what the others are, `protocol` says."""
    return {name: getattr(said, name) for name in names if said.HasField(name)}


def _user(said: feed_pb2.Id) -> dict[str, Any]:
    user = _kind(said)
    return {} if user is None else {"user_id": user}


def _context(said: Mapping[str, feed_pb2.Value]) -> dict[str, Any]:
    return {name: _kind(value) for name, value in said.items()}


def _kind(said: feed_pb2.Id | feed_pb2.Value) -> Any:
    """The one that is set; None where none is."""
    kind = said.WhichOneof("kind")
    return None if kind is None else getattr(said, kind)


def _feed(answer: protocol.RecommendResponse) -> dict[str, Any]:
    return {
        "user_id": _id(answer.user_id),
        "items": [_item(item) for item in answer.items],
        "source": f"SOURCE_{answer.source.upper()}",
        "fallback": f"FALLBACK_{(answer.fallback or 'none').upper()}",
        "variant": answer.variant,
        "model": answer.model,
        "request_id": answer.request_id,
        "latency_ms": answer.latency_ms,
    }


def _item(item: protocol.FeedItem) -> feed_pb2.FeedItem:
    return feed_pb2.FeedItem(
        item_id=_id(item.item_id),
        title=item.title,
        categories=item.categories,
        score=item.score,
        retrieval_score=item.retrieval_score,
        probability=item.probability,
        propensity=item.propensity,
        reason=None if item.reason is None else _reason(item.reason),
    )


def _reason(reason: protocol.ReasonMessage) -> feed_pb2.Reason:
    return feed_pb2.Reason(
        because=[
            feed_pb2.Because(item_id=_id(one.item_id), title=one.title, share=one.share) for one in reason.because
        ],
        experts={task: feed_pb2.Shares(by_expert=shares) for task, shares in reason.experts.items()},
        liked_category=reason.liked_category,
        source=f"REASON_SOURCE_{reason.source.upper()}",
    )


def _ids(ids: Iterable[Id]) -> list[feed_pb2.Id]:
    return [_id(one) for one in ids]


def _id(one: Id) -> feed_pb2.Id:
    return feed_pb2.Id(number=one) if isinstance(one, int) else feed_pb2.Id(text=one)
