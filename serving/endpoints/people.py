"""`/v1/users/{id}/taste`: what a person says they like. `DELETE /v1/users/{id}`: forget them. `GET /v1/users`: some."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from features.online import Id
from features.taste import Taste
from serving.gate import ADMIN, READ, WRITE, Telling
from serving.model import Model
from serving.protocol import EraseResponse, PathId, TasteMessage, TasteResponse, UsersResponse
from serving.service import Serving

router = APIRouter(prefix="/v1/users", tags=["people"])


@router.get("/{user_id}/taste", dependencies=[READ])
async def get_taste(user_id: PathId, service: Serving, told: Telling) -> TasteResponse:
    """What a person has said."""
    user, variant = service.chosen(told, user_id)
    taste = await service.of_store("taste", lambda: service.store.taste(user))
    return _response(user, taste, variant.model, told.request_id)


@router.put("/{user_id}/taste", dependencies=[WRITE])
async def put_taste(user_id: PathId, said: TasteMessage, service: Serving, told: Telling) -> TasteResponse:
    """Keep this in place of what a person has said before; the next feed follows it."""
    user, variant = service.chosen(told, user_id)
    model = variant.model
    taste = Taste(
        liked_items=tuple(model.item(item) for item in said.liked_items),
        disliked_items=tuple(model.item(item) for item in said.disliked_items),
        liked_categories=tuple(said.liked_categories),
        disliked_categories=tuple(said.disliked_categories),
    )
    await service.of_store("taste", lambda: model.recommender.set_taste(user, taste))
    return _response(user, taste, model, told.request_id)


@router.delete("/{user_id}", dependencies=[ADMIN])
async def erase(user_id: PathId, service: Serving, told: Telling) -> EraseResponse:
    """Forget a person: history, taste, ids of events, counters; their rows of the log of events are left out of it."""
    user, _ = service.chosen(told, user_id)
    return EraseResponse(user_id=user, erased=await service.erase(user), request_id=told.request_id)


@router.get("", dependencies=[ADMIN])
async def users(service: Serving, told: Telling, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> UsersResponse:
    """Some people that the model knows, where `[serve] demo` allows it."""
    if not service.config.demo:
        raise HTTPException(403, "people are told where serve.demo = true alone")
    known = service.variants.control.model.bundle.users["user_id"].slice(1, limit).to_list()
    return UsersResponse(users=known, request_id=told.request_id)


def _response(user: Id, taste: Taste, model: Model, request_id: str) -> TasteResponse:
    items = (*taste.liked_items, *taste.disliked_items)
    return TasteResponse(
        user_id=user,
        liked_items=list(taste.liked_items),
        disliked_items=list(taste.disliked_items),
        liked_categories=list(taste.liked_categories),
        disliked_categories=list(taste.disliked_categories),
        titles={str(item): model.title(item) for item in items},
        request_id=request_id,
    )
