"""Start the server as a user would, post an event, ask for a feed, and compare it with the recommender's own."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from features.errors import InputError
from features.examples import Examples
from features.online import Event, MemoryStore
from recsys import bundle as bundles
from recsys.config import RunConfig
from recsys.inference import Recommender, Request, Response
from recsys.replay.runner import events
from serving.app import free_port

START_SECONDS = 180
"""How long a server may take to answer its first request."""

K = 10
"""Length of the feed."""

QUESTIONS = 200
"""Requests whose time is measured, one after the other."""


def probe(config: RunConfig, resolved: Path, bundle: Path) -> dict[str, Any]:
    """The next event of somebody with a history, posted over HTTP, and the feed that follows.

    Args:
        config: the run.
        resolved: its config as a file, for the server.
        bundle: the bundle that is served.

    Returns:
        `feed` (titles and scores), `sentence`, `identical` (whether the recommender in this process gives the same
        items in the same order), `largest_difference` of scores, `seconds_to_start`, `latency_ms`.

    Raises:
        InputError: the server does not start.
    """
    loaded = bundles.load(bundle)
    recommender = Recommender(loaded, MemoryStore(retain=loaded.config["prepare"]["retain"]), config.recommend)
    recommender.seed()
    tail = Examples.open(config.directory / "examples" / config.served_split).interactions(2)
    tail = tail.filter((pl.col("user_index") > 0) & (pl.col("item_index") > 0))
    if tail.is_empty():
        raise InputError(f"{config.run.name}: nobody in the test part has a history to ask with; set run.probe = false")
    event = events(tail.head(1))[0]
    recommender.observe([event])
    own = recommender.recommend(Request(user_id=event.user_id, k=K, timestamp=event.timestamp))

    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        place = f"http://127.0.0.1:{port}"
        # A store of its own: a probe must not write into people's histories.
        options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "store.kind": "lmdb", "store.path": scratch}
        # And what is deployed may be another bundle than the one that is judged.
        options["deployments"] = f"{scratch}/served"
        command = [sys.executable, "-m", "recsys.cli", "serve", str(resolved)]
        command += [word for name, value in options.items() for word in (f"--serve.{name}", str(value))]
        started = time.perf_counter()
        with (
            (Path(scratch) / "server.log").open("w+") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as server,
        ):
            try:
                with httpx.Client(base_url=place, timeout=30) as client:
                    _wait(client, server, log.name)
                    seconds = time.perf_counter() - started
                    return _ask(client, event, own, seconds)
            finally:
                server.terminate()
                try:
                    server.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    server.kill()


def _wait(client: httpx.Client, server: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            if client.get("/healthz").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    last = "".join(Path(log).read_text(errors="replace").strip().splitlines()[-1:])
    ended = server.poll()
    what = f"did not answer within {START_SECONDS} s" if ended is None else f"ended with status {ended}"
    raise InputError(f"the server {what}: {last}; run `recsys serve` to see why")


def _ask(client: httpx.Client, event: Event, own: Response, seconds: float) -> dict[str, Any]:
    message = {"user_id": event.user_id, "item_id": event.item_id, "timestamp": event.timestamp}
    message |= {"action": event.action, "value": event.value}
    client.post("/v1/events", json={"events": [message]}).raise_for_status()
    question = {"user_id": event.user_id, "k": K, "timestamp": event.timestamp}
    answer = client.post("/v1/recommend", json=question).raise_for_status().json()
    waited: list[float] = []
    for _ in range(QUESTIONS):
        began = time.perf_counter()
        client.post("/v1/recommend", json=question).raise_for_status()
        waited.append((time.perf_counter() - began) * 1000)
    history = client.get(f"/v1/users/{event.user_id}/history").raise_for_status().json()
    feed = answer["items"]
    difference = [abs(there["score"] - here.score) for there, here in zip(feed, own.items, strict=False)]
    seen = history["titles"][-1]
    return {
        "sentence": f"Person {event.user_id}, after {len(history['events'])} interactions, the last with “{seen}”:",
        "feed": [{"item_id": item["item_id"], "title": item["title"], "score": item["score"]} for item in feed],
        "identical": [item["item_id"] for item in feed] == [item.item_id for item in own.items],
        "largest_difference": max(difference, default=0.0),
        "seconds_to_start": seconds,
        "latency_ms": {f"p{q}": float(np.percentile(waited, q)) for q in (50, 99)},
    }
