"""What every request passes: its id, whose key it has, how often, how much it says; and the line that is left of it."""

import re
import secrets
import time
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request, Security, params
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.online import Id
from serving import auth

if TYPE_CHECKING:
    from serving.service import Service

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_BEARER = HTTPBearer(auto_error=False, description="a key that `python -m serving.keys` has made")


@dataclass
class Told:
    """What is known of a request, for its answer, the log and the metrics."""

    request_id: str
    began: float
    """By the monotonic clock, s."""
    key: auth.Key | None = None
    status: int = 499
    """Of the answer; 499 where the caller has left before it."""
    variant: str = ""
    model: str = ""
    fallback: str | None = None
    user: Id | None = None
    items: list[Id] = field(default_factory=list[Id])


class Gate:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, service: "Service") -> None:
        self._app, self._service = app, service
        self._most = service.config.limits.body_kb * 1024

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it before its body is read; then write down what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        told = Told(request_id, time.monotonic())
        scope.setdefault("state", {})["told"] = told
        started, read = False, 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, self._too_long())
            return message

        async def marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                told.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", told.request_id.encode())]
            await send(message)

        try:
            refusal = self._refusal(scope["path"], headers, told)
            if refusal is not None:
                await refusal(scope, receive, marked)
            else:
                await self._app(scope, limited, marked)
        except Exception as error:
            self._service.log.defect(told.request_id, error)
            if not started:
                await problem(told, 500, "a defect of this service; its log has the request_id")(scope, receive, marked)
        finally:
            self._service.leave(told, getattr(scope.get("route"), "path", "unmatched"))

    def _refusal(self, path: str, headers: dict[bytes, bytes], told: Told) -> JSONResponse | None:
        """The answer to a request that is not let in."""
        service = self._service
        if path.startswith("/v1/") or path == "/metrics":
            if service.keys is None:
                told.key = auth.ANYBODY
            elif (presented := headers.get(b"authorization")) is not None:
                kind, _, secret = presented.decode("latin-1").partition(" ")
                told.key = service.keys.find(secret.strip()) if kind.lower() == "bearer" else None
                if told.key is None:
                    service.metrics.refused.labels(reason="key").inc()
                    return problem(told, 401, "this key is not known; send one in the header Authorization: Bearer …")
            if told.key is not None and (wait := service.rates.take(told.key.name, told.key.rate)):
                service.metrics.refused.labels(reason="rate").inc()
                return problem(told, 429, "more requests than this key may send; send fewer a second", wait)
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            length = 0
        if length > self._most:
            service.metrics.refused.labels(reason="size").inc()
            return problem(told, 413, self._too_long())
        return None

    def _too_long(self) -> str:
        return f"the body is longer than {self._most:,} bytes; send less at a time"


def told_of(request: Request) -> Told:
    """What is known of a request."""
    return request.state.told


def problem(told: Told, status: int, detail: str, retry_after_s: float | None = None) -> JSONResponse:
    """The answer that is no success."""
    headers: dict[str, str] = {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, ceil(retry_after_s)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 413:
        headers["Connection"] = "close"
    # A detail may quote what was sent, and that may be no text at all.
    detail = detail.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": detail, "request_id": told.request_id}, status, headers)


def _needs(scope: auth.Scope) -> params.Depends:
    """A dependency: the request's key has this scope."""

    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        key = told_of(request).key
        if key is None:
            raise HTTPException(401, "a key is needed; send one in the header Authorization: Bearer …")
        if scope not in key.scopes:
            raise HTTPException(403, f"the key {key.name!r} has no scope {scope!r}; make one that has it")

    return Depends(check)


READ, WRITE, ADMIN = _needs("read"), _needs("write"), _needs("admin")
"""For `dependencies=[…]` of a router or an endpoint."""

Telling = Annotated[Told, Depends(told_of)]
"""An endpoint's parameter of this type is what is known of the request."""
