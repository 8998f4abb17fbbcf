"""One small but whole run, made by the command line once a session, that tests of serving and reports look at."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

SMALL = {
    "run.name": "small",
    "run.probe": "true",
    "dataset.users": "250",
    "dataset.items": "200",
    "dataset.events": "40000",
    "retriever.train.epochs": "10",
    "ranker.train.epochs": "4",
    "replay.max_events": "150",
}


@dataclass(frozen=True)
class FinishedRun:
    directory: Path
    config: Path
    """The shipped config that it was made from."""
    options: list[str]
    """Its overrides, as words of a command line."""
    results: dict[str, Any]
    """What `--json` printed."""

    def recsys(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own, from the root of the project."""
        return subprocess.run(
            [sys.executable, "-m", "recsys.cli", *words], capture_output=True, text=True, cwd=ROOT, check=False
        )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    runs = tmp_path_factory.mktemp("runs")
    config = ROOT / "configs" / "synthetic" / "small.toml"
    options = [word for name, value in {**SMALL, "run.directory": str(runs)}.items() for word in (f"--{name}", value)]
    run = FinishedRun(runs / "small", config, options, {})
    done = run.recsys("run", str(config), "--json", *options)
    assert done.returncode == 0, done.stderr
    return FinishedRun(run.directory, config, options, json.loads(done.stdout))


def require_program(*names: str) -> str:
    """The path of a program that a test needs; skips without it, but fails where CI has promised it."""
    import shutil

    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{' or '.join(names)} is not installed, and in CI nothing is skipped")
        pytest.skip(f"{' or '.join(names)} is not installed")
    return found
