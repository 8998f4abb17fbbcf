"""`GET /v1/items`: items by words of their titles."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from serving.gate import READ, Telling
from serving.model import Model
from serving.protocol import Item, ItemsResponse
from serving.service import Serving

router = APIRouter(prefix="/v1", tags=["items"], dependencies=[READ])


@router.get("/items")
async def items(
    service: Serving,
    told: Telling,
    query: Annotated[str, Query(max_length=256)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> ItemsResponse:
    """Items whose titles have what was looked for, in upper or lower case; those that begin with it come first."""
    model = service.variants.control.model
    found = await asyncio.to_thread(_search, model, query.casefold().strip(), limit)
    return ItemsResponse(items=found, request_id=told.request_id)


def _search(model: Model, query: str, limit: int) -> list[Item]:
    """A look at every title: some ten million a second."""
    begin: list[Item] = []
    have: list[Item] = []
    for item_id in model.recommender.item_ids[1:]:
        title = model.title(item_id)
        place = title.casefold().find(query)
        if place < 0 or (place > 0 and len(have) == limit):
            continue
        found = Item(item_id=item_id, title=title, categories=list(model.categories(item_id)))
        (have if place else begin).append(found)
        if len(begin) == limit:
            break
    return [*begin, *have][:limit]
