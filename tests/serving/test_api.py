"""The HTTP application of a real bundle: parity with the recommender, events that matter at once, clean refusals."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from features.examples import Examples
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import inference
from recsys.inference import Recommender, Request
from recsys.replay.runner import events
from tests.conftest import FinishedRun
from tests.serving.conftest import serving


def test_feeds_over_http_equal_the_recommenders_while_events_arrive(
    client: TestClient, finished_run: FinishedRun
) -> None:
    loaded = bundles.load(finished_run.directory / "bundle" / "time")
    own = Recommender(loaded, MemoryStore(), inference.Config())
    own.seed()
    tail = Examples.open(finished_run.directory / "examples" / "time").interactions(2)
    for event in events(tail.head(60)):
        asked = {"user_id": event.user_id, "k": 10, "timestamp": event.timestamp}
        answer = client.post("/v1/recommend", json=asked).json()
        expected = own.recommend(Request(user_id=event.user_id, k=10, timestamp=event.timestamp))
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
        assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in expected.items])
        assert answer["source"] == expected.source
        message = {name: getattr(event, name) for name in ("user_id", "item_id", "timestamp", "action", "value")}
        assert client.post("/v1/events", json={"events": [message]}).json()["outcomes"] == ["applied"]
        own.observe([event])


def test_an_event_leaves_the_feed_and_enters_the_history(client: TestClient) -> None:
    first = client.post("/v1/recommend", json={"user_id": 1, "k": 5}).json()["items"][0]["item_id"]
    click = {"user_id": 1, "item_id": first, "action": "click"}
    client.post("/v1/events", json={"events": [click]})
    shown = client.post("/v1/recommend", json={"user_id": 1, "k": 5}).json()["items"]
    assert first not in [item["item_id"] for item in shown]
    history = client.get("/v1/users/1/history").json()
    assert history["events"][-1]["item_id"] == first
    again = client.post("/v1/recommend", json={"user_id": 1, "k": 200, "exclude_seen": False}).json()["items"]
    assert first in [item["item_id"] for item in again]


def test_an_impression_is_no_interaction(client: TestClient) -> None:
    before = client.get("/v1/users/1/history").json()["events"]
    client.post("/v1/events", json={"events": [{"user_id": 1, "item_id": 3, "action": "impression"}]})
    assert client.get("/v1/users/1/history").json()["events"] == before


def test_a_stranger_gets_what_is_popular(client: TestClient) -> None:
    answer = client.post("/v1/recommend", json={"user_id": 10**9, "k": 5}).json()
    assert answer["source"] == "popularity"
    assert len(answer["items"]) == 5


def test_chances_travel_with_a_feed_and_a_feed_asked_for_again_is_the_same(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    blend = {
        "diversity": {"strength": 0.3},
        "caps": {"most": 4},
        "exploration": {"slots": [2, 5], "pool": 20},
    }
    recommend = inference.Config.model_validate({"blend": blend})
    bundle = finished_run.directory / "bundle" / "time"
    own = Recommender(bundles.load(bundle), MemoryStore(), recommend)
    own.seed()
    with serving(finished_run, tmp_path, recommend=recommend) as client:
        asked = {"user_id": 1, "k": 8, "timestamp": 1_800_000_000_000}
        items = client.post("/v1/recommend", json=asked).json()["items"]
        assert client.post("/v1/recommend", json=asked).json()["items"] == items
    assert [place for place, item in enumerate(items, start=1) if item["propensity"] < 1] == [2, 5]
    assert all(1 / 20 <= items[place - 1]["propensity"] <= 1 / 8 for place in (2, 5))
    expected = own.recommend(Request(user_id=1, k=8, timestamp=1_800_000_000_000))
    assert [item["item_id"] for item in items] == [item.item_id for item in expected.items]
    assert [item["propensity"] for item in items] == [item.propensity for item in expected.items]


def test_a_feed_that_leaves_nothing_to_chance_has_no_propensities(client: TestClient) -> None:
    items = client.post("/v1/recommend", json={"user_id": 1, "k": 5}).json()["items"]
    assert [item["propensity"] for item in items] == [None] * 5


@pytest.mark.parametrize("index", ["exact", "tree"])
def test_what_was_seen_comes_again_when_its_time_is_over(finished_run: FinishedRun, index: str) -> None:
    loaded = bundles.load(finished_run.directory / "bundle" / "time")
    config = {"retrieved": 500, "index": index, "budget": 500, "blend": {"seen_again_after": "7d"}}
    own = Recommender(loaded, MemoryStore(), inference.Config.model_validate(config))
    own.seed()
    users = [user for user in loaded.users["user_id"].to_list()[1:] if len(own.store.history(user)) > 5][:10]
    weeks = [own.store.history(user)[-1].timestamp + 3 * 86_400_000 for user in users]
    requests = [
        Request(user_id=user, k=500, timestamp=now, exclude_seen=hides)
        for hides in (True, False)
        for user, now in zip(users, weeks, strict=True)
    ]
    feeds = [{item.item_id for item in response.items} for response in own.recommend_many(requests)]
    again = 0
    for hiding, showing, user, now in zip(feeds, feeds[len(users) :], users, weeks, strict=False):
        history = own.store.history(user)
        recent = {event.item_id for event in history if event.timestamp > now - 7 * 86_400_000}
        assert recent
        assert hiding == showing - recent
        again += len({event.item_id for event in history} & hiding)
    assert again > 0


def test_a_feed_is_never_longer_than_what_is_left(client: TestClient) -> None:
    shown = client.post("/v1/recommend", json={"user_id": 1, "k": 500}).json()["items"]
    seen = {event["item_id"] for event in client.get("/v1/users/1/history").json()["events"]}
    found = [item["item_id"] for item in shown]
    assert len(set(found)) == len(found)
    assert not seen & set(found)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommend", {"user_id": 1, "k": 0}),
        ("/v1/recommend", {"user_id": 1, "k": 10**6}),
        ("/v1/recommend", {"user_id": 1.5}),
        ("/v1/recommend", {"user_id": None}),
        ("/v1/recommend", {"user_id": "somebody"}),
        ("/v1/recommend", {"user_id": str(2**64)}),
        ("/v1/recommend", {"user_id": 2**64}),
        ("/v1/recommend", {"user_id": 1, "colour": "red"}),
        ("/v1/recommend", {"user_id": 1, "context": {"device": ["a", "list"]}}),
        ("/v1/events", {"events": []}),
        ("/v1/events", {"events": [{"user_id": 1}]}),
        ("/v1/events", {"events": [{"user_id": 1, "item_id": 1, "timestamp": -1}]}),
    ],
)
def test_bad_requests_are_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json().keys() == {"detail", "request_id"}
    assert answer.json()["detail"]


def test_the_card_says_what_is_served(client: TestClient, finished_run: FinishedRun) -> None:
    [variant] = client.get("/v1/model").json()["variants"]
    assert (variant["variant"], variant["shadow"]) == ("control", False)
    card = variant["card"]
    assert card["run"] == "small"
    assert card["split"] == "time"
    assert client.get("/healthz").json()["status"] == "ok"
