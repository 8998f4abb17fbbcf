"""What goes wrong is told as one message, nothing dies of it, and all is well when it is over."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from serving import keys
from serving.events_log import EventsLog, read
from serving.store import RedisStore
from tests.conftest import FinishedRun, require_program
from tests.serving.conftest import Client, serving

FEED = {"user_id": 1, "k": 5}


def ids(feed: dict[str, Any]) -> list[int]:
    return [item["item_id"] for item in feed["items"]]


def event(item: int = 3, **more: Any) -> dict[str, Any]:
    return {"events": [{"user_id": 1, "item_id": item, "action": "click", **more}]}


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        ({"content": b"x" * 10_000_000}, 413, "longer than 1,048,576 bytes"),
        ({"content": b'{"user_id": 1'}, 422, "JSON decode error"),
        ({"content": b"\xff\xfe"}, 422, "JSON decode error"),
        ({"content": b"[" * 100_000}, 400, "parsing the body"),
        ({"content": b'{"user_id": ' + b"1" * 5_000 + b"}"}, 400, "parsing the body"),
        ({"content": b'{"user_id": "\\ud800"}'}, 422, "body.user_id"),
        ({"content": b'{"user_id": 1, "k": NaN}'}, 422, "body.k"),
        ({"json": {"user_id": 1, "context": {"device": 1e400}}}, 422, "body.context.device"),
        ({"json": {"user_id": 1, "k": 0}}, 422, "body.k: "),
        ({"json": {"user_id": 1, "k": 10**6}}, 422, "body.k: "),
        ({"json": {"user_id": 1, "k": "5"}}, 422, "body.k: "),
        ({"json": {"user_id": [1]}}, 422, "body.user_id"),
        ({"json": [1]}, 422, "body: "),
        ({"json": {"user_id": "x" * 300}}, 422, "body.user_id"),
        ({"json": FEED, "headers": {"X-Deadline-Ms": "soon"}}, 422, "X-Deadline-Ms"),
    ],
)
def test_what_cannot_be_meant(client: Client, sent: dict[str, Any], status: int, says: str) -> None:
    sent = {**sent, "headers": {"content-type": "application/json", "X-Request-Id": "mine", **sent.get("headers", {})}}
    if "json" in sent:
        sent["content"] = json.dumps(sent.pop("json")).encode()
    answer = client.post("/v1/recommend", **sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"
    assert says in answer.json()["detail"]


def test_a_body_of_no_announced_length_is_not_read_to_its_end(client: Client) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1000
            yield b" " * 1000

    answer = client.post("/v1/recommend", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_an_unknown_item_is_told_or_left_out(client: Client) -> None:
    assert client.post("/v1/similar", json={"item_id": 10**9}).status_code == 422
    ranked = client.post("/v1/rank", json={"user_id": 1, "candidates": [5, 10**9, 3, 5]}).json()
    assert ranked["unknown"] == [10**9]
    assert sorted(ids(ranked)) == [3, 5]


def test_keys_open_what_their_scopes_say(finished_run: FinishedRun, tmp_path: Path) -> None:
    made = {scope: keys.add(tmp_path / "keys.json", scope, [scope]) for scope in ("read", "write", "admin")}
    calls = {
        "read": ("POST", "/v1/recommend", FEED),
        "write": ("POST", "/v1/events", event()),
        "admin": ("DELETE", "/v1/users/1", None),
    }
    with serving(finished_run, tmp_path, keys="keys.json") as client:
        for needed, (method, path, body) in calls.items():
            assert client.request(method, path, json=body).status_code == 401
            for scope, key in made.items():
                answer = client.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == (200 if scope == needed else 403), answer.text
            refused = client.request(method, path, json=body, headers={"Authorization": "Bearer feedline_guess"})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {made['read']}"}).status_code == 200


def test_a_key_that_asks_too_often_is_told_when_to_come_again(finished_run: FinishedRun, tmp_path: Path) -> None:
    with serving(finished_run, tmp_path, limits={"rate": 0.5, "burst_s": 10}) as client:
        statuses = [client.get("/v1/model").status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        assert client.get("/v1/model").headers["retry-after"] in ("1", "2")
        assert client.get("/healthz").status_code == 200


def test_nobody_is_named_in_the_log_unless_it_is_asked_for(finished_run: FinishedRun, tmp_path: Path) -> None:
    for ids_too in (False, True):
        folder = tmp_path / str(ids_too)
        with serving(finished_run, folder, log={"path": "log.jsonl", "ids": ids_too}) as client:
            client.post("/v1/recommend", json={"user_id": 123_456_789, "k": 3})
            client.get("/v1/users/123456789/history")
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [line["route"] for line in lines] == ["/v1/recommend", "/v1/users/{user_id}/history"]
        assert lines[0]["status"] == 200
        assert lines[0]["variant"] == "control"
        assert ("123456789" in json.dumps(lines)) is ids_too


def test_a_deadline_that_passes_gives_what_is_popular_and_says_so(client: Client) -> None:
    feed = client.post("/v1/recommend", json=FEED, headers={"X-Deadline-Ms": "0.001"}).json()
    assert (feed["fallback"], feed["source"], len(feed["items"])) == ("deadline", "popularity", 5)
    ranked = client.post("/v1/rank", json={"user_id": 1, "candidates": [5, 3]}, headers={"X-Deadline-Ms": "0.001"})
    assert (ranked.json()["fallback"], sorted(ids(ranked.json()))) == ("deadline", [3, 5])
    assert client.post("/v1/recommend", json=FEED).json()["fallback"] is None
    assert 'feedline_fallbacks_total{reason="deadline"' in client.get("/metrics").text


def test_more_than_can_be_answered_is_refused_at_once_and_then_all_is_well(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    with serving(finished_run, tmp_path, lane={"deadline_ms": 30_000, "wait_ms": 60, "batch": 1}) as client:
        for _ in range(10):
            assert client.post("/v1/recommend", json=FEED).status_code == 200
        with ThreadPoolExecutor(40) as many:
            answers = list(many.map(lambda _: client.post("/v1/recommend", json={"user_id": 2, "k": 500}), range(200)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert client.post("/v1/recommend", json=FEED).status_code == 200
        counted = [line for line in client.get("/metrics").text.splitlines() if 'reason="overload"' in line]
        assert float(counted[0].split()[-1]) == statuses.count(503)


def test_events_are_applied_once_and_written_down_before(finished_run: FinishedRun, tmp_path: Path) -> None:
    with serving(finished_run, tmp_path, events={"log": "events", "impressions": True}) as client:
        feed = client.post("/v1/recommend", json=FEED, headers={"X-Request-Id": "feed-1"}).json()
        sent = event(feed["items"][1]["item_id"], event_id="a", request_id="feed-1", position=2)
        first = client.post("/v1/events", json=sent).json()
        again = client.post("/v1/events", json=sent).json()
        assert (first["outcomes"], again["outcomes"]) == (["applied"], ["repeated"])
        history = client.get("/v1/users/1/history").json()["events"]
        log = client.service.events_log
        assert log is not None
        os.dup2(os.open("/dev/full", os.O_WRONLY), log._descriptor)
        full = client.post("/v1/events", json=event(7, event_id="b"))
        assert full.status_code == 503
        assert "nothing was applied; send it again" in full.json()["detail"]
        assert client.get("/v1/users/1/history").json()["events"] == history
        client.service.events_log = EventsLog(tmp_path / "events")
        assert client.post("/v1/events", json=event(7, event_id="b")).json()["applied"] == 1
    rows = read(tmp_path / "events")
    shown = rows.filter(action="impression")
    assert shown["item_id"].to_list() == ids(feed)
    assert shown["position"].to_list() == [1, 2, 3, 4, 5]
    assert shown["propensity"].to_list() == [1.0] * 5
    clicked = rows.filter(action="click")
    assert clicked.select("item_id", "request_id", "position").rows()[0] == (feed["items"][1]["item_id"], "feed-1", 2)
    assert clicked["event_id"].to_list() == ["a", "b"]


def test_a_clock_that_is_set_back_loses_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ids(client.post("/v1/recommend", json=FEED).json())
    client.post("/v1/events", json=event(shown[0]))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3 * 365 * 86_400 * 10**9)
    assert client.post("/v1/events", json=event(shown[1])).json()["applied"] == 1
    feed = client.post("/v1/recommend", json=FEED).json()
    assert feed["source"] == "model"
    assert not {shown[0], shown[1]} & set(ids(feed))
    kept = [entry["item_id"] for entry in client.get("/v1/users/1/history").json()["events"]]
    assert {shown[0], shown[1]} <= set(kept)


@contextmanager
def redis_server(port: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = [require_program("redis-server"), "--port", str(port), "--dir", str(directory), "--appendonly", "yes"]
    server = subprocess.Popen([*words, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                redis.Redis(port=port).ping()
                break
            except redis.RedisError:
                time.sleep(0.05)
        yield server
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_without_the_store_feeds_show_what_is_popular_and_with_it_again_they_are_the_models(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    port = free_port()
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(port, folder) as server:
        store = RedisStore(f"redis://127.0.0.1:{port}/0")
        with serving(finished_run, tmp_path, store=store) as client:
            own = client.post("/v1/recommend", json=FEED).json()
            assert (own["source"], own["fallback"]) == ("model", None)
            assert client.get("/readyz").status_code == 200
            server.terminate()
            server.wait()
            for _ in range(3):
                feed = client.post("/v1/recommend", json=FEED).json()
                assert (feed["source"], feed["fallback"], len(feed["items"])) == ("popularity", "store", 5)
            refused = client.post("/v1/events", json=event(event_id="a"))
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert "send it again" in refused.json()["detail"]
            assert client.get("/v1/users/1/history").status_code == 503
            assert client.get("/readyz").status_code == 503
            assert client.get("/healthz").status_code == 200
            with redis_server(port, folder):
                until = time.monotonic() + 20
                while client.get("/readyz").status_code != 200 and time.monotonic() < until:
                    time.sleep(0.05)
                assert ids(client.post("/v1/recommend", json=FEED).json()) == ids(own)
                assert client.post("/v1/events", json=event(event_id="a")).json()["applied"] == 1
                assert client.post("/v1/events", json=event(event_id="a")).json()["repeated"] == 1


def test_no_thread_outlives_a_service(finished_run: FinishedRun, tmp_path: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with serving(finished_run, tmp_path) as client:
        client.post("/v1/recommend", json=FEED)
        assert {"lane", "metrics", "store health"} <= {thread.name for thread in threading.enumerate()}
    assert not {"lane", "metrics", "store health"} & ({thread.name for thread in threading.enumerate()} - before)
