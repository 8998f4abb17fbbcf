"""A log replayed through real bundles: exact in batches, by several processes and after a kill; what does not fit."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import polars as pl
import pytest
import tomli_w
import uvicorn

from features.errors import InputError
from features.events import RawLog, in_one_part
from features.examples import Examples
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import config as configs
from recsys.inference import Recommender, Request
from recsys.replay import dispatch, fit, logs, runner
from recsys.replay.policies import Policy
from tests.conftest import ROOT, FinishedRun

EVENTS = 160


@pytest.fixture(scope="module")
def config(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay of all policies."""
    path = tmp_path_factory.mktemp("replay") / "small.toml"
    policies = {
        "full": {},
        "retriever": {"rank": False},
        **{name: {"baseline": name} for name in ("item_knn", "popularity")},
    }
    section = {
        "kind": "log",
        "name": "small",
        "run": str(finished_run.directory / "config.toml"),
        "directory": str(path.parent),
        "max_events": EVENTS,
        "batch": 8,
        "resamples": 400,
        "policies": policies,
    }
    path.write_text(tomli_w.dumps({"replay": section}))
    return path


def policy(finished_run: FinishedRun, split: str = "time", name: str = "full", *, rank: bool = True) -> Policy:
    run = configs.load(finished_run.directory / "config.toml", [])
    directory = finished_run.directory
    return Policy(name, directory / "bundle" / split, directory / "examples" / split, run.recommend, rank=rank)


def shown(directory: Path) -> pl.DataFrame:
    found = pl.read_parquet(directory / runner.SHOWN / "*.parquet").sort("event")
    return found.select("event", pl.col("^.*items$"), pl.col("^.*popular$"))


@pytest.fixture(scope="module")
def replayed(config: Path) -> dict:
    return dispatch.run(config, [])


def test_batches_show_what_one_request_at_a_time_is_shown(
    config: Path, replayed: dict, finished_run: FinishedRun
) -> None:
    one = policy(finished_run)
    bundle = bundles.load(one.bundle)
    alone = Recommender(bundle, MemoryStore(bundle.config["prepare"]["retain"]), one.recommend)
    alone.seed()
    tail = Examples.open(finished_run.directory / "examples" / "time").interactions(2).head(EVENTS)
    ids = pl.read_parquet(config.parent / "replay-small" / "items.parquet")["item_id"].to_list()
    feeds = shown(config.parent / "replay-small")["full.items"].to_list()
    happened = runner.events(tail)
    asked = runner.requests(tail, happened, alone.context_columns, 10)
    for event, request, feed in zip(happened, asked, feeds, strict=True):
        assert [item.item_id for item in alone.recommend(request).items] == [ids[code] for code in feed]
        alone.observe([event])


def test_the_result_has_all_that_is_promised(replayed: dict) -> None:
    assert list(replayed["policies"]) == ["full", "retriever", "item_knn", "popularity"]
    for found in replayed["policies"].values():
        assert found.keys() >= {"recall@10", "ndcg@10", "mrr@10", "map@10", "recall@5", "novelty", "coverage@10"}
        assert found["latency_ms"].keys() >= {"p50", "p99", "stages"}
    one = replayed["differences"]["full"]["item_knn"]["ndcg@10"]
    means = [replayed["policies"][name]["ndcg@10"] for name in ("full", "item_knn")]
    assert one["mean"] == pytest.approx(means[0] - means[1])
    assert one["low"] <= one["mean"] <= one["high"]
    assert replayed["segments"].keys() >= {"activity", "item_met", "item_age", "period"}
    assert sum(one["events"] for one in replayed["segments"]["activity"].values()) == EVENTS
    assert sum(day["events"] for day in replayed["by_day"]) == EVENTS
    page = Path(replayed["report"]).read_text()
    assert replayed["verdict"] in page
    assert page.count("<svg") >= 4


def test_two_processes_that_are_killed_and_one_that_goes_on_show_the_same(
    config: Path, replayed: dict, tmp_path: Path
) -> None:
    options = ["--replay.directory", str(tmp_path)]
    command = [sys.executable, "-m", "recsys.cli", "replay", str(config), *options, "--workers", "2"]
    parts = tmp_path / "replay-small" / runner.SHOWN
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not list(parts.glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert before
    again = dispatch.run(config, options)
    assert {name: (parts / name).stat().st_mtime_ns for name in before} == before, "what was finished was done again"
    assert shown(tmp_path / "replay-small").equals(shown(config.parent / "replay-small"))
    for name in ("policies", "differences"):
        ours, theirs = dict(again[name]), dict(replayed[name])
        for found in (*ours.values(), *theirs.values()):
            found.pop("latency_ms", None)
        assert ours == theirs


def test_what_batch_evaluation_measures_too_is_the_same(finished_run: FinishedRun, tmp_path: Path) -> None:
    tail = logs.of_split(finished_run.directory / "examples" / "leave_one_out")
    # Evaluation asks about everybody from the same state: what happens here is no interaction, and changes nothing.
    still = tail.events.with_columns(action=pl.lit("impression"))
    asked = [
        policy(finished_run, "leave_one_out"),
        policy(finished_run, "leave_one_out", "retriever", rank=False),
    ]
    from recsys.replay.kinds import log as replays
    from recsys.replay.settings import Config

    found = replays.replay(
        Config(resamples=200),
        logs.Tail(still, tail.quarantine, tail.counts, tail.source),
        asked,
        tmp_path,
        dispatch.Progress(dispatch.console),
        "same",
    )
    assert found["events"] == finished_run.results["questions"]
    for name, other in (("full", "system"), ("retriever", "retrieval")):
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
            assert found["policies"][name][metric] == pytest.approx(finished_run.results[other][metric], abs=1e-6)


def test_popularity_answers_by_popularity(finished_run: FinishedRun) -> None:
    full = policy(finished_run)
    popular = replace(full, name="popularity", baseline="popularity", rank=False).load()
    users = pl.read_parquet(full.bundle / "users.parquet")["user_id"].to_list()[1:4]
    for user in users:
        asked = Request(user_id=user, k=10, timestamp=0, exclude_seen=False)
        found = [item.score for item in popular.recommend(asked).items]
        assert found == [item.score for item in popular.popular(asked).items]


@pytest.fixture
def server(finished_run: FinishedRun, tmp_path: Path) -> Iterator[str]:
    from serving.api import build
    from serving.config import Config as ServeConfig
    from serving.service import Service
    from serving.variants import Variants

    one = policy(finished_run)
    store = MemoryStore()
    variants = Variants.of_bundle(one.bundle, store, one.recommend)
    variants.control.model.recommender.seed()
    patient = ServeConfig.model_validate({"lane": {"deadline_ms": 30_000, "wait_ms": 30_000}})
    service = Service(variants, store, patient, tmp_path / "service")
    running = uvicorn.Server(uvicorn.Config(build(service), port=0, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()
    service.close()


def test_a_server_shows_what_the_recommender_shows(
    config: Path, server: str, finished_run: FinishedRun, tmp_path: Path
) -> None:
    context = str(list(policy(finished_run).load().context_columns))
    options = ["--replay.directory", str(tmp_path), "--replay.http.url", server, "--replay.through", "http"]
    options += ["--replay.http.context", context]
    found = dispatch.run(config, [*options, "--replay.max_events", "40"])
    lists = shown(tmp_path / "replay-small")
    assert lists["server.items"].to_list() == lists["full.items"].to_list()
    assert found["differences"]["full"]["server"]["ndcg@10"]["mean"] == 0
    assert found["policies"]["server"]["latency_ms"]["stages"].keys() == {"server", "the way there and back"}
    with pytest.raises(InputError, match="start a server with"):
        dispatch.run(config, [*options, "--replay.http.url", "http://127.0.0.1:9"])


def test_the_recorded_speed_is_kept() -> None:
    from recsys.replay.through_http import Client
    from recsys.replay.through_http import Config as HttpConfig

    with httpx.Client() as nobody:
        client = Client(nobody, HttpConfig(speed=100))
        began = time.monotonic()
        for timestamp in (5_000, 10_000, 25_000):
            client._wait(timestamp)
    assert 0.2 <= time.monotonic() - began < 0.4


def raw(**columns: list) -> RawLog:
    return RawLog(parts=in_one_part(pl.DataFrame(columns), "log"), source="log.parquet")


START = 1_800_000_000_000


def test_rows_out_of_order_are_counted_and_sorted_or_refused() -> None:
    log = raw(user_id=[1, 2, 3, 4, 4], item_id=[1, 2, 3, 4, 4], timestamp=[START + t for t in (5, 1, 5, 3, 3)])
    found = logs.of_files(log, refuse_disorder=False)
    assert found.events["user_id"].to_list() == [2, 4, 1, 3]
    assert found.counts["out_of_order"] == 3
    assert found.counts["reasons"] == {"row: repeats an earlier one": 1}
    assert found.quarantine.height == 1
    with pytest.raises(InputError, match=r"3 of 4 rows are earlier than a row before them; sort the log, or"):
        logs.of_files(log, refuse_disorder=True)


def test_items_that_nobody_knows_are_counted_as_missed(finished_run: FinishedRun, tmp_path: Path) -> None:
    people = pl.read_parquet(finished_run.directory / "bundle" / "time" / "users.parquet")["user_id"][1:4].to_list()
    events = pl.DataFrame(
        {"user_id": people, "item_id": [10**9, 1, 2], "timestamp": [START, START + 1, START + 2], "action": "click"}
    )
    path = tmp_path / "log.parquet"
    context = policy(finished_run).load().context_columns
    events.with_columns(pl.lit("x").alias(name) for name in context).write_parquet(path)
    config = tmp_path / "own.toml"
    section = {"kind": "log", "name": "own", "directory": str(tmp_path), "resamples": 200}
    section["log"] = {"kind": "files", "events": str(path), "context": list(context)}
    section["policies"] = {"full": {"bundle": str(finished_run.directory / "bundle" / "time")}}
    config.write_text(tomli_w.dumps({"replay": section}))
    found = dispatch.run(config, [])
    assert found["unknown_items"] == 1
    assert found["events"] == 3
    if context:
        with pytest.raises(InputError, match="its features read the context column"):
            dispatch.run(config, ["--replay.log.context", "[]"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user_id": pl.col("user_id").cast(pl.String)}, "column 'user_id' of a log is String, and the bundle's ids"),
        ({"action": pl.lit("view")}, "knows the actions click, like, share as interactions, and a log has none"),
        ({"timestamp": pl.lit(1_000_000_000_000)}, "it would be asked about what it has learned"),
    ],
)
def test_a_bundle_that_does_not_fit_the_log_is_named(
    change: dict[str, pl.Expr], says: str, finished_run: FinishedRun
) -> None:
    events = pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [START], "action": ["click"]})
    tail = logs.Tail(events.with_columns(**change), pl.DataFrame(), {}, "a log")
    with pytest.raises(InputError, match=says):
        fit.require(policy(finished_run), tail, own=False)


def test_mistakes_in_a_config_are_named(config: Path, finished_run: FinishedRun) -> None:
    for options, says in (
        (["--replay.policies.full.baseline", "oracle"], "is none of item_knn, popularity"),
        (["--replay.kind", "lok"], "use one of: log"),
        (["--replay.workers", "2", "--replay.through", "http"], "set workers = 1"),
        (["--replay.polices", "1"], "did you mean 'policies'"),
        (["--replay.policies.full.bundle", "nowhere"], "nowhere holds no bundle"),
        (["--replay.groups", '["shoe size"]'], "is no attribute of people"),
    ):
        with pytest.raises(InputError, match=says):
            dispatch.run(config, options)


@pytest.mark.slow
def test_ray_shows_the_same(config: Path, replayed: dict, tmp_path: Path) -> None:
    dispatch.run(config, ["--replay.directory", str(tmp_path), "--replay.engine", "ray", "--replay.workers", "2"])
    assert shown(tmp_path / "replay-small").equals(shown(config.parent / "replay-small"))
