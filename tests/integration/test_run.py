"""The whole way by the command line: its output, its second time, and what it says of bad input."""

import json
import math
import shutil
import socket
import time
from pathlib import Path

import polars as pl
import pytest

from features.errors import InputError
from recsys import bundle as bundles
from recsys import cli
from tests.conftest import FinishedRun

METRICS = {"recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr", "coverage@10"}


def test_json_has_all_that_is_promised(finished_run: FinishedRun) -> None:
    found = finished_run.results
    assert found["retrieval"].keys() >= METRICS
    assert found["baselines"].keys() == {"popularity", "item_knn"}
    assert all(metrics.keys() >= METRICS for metrics in found["baselines"].values())
    assert found["ranking"]["click"].keys() >= {"auc", "gauc", "logloss", "ne", "calibration"}
    assert found["replay"].keys() >= {"recall@10", "ndcg@10", "latency_ms"}
    assert found["replay"]["latency_ms"].keys() >= {"p50", "p99"}
    assert found["seconds"].keys() == {"prepare", "train", "export", "evaluate", "probe", "replay"}


def test_models_learn(finished_run: FinishedRun) -> None:
    found = finished_run.results
    by_chance = sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / found["rows"]["items"]
    assert found["retrieval"]["ndcg@10"] > 3 * by_chance
    assert found["ranking"]["click"]["auc"] > 0.53


def test_feed_over_http_is_the_recommenders(finished_run: FinishedRun) -> None:
    assert finished_run.results["probe"]["identical"]
    assert finished_run.results["probe"]["largest_difference"] < 1e-5


def test_counts_add_up(finished_run: FinishedRun) -> None:
    manifest = json.loads((finished_run.directory / "examples" / "manifest.json").read_text())
    rows = manifest["rows"]
    assert rows["read"] == rows["valid"] + rows["quarantined"]
    for split in manifest["splits"].values():
        assert sum(split[part]["events"] for part in ("train", "valid", "test")) == rows["valid"]


def test_second_run_does_nothing_and_says_so_at_once(finished_run: FinishedRun) -> None:
    started = time.perf_counter()
    again = finished_run.recsys("run", str(finished_run.config), "--json", *finished_run.options)
    assert time.perf_counter() - started < 5
    assert "up to date, nothing to do" in again.stderr
    assert json.loads(again.stdout) == finished_run.results


def test_changed_stage_runs_again_and_earlier_ones_do_not(finished_run: FinishedRun) -> None:
    done = finished_run.recsys("replay", str(finished_run.config), *finished_run.options, "--replay.max_events", "20")
    assert done.returncode == 0, done.stderr
    assert "replay …" in done.stderr
    done = finished_run.recsys("prepare", str(finished_run.config), *finished_run.options)
    assert "prepare: up to date" in done.stderr
    done = finished_run.recsys("run", str(finished_run.config), *finished_run.options)
    assert "nothing to do" not in done.stderr, "the replay of other settings was taken for this run's"
    assert done.stderr.count("…") == 1, done.stderr


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says when it refuses."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    assert stopped.value.code == 2
    text = capsys.readouterr().err.strip()
    assert text.count("\n") == 0 or text.splitlines()[-1].startswith("recsys: "), text
    return text.splitlines()[-1]


LOG_CONFIG = """
[run]
name = "log"
directory = "{runs}"
[dataset]
kind = "files"
events = "{log}"
[[features]]
name = "item_id"
kind = "sparse"
source = "item.index"
transform = "index"
[[features]]
name = "popularity"
kind = "dense"
source = "request.item_events"
transform = "numeric"
"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "log.csv: no such file"),
        ("", "log.csv: the file is empty"),
        ("user_id,item_id,timestamp,value\n", "the log has no rows"),
        ("user_id,timestamp,value\n1,2,3\n", "column 'item_id' is missing"),
        ("user_id,item_id,timestamp,value\n1,2,yesterday,4\n", "no value of column 'timestamp' is Int64"),
        ("user_id,item_id,timestamp,value\n1,2,1700000000,4\n", 'set dataset.time_unit = "s"'),
        ("user_id,item_id,timestamp\n1,2,1700000000000\n", "prepare.label.at_least needs the column 'value'"),
    ],
)
def test_bad_log_is_refused_and_nothing_is_left(
    content: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, config, runs = tmp_path / "log.csv", tmp_path / "log.toml", tmp_path / "runs"
    if content is not None:
        log.write_text(content)
    config.write_text(LOG_CONFIG.format(runs=runs, log=log))
    assert says in said(capsys, "prepare", str(config))
    assert not list(runs.glob("*/examples*"))


def test_rows_that_fail_go_to_the_quarantine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{user},{item},{1_700_000_000_000 + 1000 * item},4" for user in range(20) for item in range(10)]
    log, config = tmp_path / "log.csv", tmp_path / "log.toml"
    bad = ["7,,1700000000000,4", "7,3,-5,4", rows[3]]
    log.write_text("\n".join(["user_id,item_id,timestamp,value", *rows, *bad]))
    config.write_text(LOG_CONFIG.format(runs=tmp_path / "runs", log=log))
    cli.main(["prepare", str(config)])
    examples = tmp_path / "runs" / "log" / "examples"
    manifest = json.loads((examples / "manifest.json").read_text())
    assert manifest["rows"]["read"] == 203
    assert manifest["rows"]["valid"] == 200
    reasons = pl.read_parquet(examples / "quarantine" / "*.parquet")["reason"].to_list()
    assert sorted(reasons) == ["item_id: missing", "row: repeats an earlier one", "timestamp: negative"]


def test_examples_of_another_schema_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{user},{item},{1_700_000_000_000 + 1000 * item},4" for user in range(20) for item in range(10)]
    log, config = tmp_path / "log.csv", tmp_path / "log.toml"
    log.write_text("\n".join(["user_id,item_id,timestamp,value", *rows]))
    config.write_text(LOG_CONFIG.format(runs=tmp_path / "runs", log=log))
    cli.main(["prepare", str(config)])
    run = tmp_path / "runs" / "log"
    before = {path: path.read_bytes() for path in (run / "config.toml", run / "examples" / "manifest.json")}
    config.write_text(config.read_text().replace('"numeric"', '"numeric"\nparams = { log = true }'))
    said_ = said(capsys, "prepare", str(config))
    assert "was prepared with another schema: features popularity, params is {'log': True} against {}" in said_
    assert "--rebuild" in said_
    assert {path: path.read_bytes() for path in before} == before
    cli.main(["prepare", str(config), "--rebuild"])
    assert json.loads((run / "examples" / "manifest.json").read_text()) != json.loads(
        before[run / "examples" / "manifest.json"]
    )


def test_missing_stage_and_foreign_bundle_are_named(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = ["--run.directory", str(tmp_path)]
    text = said(capsys, "evaluate", str(finished_run.config), *finished_run.options, *moved)
    assert "nothing here yet; run `recsys export" in text
    text = said(capsys, "export", str(finished_run.config), *finished_run.options, *moved)
    assert "nothing here yet; run `recsys train" in text

    shutil.copytree(finished_run.directory, tmp_path / "small", dirs_exist_ok=True)
    schema = tmp_path / "small" / "bundle" / "time" / "schema.json"
    schema.write_text(schema.read_text().replace('"dim": 16', '"dim": 8'))
    text = said(capsys, "serve", str(finished_run.config), *finished_run.options, *moved)
    assert "schema.json: has" in text
    assert "run `recsys export` again" in text
    with pytest.raises(InputError, match="the bundle was made with schema"):
        bundles.load(schema.parent)


def test_taken_port_is_named(finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = said(capsys, "serve", str(finished_run.config), *finished_run.options, "--serve.port", str(port))
    assert f"serve.port = {port} on 127.0.0.1 cannot be used" in text
