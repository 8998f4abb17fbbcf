"""A client in the wire's own messages, which comes again when it is asked to.

    with Feedline("http://127.0.0.1:8000", key="feedline_…") as feedline:
        feed = feedline.recommend(RecommendRequest(user_id=294, k=3))
        feedline.events([EventMessage(user_id=294, item_id=feed.items[0].item_id, action="click")])

Events are given ids, so that one that is sent twice is applied once.
"""

import random
import time
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel

from features.online import Id
from serving.protocol import (
    EraseResponse,
    EventMessage,
    EventsRequest,
    EventsResponse,
    HistoryResponse,
    ModelResponse,
    Problem,
    RankRequest,
    RankResponse,
    RecommendRequest,
    RecommendResponse,
    SimilarRequest,
    SimilarResponse,
    TasteMessage,
    TasteResponse,
)

Answer = TypeVar("Answer", bound=BaseModel)

AGAIN = frozenset({429, 500, 502, 503, 504})
"""Statuses that ask for the same once more, later. 500 is what the ingress says where a replica has died with it."""


class Refused(Exception):
    """The service said no."""

    def __init__(self, status: int, detail: str, request_id: str) -> None:
        super().__init__(f"{status}: {detail} (request {request_id})")
        self.status, self.detail, self.request_id = status, detail, request_id


def _read(response: httpx.Response, answer: type[Answer]) -> Answer:
    if response.is_success:
        return answer.model_validate_json(response.content)
    try:
        problem = Problem.model_validate_json(response.content)
    except ValueError:
        raise Refused(response.status_code, response.text[:200], response.headers.get("X-Request-Id", "")) from None
    raise Refused(response.status_code, problem.detail, problem.request_id)


def _with_ids(events: Iterable[EventMessage]) -> EventsRequest:
    return EventsRequest(
        events=[
            event if event.event_id else event.model_copy(update={"event_id": uuid.uuid4().hex}) for event in events
        ]
    )


def _headers(deadline_ms: float | None) -> dict[str, str]:
    return {} if deadline_ms is None else {"X-Deadline-Ms": f"{deadline_ms:g}"}


class Feedline:
    """Asks a service; a thread may have one, and threads may share one.

    A request that met a broken connection or a status of `AGAIN` is sent again: feeds
    change nothing, and events have ids.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 5.0,
        retries: int = 3,
        longest_pause_s: float = 5.0,
    ) -> None:
        """Connect when the first request is sent.

        Args:
            url: where the service is.
            key: what `python -m serving.keys` has made; None where none is needed.
            timeout_s: of one attempt.
            retries: how often a request is sent again.
            longest_pause_s: between attempts, whatever `Retry-After` says.
        """
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        self._retries, self._longest_pause_s = retries, longest_pause_s

    def recommend(self, asked: RecommendRequest, *, deadline_ms: float | None = None) -> RecommendResponse:
        """A feed."""
        return self._send("POST", "/v1/recommend", asked, RecommendResponse, deadline_ms)

    def rank(self, asked: RankRequest, *, deadline_ms: float | None = None) -> RankResponse:
        """Given items in their order."""
        return self._send("POST", "/v1/rank", asked, RankResponse, deadline_ms)

    def similar(self, asked: SimilarRequest) -> SimilarResponse:
        """Items like one."""
        return self._send("POST", "/v1/similar", asked, SimilarResponse)

    def events(self, events: Iterable[EventMessage]) -> EventsResponse:
        """Tell what happened; those without an id are given one."""
        return self._send("POST", "/v1/events", _with_ids(events), EventsResponse)

    def history(self, user_id: Id) -> HistoryResponse:
        """What is kept of a person."""
        return self._send("GET", f"/v1/users/{user_id}/history", None, HistoryResponse)

    def taste(self, user_id: Id) -> TasteResponse:
        """What a person says they like."""
        return self._send("GET", f"/v1/users/{user_id}/taste", None, TasteResponse)

    def set_taste(self, user_id: Id, taste: TasteMessage) -> TasteResponse:
        """Keep this in place of it."""
        return self._send("PUT", f"/v1/users/{user_id}/taste", taste, TasteResponse)

    def erase(self, user_id: Id) -> EraseResponse:
        """Forget a person."""
        return self._send("DELETE", f"/v1/users/{user_id}", None, EraseResponse)

    def model(self) -> ModelResponse:
        """What is served."""
        return self._send("GET", "/v1/model", None, ModelResponse)

    def close(self) -> None:
        """Release the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(
        self, method: str, path: str, message: BaseModel | None, answer: type[Answer], deadline_ms: float | None = None
    ) -> Answer:
        content = None if message is None else message.model_dump_json(exclude_unset=True)
        headers = {"Content-Type": "application/json", **_headers(deadline_ms)}
        attempt = 0
        while True:
            response = None
            try:
                response = self._client.request(method, path, content=content, headers=headers)
                pause_s = self._pause_s(attempt, response)
                if pause_s is None:
                    return _read(response, answer)
            except httpx.TransportError:
                pause_s = self._pause_s(attempt, None)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    def _pause_s(self, attempt: int, response: httpx.Response | None) -> float | None:
        """How long to wait before asking again; None: do not."""
        if attempt >= self._retries or (response is not None and response.status_code not in AGAIN):
            return None
        asked = 0.0 if response is None else float(response.headers.get("Retry-After", 0))
        # Not all at once, for that is how they came to be refused.
        return min(self._longest_pause_s, max(asked, 0.05 * 2**attempt) * random.uniform(1.0, 1.5))
