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
from serving.admission import Refusal, admit, lacks, too_long

if TYPE_CHECKING:
    from serving.service import Service

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it before its body is read; then write down what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        told = Told(request_id(headers.get(b"x-request-id", b"").decode("latin-1")), time.monotonic())
        scope.setdefault("state", {})["told"] = told
        started, read = False, 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if (refusal := too_long(self._service, read)) is not None:
                raise HTTPException(refusal.status, refusal.detail)
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
                await problem(told, *refusal)(scope, receive, marked)
            else:
                await self._app(scope, limited, marked)
        except Exception as error:
            self._service.log.defect(told.request_id, error)
            if not started:
                await problem(told, 500, "a defect of this service; its log has the request_id")(scope, receive, marked)
        finally:
            self._service.leave(told, getattr(scope.get("route"), "path", "unmatched"))

    def _refusal(self, path: str, headers: dict[bytes, bytes], told: Told) -> Refusal | None:
        """Why a request is not let in."""
        if path.startswith("/v1/") or path == "/metrics":
            presented = headers.get(b"authorization")
            refusal = admit(self._service, told, None if presented is None else presented.decode("latin-1"))
            if refusal is not None:
                return refusal
        try:
            length = int(headers.get(b"content-length", b"0"))
        except ValueError:
            length = 0
        return too_long(self._service, length)


def request_id(given: str) -> str:
    """What a caller has named a request, where that can be a name; else one of our own."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


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
        refusal = lacks(told_of(request), scope)
        if refusal is not None:
            raise HTTPException(refusal.status, refusal.detail)

    return Depends(check)


READ, WRITE, ADMIN = _needs("read"), _needs("write"), _needs("admin")
"""For `dependencies=[…]` of a router or an endpoint."""

Telling = Annotated[Told, Depends(told_of)]
"""An endpoint's parameter of this type is what is known of the request."""
