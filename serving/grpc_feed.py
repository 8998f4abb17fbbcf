"""The two calls of `feed.proto`: those of `endpoints/recommend.py`, let in, counted and logged as over HTTP."""

import time
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Protocol, TypeVar
from urllib.parse import unquote

from fastapi import BackgroundTasks
from google.protobuf.message import Message
from grpc import StatusCode
from pydantic import ValidationError

from serving import auth, feed_pb2
from serving import grpc_messages as messages
from serving.admission import Refusal, admit, lacks, too_long
from serving.endpoints import recommend as endpoints
from serving.gate import Told, request_id
from serving.grpc_server import REMAINING
from serving.refusals import refused
from serving.service import Service

Response = TypeVar("Response", bound=Message)

CODES = {
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    413: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
}
"""Of refusals, by the status that they have over HTTP, in the log and in the metrics."""

BACK_MS = 10.0
"""How long before a call's deadline its answer is to leave; half of what is left where that is less."""


class Context(Protocol):
    """What a call is told and tells beside its messages: gRPC's own, or Ray's copy of it."""

    def invocation_metadata(self) -> Sequence[tuple[str, str]] | None:
        """What came with the request."""
        ...

    def peer(self) -> str:
        """Where it came from, as `ipv4:127.0.0.1:5` or `ipv6:%5B::1%5D:5`."""
        ...

    def set_code(self, code: StatusCode) -> None:
        """How it ends."""
        ...

    def set_details(self, details: str) -> None:
        """Why."""
        ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """What goes with the answer."""
        ...


class Feed:
    """Answers calls of one service. No error leaves it: Ray would write down each with its traceback."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def recommend(self, said: feed_pb2.RecommendRequest, context: Context) -> feed_pb2.RecommendResponse:
        """The feed of a person."""
        after = BackgroundTasks()

        async def answer(told: Told, deadline_ms: float | None) -> feed_pb2.RecommendResponse:
            asked = messages.recommend_request(said)
            found = await endpoints.recommend(asked, self._service, told, after, deadline_ms)
            return messages.recommend_response(found)

        response = await self._call("Recommend", said, context, answer, feed_pb2.RecommendResponse)
        await after()
        return response

    async def rank(self, said: feed_pb2.RankRequest, context: Context) -> feed_pb2.RankResponse:
        """Given items in their order."""

        async def answer(told: Told, deadline_ms: float | None) -> feed_pb2.RankResponse:
            asked = messages.rank_request(said)
            return messages.rank_response(await endpoints.rank(asked, self._service, told, deadline_ms))

        return await self._call("Rank", said, context, answer, feed_pb2.RankResponse)

    async def _call(
        self,
        name: str,
        said: Message,
        context: Context,
        answer: Callable[[Told, float | None], Awaitable[Response]],
        empty: Callable[[], Response],
    ) -> Response:
        metadata = dict(context.invocation_metadata() or ())
        told = Told(request_id(metadata.get("x-request-id", "")), time.monotonic())
        try:
            refusal = self._refusal(told, said, context.peer(), metadata.get("authorization"))
            if refusal is None:
                try:
                    response = await answer(told, _deadline_ms(metadata))
                    told.status = 200
                    context.set_trailing_metadata([("x-request-id", told.request_id)])
                    return response
                except Exception as error:
                    refusal = self._refusal_of(told, error)
            told.status = refusal.status
            _tell(context, told, refusal)
            return empty()
        finally:
            self._service.leave(told, route(name))

    def _refusal_of(self, told: Told, error: Exception) -> Refusal:
        """What an error tells; a defect is written down."""
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            return Refusal(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
        refusal = refused(self._service, error)
        if refusal is None:
            self._service.log.defect(told.request_id, error)
            refusal = Refusal(500, "a defect of this service; its log has the request_id")
        return refusal

    def _refusal(self, told: Told, said: Message, peer: str, authorization: str | None) -> Refusal | None:
        """Why a call is not let in."""
        service = self._service
        # Ray listens for calls on every address, whatever serve.host says.
        if service.keys is None and not auth.is_loopback(host(peer)):
            service.metrics.refused.labels(reason="key").inc()
            return Refusal(401, "without serve.keys only callers on this host are answered; make keys")
        return admit(service, told, authorization) or lacks(told, "read") or too_long(service, said.ByteSize())


def route(name: str) -> str:
    """What the log and the metrics call a call."""
    return f"/{feed_pb2.DESCRIPTOR.services_by_name['Feed'].full_name}/{name}"


def host(peer: str) -> str:
    """The address of who calls."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]").removeprefix("::ffff:")


def _deadline_ms(metadata: dict[str, str]) -> float | None:
    if REMAINING not in metadata:
        return None
    remaining = float(metadata[REMAINING])
    return max(remaining / 2, remaining - BACK_MS)


def _tell(context: Context, told: Told, refusal: Refusal) -> None:
    trailing = [("x-request-id", told.request_id)]
    if refusal.retry_after_s is not None:
        # The first is for people and libraries of ours, as over HTTP; the second gRPC's retry policies heed.
        trailing.append(("retry-after", str(max(1, ceil(refusal.retry_after_s)))))
        trailing.append(("grpc-retry-pushback-ms", str(ceil(refusal.retry_after_s * 1000))))
    context.set_trailing_metadata(trailing)
    context.set_code(CODES[refusal.status])
    context.set_details(refusal.detail)
