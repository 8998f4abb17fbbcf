"""The HTTP application of a service: all endpoints behind one gate, every error as one message. Needs no Ray."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from features import registry
from serving.gate import Gate, problem, told_of
from serving.protocol import Problem
from serving.refusals import ERRORS, refused
from serving.service import Service

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": says}
    for status, says in {
        400: "The body is no JSON.",
        401: "No key, or one that is not known.",
        403: "The key has not the scope that this needs.",
        404: "There is no such path.",
        405: "The path has other methods.",
        413: "The body is too long; it was not read.",
        422: "The request cannot be meant: `detail` says which field, and why.",
        429: "More requests than the key may send; `Retry-After` says when to come again.",
        503: "Too much waits, or the store cannot be reached; `Retry-After` says when to come again.",
    }.items()
}


def build(service: Service) -> FastAPI:
    """Every router in `serving/endpoints`, around one service."""
    # FastAPI's own pages of the API load scripts from elsewhere; `endpoints/web.py` has one that does not.
    app = FastAPI(
        title="Feedline",
        version=version("feedline"),
        summary="A ranked feed for a person.",
        responses=REFUSALS,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for name in registry.known("serving.endpoints"):
        app.include_router(registry.load("serving.endpoints", name, "endpoint").router)
    app.add_middleware(Gate, service=service)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        refusal = refused(service, error)
        assert refusal is not None
        return problem(told_of(request), *refusal)

    for kind in ERRORS:
        app.add_exception_handler(kind, refuse)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return problem(told_of(request), 422, f"{field}: {first['msg']}")

    @app.exception_handler(StarletteHTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(told_of(request), error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    return app
