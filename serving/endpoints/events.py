"""`POST /v1/events`: what people did; the next feed knows it. `GET /v1/users/{id}/history`: what is kept of them."""

import time
from typing import Any

from fastapi import APIRouter

from features.online import Event
from serving.gate import READ, WRITE, Telling
from serving.protocol import EventMessage, EventsRequest, EventsResponse, HistoryEvent, HistoryResponse, PathId
from serving.service import Serving

router = APIRouter(prefix="/v1", tags=["events"])


@router.post("/events", dependencies=[WRITE])
async def post_events(posted: EventsRequest, service: Serving, told: Telling) -> EventsResponse:
    """Apply events in the order given. With an `event_id` each, the same request may be sent again: 503 asks for it."""
    model = service.variants.control.model
    now = time.time_ns() // 1_000_000
    events = [
        Event(
            user_id=model.user(event.user_id),
            item_id=model.item(event.item_id),
            timestamp=now if event.timestamp is None else min(event.timestamp, now),
            action=event.action,
            value=event.value,
            event_id=event.event_id,
        )
        for event in posted.events
    ]
    rows = [_row(event, message) for event, message in zip(events, posted.events, strict=True)]
    outcomes = await service.observe(events, rows)
    return EventsResponse(
        applied=outcomes.count("applied"),
        ignored=outcomes.count("ignored"),
        repeated=outcomes.count("repeated"),
        outcomes=outcomes,
        request_id=told.request_id,
    )


@router.get("/users/{user_id}/history", dependencies=[READ])
async def history(user_id: PathId, service: Serving, told: Telling) -> HistoryResponse:
    """The history of a person, oldest first."""
    user, variant = service.chosen(told, user_id)
    events = await service.of_store("history", lambda: service.store.history(user))
    return HistoryResponse(
        user_id=user,
        events=[
            HistoryEvent(item_id=event.item_id, timestamp=event.timestamp, action=event.action, value=event.value)
            for event in events
        ],
        titles=[variant.model.title(event.item_id) for event in events],
        request_id=told.request_id,
    )


def _row(event: Event, message: EventMessage) -> dict[str, Any]:
    """A row of the log of events."""
    return {
        "user_id": event.user_id,
        "item_id": event.item_id,
        "timestamp": event.timestamp,
        "action": event.action,
        "value": event.value,
        "event_id": event.event_id,
        "request_id": message.request_id,
        "position": message.position,
        "propensity": None,
    }
