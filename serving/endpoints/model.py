"""`GET /v1/model`: what is served. `GET /healthz`: that it is."""

from typing import Any

from fastapi import APIRouter

from serving.service import Serving

router = APIRouter(tags=["model"])


@router.get("/v1/model")
async def model(service: Serving) -> dict[str, Any]:
    """Run, schema, models and versions behind the feed."""
    return service.card()


@router.get("/healthz")
async def healthz(service: Serving) -> dict[str, str]:
    """Answers once the replica has its bundle and store."""
    return {"status": "ok", "run": service.bundle.config["run"]["name"]}
