"""The HTTP application of a service: all endpoints, errors as JSON. Needs no Ray."""

from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from features import registry
from features.errors import InputError
from serving.service import Service


def build(service: Service) -> FastAPI:
    """Every router in `serving/endpoints`, around one service."""
    app = FastAPI(title="Feedline", version=version("feedline"), summary="A ranked feed for a person.")
    app.state.service = service
    for name in registry.known("serving.endpoints"):
        app.include_router(registry.load("serving.endpoints", name, "endpoint").router)

    @app.exception_handler(InputError)
    async def refuse(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    return app
