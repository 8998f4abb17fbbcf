"""The wire: what a request may say and what a response says, checked by pydantic, described by OpenAPI."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

Text = Annotated[StrictStr, Field(max_length=256)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Id = Annotated[Number | Text, Field(description="number or text, as in the log")]
PathId = Annotated[str, Path(max_length=256, description="number or text, as in the log")]
Timestamp = Annotated[StrictInt, Field(ge=0, le=4_102_444_800_000, description="Unix time, milliseconds")]
Context = Annotated[
    dict[Text, Text | Number | float | bool | None],
    Field(max_length=64, description="values of the log's context columns"),
]

MOST_SHOWN = 500
"""The longest feed."""
MOST_CANDIDATES = 1000
"""The most items that one request may have ranked."""
MOST_EVENTS = 1000
"""The most events of one request."""
MOST_TASTE = 500
"""The most entries of each list of a taste."""


class Message(BaseModel):
    """Refuses unknown keys, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _example(**values: Any) -> ConfigDict:
    """What OpenAPI shows of a request."""
    return ConfigDict(json_schema_extra={"examples": [values]})


class Problem(Message):
    """Every answer that is no success."""

    detail: str = Field(description="what is wrong, and what to do")
    request_id: str = Field(description="as in the log of requests and the header X-Request-Id")


class RecommendRequest(Message):
    """Ask for a feed."""

    model_config = _example(user_id=294, k=3)

    user_id: Id
    k: StrictInt = Field(default=20, ge=1, le=MOST_SHOWN, description="length of the feed")
    timestamp: Timestamp | None = Field(default=None, description="moment of the request; now if not given")
    exclude_seen: bool = Field(default=True, description="leave out what is in the history")
    context: Context = {}
    explain: bool = Field(default=False, description="say for each item why")


class RankRequest(Message):
    """Ask for an order of given items."""

    model_config = _example(user_id=294, candidates=[313, 286, 258])

    user_id: Id
    candidates: list[Id] = Field(min_length=1, max_length=MOST_CANDIDATES)
    timestamp: Timestamp | None = Field(default=None, description="moment of the request; now if not given")
    context: Context = {}
    explain: bool = Field(default=False, description="say for each item why")


class Because(Message):
    """An item that speaks for another."""

    item_id: int | str
    title: str
    share: float = Field(description="of the score")


class ReasonMessage(Message):
    """Why an item is in a feed."""

    because: list[Because] = Field(description="items of the history or the taste that speak most for it, best first")
    experts: dict[str, dict[str, float]] = Field(description="by task: share of each expert of the ranker")
    liked_category: str | None = Field(description="a category that the person likes and the item has")
    source: Literal["history", "taste", "popular"]


class Item(Message):
    """An item of the catalogue."""

    item_id: int | str
    title: str
    categories: list[str]


class FeedItem(Item):
    """One place of a feed."""

    score: float = Field(description="the value of the item, by which the feed is ordered unless its config says more")
    retrieval_score: float
    probability: float | None = Field(description="the ranker's probability of the label")
    propensity: float | None = Field(
        description="chance of this item at this place, given those above; null where nothing is ever left to chance"
    )
    reason: ReasonMessage | None = Field(default=None, description="where it was asked for")


class Served(Message):
    """Which model spoke."""

    variant: str = Field(description="name of the variant that the person is given")
    model: str = Field(description="name of the bundle")
    request_id: str


class RecommendResponse(Served):
    """A feed."""

    user_id: int | str
    items: list[FeedItem]
    source: Literal["model", "taste", "popularity"] = Field(
        description="taste: nothing is known but what the person says they like; popularity: not even that"
    )
    fallback: Literal["deadline", "store"] | None = Field(
        description="why what is popular is shown instead of the model's feed: the deadline would have passed, or the "
        "store could not be read"
    )
    latency_ms: dict[str, float] = Field(description="by stage; `queue` is the wait before the model")


class RankResponse(RecommendResponse):
    """Candidates in the order of their value."""

    unknown: list[int | str] = Field(description="candidates that the model does not know, as they were given")


class SimilarRequest(Message):
    """Ask for items like one."""

    model_config = _example(item_id=313, k=3)

    item_id: Id
    k: StrictInt = Field(default=20, ge=1, le=MOST_SHOWN)


class SimilarItem(Item):
    """An item like another."""

    score: float


class SimilarResponse(Served):
    """Items like one, the most similar first."""

    item_id: int | str
    items: list[SimilarItem]


class EventMessage(Message):
    """Something that happened."""

    user_id: Id
    item_id: Id
    event_id: Text = Field(default="", description="the same id is applied once, however often it is sent")
    timestamp: Timestamp | None = Field(
        default=None, description="now if not given; a time that is yet to come counts as now"
    )
    action: Annotated[StrictStr, Field(max_length=64)] = Field(
        default="", description="what happened, as the log names it"
    )
    value: float | None = Field(default=None, description="how much of it: a rating, seconds, …")
    request_id: Text | None = Field(default=None, description="of the feed that it followed; for the log of events")
    position: Annotated[StrictInt, Field(ge=1, le=MOST_SHOWN)] | None = Field(
        default=None, description="its place in that feed, from 1; for the log of events"
    )


class EventsRequest(Message):
    """Events of one or more people, in the order they happened."""

    model_config = _example(
        events=[{"user_id": 294, "item_id": 313, "action": "rating", "value": 5, "event_id": "7f3a"}]
    )

    events: list[EventMessage] = Field(min_length=1, max_length=MOST_EVENTS)


class EventsResponse(Message):
    """What became of them."""

    applied: int = Field(description="entered histories and counters")
    ignored: int = Field(description="of an action that is no interaction for this model")
    repeated: int = Field(description="of an event_id that was applied before")
    outcomes: list[Literal["applied", "ignored", "repeated"]] = Field(description="of each event, in order")
    request_id: str


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
    request_id: str


class TasteMessage(Message):
    """What a person says they like and dislike; what is liked cannot be disliked too."""

    model_config = _example(liked_items=[313], disliked_items=[286], liked_categories=["Drama"])

    liked_items: list[Id] = Field(default=[], max_length=MOST_TASTE, description="the latest last")
    disliked_items: list[Id] = Field(default=[], max_length=MOST_TASTE, description="never shown")
    liked_categories: list[Text] = Field(default=[], max_length=MOST_TASTE)
    disliked_categories: list[Text] = Field(default=[], max_length=MOST_TASTE)


class TasteResponse(Message):
    """The taste that is kept."""

    user_id: int | str
    liked_items: list[int | str]
    disliked_items: list[int | str]
    liked_categories: list[str]
    disliked_categories: list[str]
    titles: dict[str, str] = Field(description="of the items, by their ids as text")
    request_id: str


class EraseResponse(Message):
    """A person is forgotten."""

    user_id: int | str
    erased: bool = Field(description="whether anything was kept of them")
    request_id: str


class ItemsResponse(Message):
    """Items whose titles have what was looked for; those that begin with it first."""

    items: list[Item]
    request_id: str


class UsersResponse(Message):
    """Some of the people that the model knows."""

    users: list[int | str]
    request_id: str


class VariantMessage(Message):
    """A variant and its model."""

    variant: str
    model: str
    shadow: bool = Field(description="asked too, and never shown")
    card: dict[str, Any] = Field(description="data, date, metrics, schema, versions")


class Deploying(Message):
    """Which deployment is served, and which is asked for."""

    deployment: dict[str, Any] | None = Field(description="number, made, variants with bundle and share")
    asked: int = Field(description="number of the deployment that is asked for")
    problem: str | None = Field(description="why that is not served")


class ModelResponse(Message):
    """What is served."""

    variants: list[VariantMessage]
    deployment: Deploying
    request_id: str


class ReloadResponse(Message):
    """What is served after looking for another deployment."""

    changed: bool
    variants: dict[str, str] = Field(description="model of each variant")
    request_id: str


class Health(Message):
    """The replica lives."""

    status: Literal["ok"]


class Ready(Message):
    """Feeds are the model's."""

    status: Literal["ready"]
    models: dict[str, str] = Field(description="of each variant")
    deployment: Deploying
