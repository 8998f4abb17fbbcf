"""`POST /v1/events`: what people did; the next feed knows it. `GET /v1/users/{id}/history`: what is kept of them."""

import time

from fastapi import APIRouter

from features.online import Event
from serving.protocol import EventsRequest, EventsResponse, HistoryEvent, HistoryResponse
from serving.service import Serving

router = APIRouter(prefix="/v1", tags=["events"])


@router.post("/events")
async def post_events(posted: EventsRequest, service: Serving) -> EventsResponse:
    """Apply events in the order given."""
    now = time.time_ns() // 1_000_000
    events = [
        Event(
            user_id=service.user(event.user_id),
            item_id=service.item(event.item_id),
            timestamp=now if event.timestamp is None else event.timestamp,
            action=event.action,
            value=event.value,
        )
        for event in posted.events
    ]
    outcomes = service.recommender.observe(events)
    return EventsResponse(applied=outcomes.count("applied"), ignored=outcomes.count("ignored"))


@router.get("/users/{user_id}/history")
async def history(user_id: str, service: Serving) -> HistoryResponse:
    """The history of a person, oldest first."""
    user = service.user(user_id)
    events = service.history(user)
    return HistoryResponse(
        user_id=user,
        events=[
            HistoryEvent(item_id=event.item_id, timestamp=event.timestamp, action=event.action, value=event.value)
            for event in events
        ],
        titles=[service.title(event.item_id) for event in events],
    )
