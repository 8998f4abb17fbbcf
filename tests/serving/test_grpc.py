"""Feeds over gRPC are those over HTTP, and so is all that is refused; one service answers both."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from serving import feed_pb2 as pb
from serving import keys
from serving.feed_pb2_grpc import FeedServicer, FeedStub
from serving.grpc_feed import Feed, host
from serving.grpc_server import REMAINING, register
from serving.service import Service
from tests.conftest import FinishedRun
from tests.serving.conftest import Client, serving

ASKED = pb.RecommendRequest(user_id=pb.Id(number=1), k=5)


class Servicer(FeedServicer):
    """What a replica has as methods."""

    def __init__(self, service: Service) -> None:
        self._feed = Feed(service)

    async def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        return await self._feed.recommend(request, context)

    async def Rank(self, request: pb.RankRequest, context: Any) -> pb.RankResponse:
        return await self._feed.rank(request, context)


@contextmanager
def calling(service: Service) -> Iterator[FeedStub]:
    """Calls of a gRPC server of this process, on a free port."""
    loop, port, stop = asyncio.new_event_loop(), 0, asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        nonlocal port
        server = grpc.aio.server()
        register(Servicer(service), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        started.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield FeedStub(channel)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def stub(client: Client) -> Iterator[FeedStub]:
    with calling(client.service) as found:
        yield found


def refusal(call: Any, said: Any, **more: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Code, detail and trailing metadata of a call that is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        call(said, **more)
    error: Any = refused.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def plain(answer: pb.RecommendResponse | pb.RankResponse) -> dict[str, Any]:
    """An answer in the words of the JSON over HTTP; without what differs from one request to the next."""

    def known(one: pb.Id) -> int | str:
        return getattr(one, one.WhichOneof("kind") or "")

    def reason(why: pb.Reason) -> dict[str, Any]:
        return {
            "because": [{"item_id": known(one.item_id), "title": one.title, "share": one.share} for one in why.because],
            "experts": {task: dict(shares.by_expert) for task, shares in why.experts.items()},
            "liked_category": why.liked_category if why.HasField("liked_category") else None,
            "source": pb.ReasonSource.Name(why.source).removeprefix("REASON_SOURCE_").lower(),
        }

    def item(one: pb.FeedItem) -> dict[str, Any]:
        return {
            "item_id": known(one.item_id),
            "title": one.title,
            "categories": list(one.categories),
            "score": one.score,
            "retrieval_score": one.retrieval_score,
            "probability": one.probability if one.HasField("probability") else None,
            "propensity": one.propensity if one.HasField("propensity") else None,
            "reason": reason(one.reason) if one.HasField("reason") else None,
        }

    found = {
        "user_id": known(answer.user_id),
        "items": [item(one) for one in answer.items],
        "source": pb.Source.Name(answer.source).removeprefix("SOURCE_").lower(),
        "fallback": None if answer.fallback == pb.FALLBACK_NONE else pb.Fallback.Name(answer.fallback),
        "variant": answer.variant,
        "model": answer.model,
        "stages": set(answer.latency_ms),
    }
    return found | ({"unknown": [known(one) for one in answer.unknown]} if isinstance(answer, pb.RankResponse) else {})


def told(client: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    found.pop("request_id")
    return found | {"stages": set(found.pop("latency_ms"))}


def test_answers_are_those_over_http(client: Client, stub: FeedStub) -> None:
    now = 1_800_000_000_000
    for user in (*range(1, 20), 10**9):
        body = {"user_id": user, "k": 12, "timestamp": now, "exclude_seen": user % 2 == 0, "explain": user % 3 == 0}
        said = pb.RecommendRequest(**{**body, "user_id": pb.Id(number=user)})
        assert plain(stub.Recommend(said)) == told(client, "/v1/recommend", body)
    body = {"user_id": "7", "candidates": [5, 10**9, 3, "8"], "timestamp": now, "explain": True}
    candidates = [pb.Id(number=5), pb.Id(number=10**9), pb.Id(number=3), pb.Id(text="8")]
    said = pb.RankRequest(user_id=pb.Id(text="7"), candidates=candidates, timestamp=now, explain=True)
    assert plain(stub.Rank(said)) == told(client, "/v1/rank", body)
    assert len(stub.Recommend(pb.RecommendRequest(user_id=pb.Id(number=1))).items) == 20


def test_context_travels_as_it_is(client: Client, stub: FeedStub) -> None:
    context = {"text": pb.Value(text="a"), "integer": pb.Value(integer=2), "real": pb.Value(real=0.5)}
    context |= {"truth": pb.Value(truth=True), "unknown": pb.Value()}
    said = pb.RecommendRequest(user_id=pb.Id(number=1), k=5, context=context, timestamp=1_800_000_000_000)
    body = {"text": "a", "integer": 2, "real": 0.5, "truth": True, "unknown": None}
    body = {"user_id": 1, "k": 5, "context": body, "timestamp": 1_800_000_000_000}
    assert plain(stub.Recommend(said)) == told(client, "/v1/recommend", body)


def test_what_is_popular_comes_before_the_deadline_of_the_call(client: Client, stub: FeedStub) -> None:
    assert stub.Recommend(ASKED, timeout=30).fallback == pb.FALLBACK_NONE
    # Nobody is answered by the model before this event, and calls have half a second.
    free = threading.Event()
    assert client.service.lane.later(free.wait)
    try:
        feed = stub.Recommend(ASKED, timeout=0.5)
        ranked = stub.Rank(pb.RankRequest(user_id=pb.Id(number=1), candidates=[pb.Id(number=5)]), timeout=0.5)
    finally:
        free.set()
    assert (feed.fallback, feed.source, len(feed.items)) == (pb.FALLBACK_DEADLINE, pb.SOURCE_POPULARITY, 5)
    assert (ranked.fallback, ranked.items[0].item_id.number) == (pb.FALLBACK_DEADLINE, 5)
    # What is the server's to say is not heeded where the caller says it.
    assert stub.Recommend(ASKED, metadata=[(REMAINING, "soon")]).fallback == pb.FALLBACK_NONE


def test_who_leaves_before_the_answer_costs_no_work(client: Client, stub: FeedStub, tmp_path: Path) -> None:
    free = threading.Event()
    assert client.service.lane.later(free.wait)
    try:
        call = stub.Recommend.future(ASKED)
        until = time.monotonic() + 30
        while client.service.lane.depth().waiting == 0 and time.monotonic() < until:
            time.sleep(0.01)
        call.cancel()
        log = tmp_path / "requests.jsonl"
        while not log.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        assert json.loads(log.read_text())["status"] == 499
        assert client.service.lane.depth().waiting == 0
    finally:
        free.set()


def test_calls_are_logged_and_counted_as_requests(client: Client, stub: FeedStub, tmp_path: Path) -> None:
    answer, call = stub.Recommend.with_call(ASKED, metadata=[("x-request-id", "mine")])
    assert answer.request_id == dict(call.trailing_metadata())["x-request-id"] == "mine"
    client.post("/v1/recommend", json={"user_id": 1})
    first, second = (json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines())
    assert first.keys() == second.keys()
    assert (first["request_id"], first["route"], first["status"]) == ("mine", "/feedline.v1.Feed/Recommend", 200)
    metrics = client.get("/metrics").text
    assert 'feedline_requests_total{endpoint="/feedline.v1.Feed/Recommend"' in metrics


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (pb.RecommendRequest(k=5), "user_id: Field required"),
        (pb.RecommendRequest(user_id=pb.Id(number=1), k=0), "k: "),
        (pb.RecommendRequest(user_id=pb.Id(number=1), k=501), "k: "),
        (pb.RecommendRequest(user_id=pb.Id(number=1), timestamp=-1), "timestamp: "),
        (pb.RecommendRequest(user_id=pb.Id(text="x" * 300)), "user_id"),
        (pb.RecommendRequest(user_id=pb.Id(text="somebody")), "somebody"),
        (pb.RecommendRequest(user_id=pb.Id(number=1), context={"a": pb.Value(real=float("nan"))}), "context.a"),
        (pb.RecommendRequest(user_id=pb.Id(text="x" * 2_000_000)), "longer than 1,048,576 bytes"),
    ],
)
def test_what_cannot_be_meant(stub: FeedStub, said: pb.RecommendRequest, says: str) -> None:
    code, detail, trailing = refusal(stub.Recommend, said, metadata=[("x-request-id", "mine")])
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert says in detail
    assert trailing["x-request-id"] == "mine"


def test_keys_open_what_their_scopes_say_as_often_as_they_may(finished_run: FinishedRun, tmp_path: Path) -> None:
    read, write = (keys.add(tmp_path / "keys.json", scope, [scope]) for scope in ("read", "write"))
    slow = keys.add(tmp_path / "keys.json", "slow", ["read"], 0.5)
    with serving(finished_run, tmp_path, keys="keys.json") as client, calling(client.service) as stub:

        def presented(key: str) -> list[tuple[str, str]]:
            return [("authorization", f"Bearer {key}")]

        assert refusal(stub.Recommend, ASKED)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert refusal(stub.Recommend, ASKED, metadata=presented("guess"))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert refusal(stub.Recommend, ASKED, metadata=presented(write))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert stub.Recommend(ASKED, metadata=presented(read)).items
        assert stub.Recommend(ASKED, metadata=presented(slow)).items
        code, _, trailing = refusal(stub.Recommend, ASKED, metadata=presented(slow))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 <= int(trailing["retry-after"]) <= 2


def test_more_than_can_be_answered_is_refused_at_once(finished_run: FinishedRun, tmp_path: Path) -> None:
    lane = {"deadline_ms": 30_000, "wait_ms": 60, "batch": 1}
    with serving(finished_run, tmp_path, lane=lane) as client, calling(client.service) as stub:
        many_said = pb.RecommendRequest(user_id=pb.Id(number=2), k=500)

        def outcome(_: int) -> tuple[grpc.StatusCode, dict[str, str]]:
            try:
                stub.Recommend(many_said)
            except grpc.RpcError as error:
                return error.code(), dict(error.trailing_metadata())  # pyright: ignore[reportAttributeAccessIssue]
            return grpc.StatusCode.OK, {}

        with ThreadPoolExecutor(40) as many:
            outcomes = list(many.map(outcome, range(200)))
        assert {code for code, _ in outcomes} == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert {trailing["retry-after"] for _, trailing in outcomes if trailing} == {"1"}
        assert stub.Recommend(ASKED).items
        counted = [line for line in client.get("/metrics").text.splitlines() if 'reason="overload"' in line]
        assert float(counted[0].split()[-1]) == sum(code is not grpc.StatusCode.OK for code, _ in outcomes)


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ("ipv4:127.0.0.1:5", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5", "::1"),
        ("ipv6:[::ffff:127.0.0.1]:5", "127.0.0.1"),
        ("ipv4:10.0.0.7:5", "10.0.0.7"),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8::1"),
    ],
)
def test_where_a_call_comes_from(peer: str, found: str) -> None:
    assert host(peer) == found
