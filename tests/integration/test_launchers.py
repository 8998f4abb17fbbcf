"""The same training under torchrun, as two machines of one process each, and in workers of Ray, one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from features.manifest import read, read_json
from recsys import logbook

OVERRIDES = ("--ranker.train.checkpoint_every", "2", "--prepare.splits", '["time"]', "--retriever.train.epochs", "2")


def command(config: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(config), "--run.directory", str(run.parent), "--run.name", run.name, *OVERRIDES, *more]


def losses(run: Path, role: str) -> list[float]:
    return read_json(run / "checkpoints" / "time" / role / "history.json")["loss"]


@pytest.fixture(scope="module")
def config() -> Path:
    return Path("configs/synthetic/small.toml")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def prepared(config: Path, run: Path, environment: dict[str, str]) -> None:
    words = command(config, run)
    subprocess.run([sys.executable, "-m", "recsys.cli", "prepare", *words[1:]], env=environment, check=True)


@pytest.fixture(scope="module")
def local(config: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of this machine."""
    run = tmp_path_factory.mktemp("local") / "run"
    prepared(config, run, environment)
    words = command(config, run, "--launch.nproc", "2")
    subprocess.run([sys.executable, "-m", "recsys.cli", *words], env=environment, check=True)
    return run


def test_two_machines_under_torchrun(config: Path, environment: dict[str, str], local: Path, tmp_path: Path):
    run = tmp_path / "run"
    prepared(config, run, environment)
    port = "29571"
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
                *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "feedline"),
                *("-m", "recsys.cli", *command(config, run)),
            ],
            env=environment,
        )
        for _ in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    for role in ("retriever", "ranker"):
        np.testing.assert_allclose(losses(run, role), losses(local, role), atol=2e-5, rtol=0)
        assert (read(run / "checkpoints" / "time" / role) or {})["world"] == 2


def test_a_worker_of_ray_that_is_killed_is_started_again(
    config: Path, environment: dict[str, str], local: Path, tmp_path: Path
):
    run = tmp_path / "run"
    prepared(config, run, environment)
    words = command(config, run, "--launch.nproc", "2", "--engine", "ray")
    training = subprocess.Popen([sys.executable, "-m", "recsys.cli", *words], env=environment)
    deadline = time.monotonic() + 240
    killed = False
    while training.poll() is None and time.monotonic() < deadline:
        entries = logbook.read(run / logbook.FILE)
        if not killed and any(entry.kind == "checkpoint" for entry in entries):
            starts = [entry for entry in entries if entry.kind == "start"]
            os.kill(starts[-1].facts["pid"], signal.SIGKILL)
            killed = True
        time.sleep(0.2)
    assert training.wait(timeout=10) == 0
    assert killed
    for role in ("retriever", "ranker"):
        assert losses(run, role) == losses(local, role)
    kinds = [entry.kind for entry in logbook.read(run / logbook.FILE)]
    assert "crash" in kinds
    assert "resume" in kinds
    assert json.loads((run / logbook.FILE).read_text().splitlines()[-1])["kind"] == "stop"
