"""A real server, two replicas behind Ray's ingress: feeds equal the recommender's own; a replica may be killed."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import inference
from recsys.inference import Recommender, Request
from serving import feed_pb2
from serving.app import free_port
from serving.client import Feedline, Refused
from serving.feed_pb2_grpc import FeedStub
from serving.protocol import EventMessage, RecommendRequest
from tests.conftest import ROOT, FinishedRun

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(finished_run: FinishedRun, grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. Ray takes most of a minute to start: one for all tests."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    options = {
        "port": port,
        "grpc.port": grpc_port,
        "replicas": 2,
        "cpus": 0.5,
        "store.path": folder / "state",
        "log.path": folder / "requests.jsonl",
        # The tests keep both cores busy.
        "lane.deadline_ms": 30_000,
        "lane.wait_ms": 30_000,
    }
    command = [sys.executable, "-m", "recsys.cli", "serve", str(finished_run.config), *finished_run.options]
    command += [word for name, value in options.items() for word in (f"--serve.{name}", str(value))]
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT) as process,
    ):
        try:
            wait(f"http://127.0.0.1:{port}", process, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    pytest.fail(f"the server did not start: {log.read_text()}")


def replicas(url: str) -> set[int]:
    """The processes that have left their figures."""
    return {int(pid) for pid in re.findall(r'replica="[^"]*-(\d+)"', httpx.get(f"{url}/metrics").text)}


def test_a_thousand_feeds_over_http_equal_the_recommenders_own(server: str, finished_run: FinishedRun) -> None:
    loaded = bundles.load(finished_run.directory / "bundle" / "time")
    own = Recommender(loaded, MemoryStore(), inference.Config())
    own.seed()
    users = loaded.users["user_id"].to_list()[1:]
    last = max(event.timestamp for user in users for event in own.store.history(user))
    asked = [(users[place % len(users)], last + place // len(users) * DAY_MS) for place in range(1000)]
    with Feedline(server) as feedline, ThreadPoolExecutor(4) as many:
        feeds = list(
            many.map(lambda of: feedline.recommend(RecommendRequest(user_id=of[0], k=10, timestamp=of[1])), asked)
        )
    assert {feed.fallback for feed in feeds} == {None}
    for feed, (user, moment) in zip(feeds, asked, strict=True):
        expected = own.recommend(Request(user_id=user, k=10, timestamp=moment))
        assert [item.item_id for item in feed.items] == [item.item_id for item in expected.items]
        assert [item.score for item in feed.items] == pytest.approx([item.score for item in expected.items], abs=1e-4)


def test_a_call_is_answered_as_a_request(server: str, grpc_port: int) -> None:
    with Feedline(server) as feedline, grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        expected = feedline.recommend(RecommendRequest(user_id=1, k=10, timestamp=1_800_000_000_000))
        said = feed_pb2.RecommendRequest(user_id=feed_pb2.Id(number=1), k=10, timestamp=1_800_000_000_000)
        feed = FeedStub(channel).Recommend(said, timeout=30)
        assert [item.item_id.number for item in feed.items] == [item.item_id for item in expected.items]
        assert [item.score for item in feed.items] == pytest.approx([item.score for item in expected.items], abs=1e-4)
        with pytest.raises(grpc.RpcError) as refused:
            FeedStub(channel).Recommend(feed_pb2.RecommendRequest(k=10), timeout=30)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "user_id: Field required"


def test_the_deadline_of_a_call_arrives(server: str, grpc_port: int) -> None:
    """The service's own is half a minute: who gets what is popular has been heard with a deadline of 40 ms."""
    said, hurried = feed_pb2.RecommendRequest(user_id=feed_pb2.Id(number=1), k=10), False
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel, ThreadPoolExecutor(8) as many:
        stub, until = FeedStub(channel), time.monotonic() + 60

        def ask(_: int) -> bool:
            try:
                return stub.Recommend(said, timeout=0.04).fallback == feed_pb2.FALLBACK_DEADLINE
            except grpc.RpcError:
                return False

        while not hurried and time.monotonic() < until:
            hurried = any(many.map(ask, range(32)))
    assert hurried


def test_one_scrape_speaks_for_all_replicas(server: str) -> None:
    until = time.monotonic() + 30
    while len(replicas(server)) < 2 and time.monotonic() < until:
        time.sleep(0.5)
    assert len(replicas(server)) == 2


def test_a_replica_that_is_killed_costs_no_feed(server: str) -> None:
    """The ingress asks another replica where no connection could be made; a request that had been sent to the one that
    died ends with it, and the client asks again."""
    until = time.monotonic() + 30
    while len(alive := replicas(server)) < 2 and time.monotonic() < until:
        time.sleep(0.5)
    stop, failed, answered = threading.Event(), Counter[str](), Counter[str]()

    def load(retries: int) -> None:
        with Feedline(server, retries=retries, longest_pause_s=1.0) as feedline:
            while not stop.is_set():
                try:
                    feedline.recommend(RecommendRequest(user_id=1, k=5))
                    feedline.events([EventMessage(user_id=2, item_id=3, action="click")])
                    answered[f"{retries} retries"] += 1
                except (httpx.TransportError, Refused) as error:
                    failed[f"{retries} retries"] += 1
                    print(retries, repr(error))

    threads = [threading.Thread(target=load, args=(retries,)) for retries in (0, 8, 8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    os.kill(min(alive), signal.SIGKILL)
    before, until = answered["8 retries"], time.monotonic() + 60
    while answered["8 retries"] < before + 20 and time.monotonic() < until:
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed["8 retries"] == 0
    assert answered["8 retries"] >= before + 20, "after the kill"
    # At most what was under way at the one that died, for one thread that does not ask again.
    assert failed["0 retries"] <= 2
