"""The same training under torchrun, as two machines of one process each, and in workers of Ray, one of them killed."""

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

SCRIPT = """
import sys
from pathlib import Path

from embeddings import optim, sharding, tables
from recsys import distributed, ray_train
from recsys.console import quiet
from recsys.resume import Training
from recsys.roles import RankerConfig, RankerLoop
from recsys.train import launch

if __name__ == "__main__":
    quiet()
    launcher, examples, run = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    loop = RankerLoop(epochs=2, batch_size=255, checkpoint_every=3, keep=3)
    section = RankerConfig(optimizer=optim.Config(eps=1e-5), train=loop)
    training = Training(section, sharding.Config(), tables.Config(), examples, run / "time" / "ranker", run)
    processes = distributed.Config(nproc=2)
    if launcher == "ray":
        ray_train.launch(training, processes)
    else:
        with distributed.joined(processes):
            launch(training, processes)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "train_small.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}


@pytest.fixture(scope="module")
def losses(
    script: Path, examples: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Of two processes of this machine."""
    run = tmp_path_factory.mktemp("local")
    subprocess.run([sys.executable, str(script), "local", str(examples), str(run)], env=environment, check=True)
    return found(run)


def found(run: Path) -> list[float]:
    return read_json(run / "time" / "ranker" / "history.json")["loss"]


def test_two_machines_under_torchrun(
    script: Path, examples: Path, environment: dict[str, str], losses: list[float], tmp_path: Path
):
    node = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:29571", "--rdzv-id", "feedline"),
        *(str(script), "torchrun", str(examples), str(tmp_path)),
    ]
    nodes = [subprocess.Popen(node, env=environment) for _ in range(2)]
    assert [each.wait(timeout=300) for each in nodes] == [0, 0]
    # Two hosts of one rank have another plan than one of two.
    np.testing.assert_allclose(found(tmp_path), losses, atol=2e-5, rtol=0)
    assert (read(tmp_path / "time" / "ranker") or {})["world"] == 2


@pytest.mark.slow
def test_a_worker_of_ray_that_is_killed_is_started_again(
    script: Path, examples: Path, environment: dict[str, str], losses: list[float], tmp_path: Path
):
    command = [sys.executable, str(script), "ray", str(examples), str(tmp_path)]
    training = subprocess.Popen(command, env=environment)
    deadline, killed = time.monotonic() + 300, False
    while training.poll() is None and time.monotonic() < deadline:
        entries = logbook.read(tmp_path / logbook.FILE)
        if not killed and any(entry.kind == "checkpoint" for entry in entries):
            os.kill(next(entry for entry in entries if entry.kind == "start").facts["pid"], signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    assert training.wait(timeout=10) == 0
    assert killed
    assert found(tmp_path) == losses
    kinds = [entry.kind for entry in logbook.read(tmp_path / logbook.FILE)]
    assert "crash" in kinds
    assert "resume" in kinds
    assert kinds[-1] == "stop"
