"""The wire: what a request may say and what a response says, checked by pydantic, described by OpenAPI."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(max_length=256)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Annotated[Number | Text, Field(description="number or text, as in the log")]
Timestamp = Annotated[int, Field(ge=0, le=4_102_444_800_000, description="Unix time, milliseconds")]


class Message(BaseModel):
    """Refuses unknown keys, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class RecommendRequest(Message):
    """Ask for a feed."""

    user_id: Id
    k: int = Field(default=20, ge=1, le=500, description="length of the feed")
    timestamp: Timestamp | None = Field(default=None, description="moment of the request; now if not given")
    exclude_seen: bool = Field(default=True, description="leave out what is in the history")
    context: dict[str, Text | Number | float | bool | None] = Field(
        default={}, description="values of the log's context columns"
    )


class FeedItem(Message):
    """One place of a feed."""

    item_id: int | str
    title: str
    score: float = Field(description="the value of the item, by which the feed is ordered unless its config says more")
    retrieval_score: float
    probability: float | None = Field(description="the ranker's probability of the label")
    propensity: float | None = Field(
        description="chance of this item at this place, given those above; null where nothing is ever left to chance"
    )


class RecommendResponse(Message):
    """A feed."""

    user_id: int | str
    items: list[FeedItem]
    source: Literal["model", "taste", "popularity"] = Field(
        description="taste: nothing is known but what the person has said; popularity: not even that"
    )
    latency_ms: dict[str, float] = Field(description="by stage, inside the model")


class EventMessage(Message):
    """Something that happened."""

    user_id: Id
    item_id: Id
    timestamp: Timestamp | None = Field(default=None, description="now if not given")
    action: str = Field(default="", max_length=64, description="what happened, as the log names it")
    value: float | None = Field(default=None, description="how much of it: a rating, seconds, …")


class EventsRequest(Message):
    """Events of one or more people, in the order they happened."""

    events: list[EventMessage] = Field(min_length=1, max_length=1000)


class EventsResponse(Message):
    """What became of them."""

    applied: int = Field(description="entered histories and counters")
    ignored: int = Field(description="of an action that is no interaction for this model")


class HistoryEvent(Message):
    """Something that is kept; the limits are the log's, not those of a request."""

    item_id: int | str
    timestamp: int
    action: str
    value: float | None


class HistoryResponse(Message):
    """What is kept of a person, oldest first."""

    user_id: int | str
    events: list[HistoryEvent]
    titles: list[str]
