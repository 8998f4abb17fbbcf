"""A running server as a policy: asked for feeds and told events over HTTP, at the log's own speed or another.

recsys replay CONFIG --through http --replay.http.url http://127.0.0.1:8000 --replay.http.speed 100
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import Field

from features.errors import InputError
from features.online import Event
from features.settings import Settings
from recsys.inference import Recommended, Request, Response


class Config(Settings):
    """The section [replay.http]."""

    url: str = "http://127.0.0.1:8000"
    """Where the server is."""
    key: str = "FEEDLINE_KEY"
    """Environment variable that holds the API key; where it is not set, none is sent."""
    speed: float | None = Field(default=None, gt=0)
    """How many times as fast as it was recorded; None: as fast as it goes."""
    context: tuple[str, ...] = ()
    """Context columns of the log that are sent with a request."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds to wait for an answer."""


@dataclass(frozen=True)
class Server:
    """The policy `server`."""

    config: Config
    name: str = "server"

    @property
    def key(self) -> dict[str, Any]:
        """Who is asked; what it knows is its own."""
        return {"name": self.name, "url": self.config.url}

    def load(self) -> "Client":
        """Connect.

        Raises:
            InputError: nobody answers.
        """
        key = os.environ.get(self.config.key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        client = httpx.Client(base_url=self.config.url, headers=headers, timeout=self.config.timeout)
        try:
            client.get("/healthz").raise_for_status()
        except httpx.HTTPError as error:
            raise InputError(
                f"replay.http.url = {self.config.url!r}: {error}; start a server with `recsys serve CONFIG`"
            ) from None
        return Client(client, self.config)


@dataclass
class Client:
    """The connection; keeps the speed."""

    http: httpx.Client
    config: Config
    _began: tuple[float, int] | None = field(default=None)
    """When the first event was replayed here, seconds of the monotonic clock, and when it was recorded, ms."""

    @property
    def context_columns(self) -> Sequence[str]:
        """Columns that are sent."""
        return self.config.context

    def feeds(self, events: Sequence[Event], requests: Sequence[Request]) -> list[Response]:
        """Ask and tell, one event after the other; latency is what is waited here."""
        found: list[Response] = []
        for event, request in zip(events, requests, strict=True):
            self._wait(event.timestamp)
            question: dict[str, Any] = {"user_id": request.user_id, "k": request.k, "timestamp": request.timestamp}
            question |= {"context": dict(request.context)} if request.context else {}
            began = time.perf_counter()
            answer = self._post("/v1/recommend", question)
            waited = (time.perf_counter() - began) * 1000
            found.append(_response(request, answer, waited))
            self.observe([event])
        return found

    def observe(self, events: Sequence[Event]) -> None:
        """Tell the server."""
        names = ("user_id", "item_id", "timestamp", "action", "value")
        told = [{name: getattr(event, name) for name in names} for event in events]
        self._post("/v1/events", {"events": told})

    def close(self) -> None:
        """Hang up."""
        self.http.close()

    def _wait(self, timestamp: int) -> None:
        if self.config.speed is None:
            return
        if self._began is None:
            self._began = (time.monotonic(), timestamp)
        due = self._began[0] + (timestamp - self._began[1]) / 1000 / self.config.speed
        time.sleep(max(0.0, due - time.monotonic()))

    def _post(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self.http.post(path, json=message)
        except httpx.HTTPError as error:
            raise InputError(f"{self.config.url}{path}: {error or type(error).__name__}; is the server up?") from None
        if answer.is_error:
            raise InputError(
                f"{self.config.url}{path}: status {answer.status_code}: {answer.text[:200]}; "
                f"the replay has stopped (an API key is read from the environment variable {self.config.key})"
            )
        return answer.json()


def _response(request: Request, answer: dict[str, Any], waited: float) -> Response:
    items = tuple(
        Recommended(
            item_id=item["item_id"],
            score=item["score"],
            retrieval_score=item["retrieval_score"],
            probability=item["probability"],
            propensity=item["propensity"],
        )
        for item in answer["items"]
    )
    inside = sum(answer["latency_ms"].values())
    stages = {"server": inside, "the way there and back": max(0.0, waited - inside)}
    return Response(user_id=request.user_id, items=items, source=answer["source"], latency_ms=stages)
