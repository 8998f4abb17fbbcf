"""`GET /v1/model`: what is served. `POST /v1/admin/reload`: look for another. `/healthz`, `/readyz`, `/metrics`."""

import asyncio

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

from serving.gate import ADMIN, READ, Telling
from serving.metrics import CONTENT_TYPE
from serving.protocol import Deploying, Health, ModelResponse, Ready, ReloadResponse, VariantMessage
from serving.service import Serving

router = APIRouter(tags=["model"])


@router.get("/v1/model", dependencies=[READ])
async def model(service: Serving, told: Telling) -> ModelResponse:
    """Data, date, metrics, schema and versions behind the feed, of each variant."""
    served = [(variant, False) for variant in service.variants.all]
    served += [(variant, True) for variant in service.variants.shadows]
    return ModelResponse(
        variants=[
            VariantMessage(variant=variant.name, model=variant.model.name, shadow=shadow, card=variant.model.card())
            for variant, shadow in served
        ],
        deployment=Deploying.model_validate(service.variants.state),
        request_id=told.request_id,
    )


@router.post("/v1/admin/reload", dependencies=[ADMIN])
async def reload(service: Serving, told: Telling) -> ReloadResponse:
    """Look now whether another deployment is asked for: this replica at once, others within their interval."""
    changed = await asyncio.to_thread(service.variants.refresh)
    return ReloadResponse(
        changed=changed,
        variants={variant.name: variant.model.name for variant in service.variants.all},
        request_id=told.request_id,
    )


@router.get("/healthz")
async def healthz() -> Health:
    """Answers once the replica has its models and its store, whatever becomes of the store."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(service: Serving) -> Ready:
    """Whether feeds are the model's: 503 where the store cannot be reached, and what is popular is shown instead."""
    if service.health.problem is not None:
        raise HTTPException(503, f"feeds show what is popular, events are refused: {service.health.problem}")
    return Ready(
        status="ready",
        models={variant.name: variant.model.name for variant in service.variants.all},
        deployment=Deploying.model_validate(service.variants.state),
    )


@router.get("/metrics", dependencies=[READ], response_class=Response)
async def metrics(service: Serving) -> Response:
    """Figures of all replicas of this host, in Prometheus' text format."""
    return Response(service.shared.exposition(), media_type=CONTENT_TYPE)
