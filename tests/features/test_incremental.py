"""A log that grows by files: what is appended equals a rebuild, on this machine or on Ray, killed or not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import manifest
from features.counters import Counter
from features.datasets import files, synthetic
from features.errors import InputError
from features.pipeline import Config, Label, prepare
from features.schema import FeatureSpec

ROOT = Path(__file__).parents[2]
CLICKS = ("click", "like", "share")
SETTINGS = Config(
    history_actions=CLICKS,
    label=Label(name="click", actions=CLICKS),
    max_history=10,
    counters=(
        Counter(name="day", by=("item",), window="24h"),
        Counter(name="taste", by=("user", "item.categories"), half_life="2d"),
    ),
)
SPECS = (
    FeatureSpec(name="user", kind="sparse", source="user.index", transform="index"),
    FeatureSpec(name="item", kind="sparse", source="item.index", transform="index"),
    FeatureSpec(name="device", kind="sparse", source="request.device", transform="lookup", params={"min_count": 5}),
    FeatureSpec(name="gaps", kind="bag", source="request.history_gaps", transform="quantile"),
    FeatureSpec(name="taste", kind="dense", source="request.taste_positives", transform="numeric"),
    FeatureSpec(name="today", kind="dense", source="request.day_events", transform="numeric"),
)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five days of a simulated log, and its items."""
    folder = tmp_path_factory.mktemp("log")
    world = synthetic.World(synthetic.Config(users=200, items=150, events=20_000, days=5, base_rate=0.2, seed=4))
    events = world.events()
    for number, (_, day) in enumerate(events.group_by(pl.col("timestamp") // 86_400_000, maintain_order=True)):
        day.write_parquet(folder / f"{number}.parquet")
    world.items().write_parquet(folder / "items.pq.parquet")
    (folder / "tables").mkdir()
    (folder / "items.pq.parquet").rename(folder / "tables" / "items.parquet")
    return folder


def prepared(days: Path, out: Path, shown: list[Path], **more: Any) -> dict[str, Any]:
    """Prepare some of the days; what the manifest says."""
    folder = out.parent / "log"
    folder.mkdir(exist_ok=True, parents=True)
    for path in shown:
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
    config = files.Config(
        events=str(folder / "*.parquet"),
        items=days / "tables" / "items.parquet",
        context=("device",),
        partitioned=True,
    )
    inputs = {str(path): manifest.file_fingerprint(path) for path in files.inputs(config)}
    prepare(files.load(config), SETTINGS, SPECS, out, {"settings": "same"}, inputs=inputs, **more)
    facts = manifest.read(out)
    assert facts is not None
    return facts


def contents(out: Path) -> dict[str, bytes]:
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != manifest.MANIFEST)
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(days: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five days prepared at once."""
    out = tmp_path_factory.mktemp("whole") / "examples"
    prepared(days, out, sorted(days.glob("*.parquet")))
    return out


def test_appending_days_is_rebuilding(days: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the new files are read, ids keep their meaning, and every file is the same in the end."""
    out, shown = tmp_path / "examples", sorted(days.glob("*.parquet"))
    before = prepared(days, out, shown[:3])
    codes = {name: pl.read_parquet(out / "state" / f"{name}.parquet") for name in ("users", "items")}
    read: list[str] = []
    really = files._read_events

    def noted(paths: tuple[Path, ...], *rest: Any) -> pl.DataFrame:
        read.extend(path.name for path in paths)
        return really(paths, *rest)

    monkeypatch.setattr(files, "_read_events", noted)
    after = prepared(days, out, shown)
    assert read == ["3.parquet", "4.parquet"]
    assert after["parts"][:3] == before["parts"]
    for name, old in codes.items():
        assert pl.read_parquet(out / "state" / f"{name}.parquet").head(old.height).equals(old)
    assert contents(out) == contents(whole)
    facts = manifest.read(whole)
    assert facts is not None
    assert after["content"] == facts["content"]
    again = prepared(days, out, shown)
    assert read == ["3.parquet", "4.parquet"]
    assert again["content"] == after["content"]


def test_a_changed_file_is_a_rebuild(days: Path, whole: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "examples", sorted(days.glob("*.parquet"))
    prepared(days, out, shown[:4])
    (tmp_path / "log" / "1.parquet").unlink()
    pl.read_parquet(shown[1]).head(100).write_parquet(tmp_path / "log" / "1.parquet")
    facts = prepared(days, out, shown)
    assert facts["parts"][1]["read"] == 100
    assert facts["rows"]["read"] == sum(part["read"] for part in facts["parts"])
    assert contents(out)["log/00000.parquet"] == contents(whole)["log/00000.parquet"]


def test_a_late_row_is_refused(days: Path, tmp_path: Path) -> None:
    shown = sorted(days.glob("*.parquet"))
    prepared(days, tmp_path / "examples", shown[:2])
    first = pl.read_parquet(shown[0]).head(3)
    pl.concat([first, pl.read_parquet(shown[2])]).write_parquet(tmp_path / "log" / "2.parquet")
    facts = prepared(days, tmp_path / "examples", [])
    assert facts["parts"][2]["reasons"] == {"timestamp: earlier than the part before": 3}


# Ray Data sets deprecated fields of its own context.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
def test_ray_gives_the_same_files(days: Path, whole: Path, tmp_path: Path) -> None:
    facts = prepared(days, tmp_path / "examples", sorted(days.glob("*.parquet")), engine="ray")
    assert contents(tmp_path / "examples") == contents(whole)
    assert [part["valid"] for part in facts["parts"]] == [
        part["valid"] for part in (manifest.read(whole) or {})["parts"]
    ]


def test_ray_wants_files_and_no_negatives(days: Path, tmp_path: Path) -> None:
    world = synthetic.load(synthetic.Config(users=20, items=20, events=1000))
    with pytest.raises(InputError, match="is not read from files; --engine ray prepares"):
        prepare(world, SETTINGS, SPECS, tmp_path / "examples", {}, engine="ray")
    log = files.load(files.Config(events=str(days / "*.parquet"), partitioned=True))
    settings = SETTINGS.model_copy(update={"label": Label(negatives=2), "counters": ()})
    with pytest.raises(InputError, match="negatives are drawn part after part; leave --engine ray out"):
        prepare(log, settings, SPECS[:1], tmp_path / "examples", {}, engine="ray")
    assert not list(tmp_path.iterdir())


def test_killed_in_the_middle_then_run_again(days: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as the first part is written: nothing looks finished, and the next run is whole and right."""
    out = tmp_path / "examples"
    unfinished = out.with_name("examples.unfinished")
    work = "import sys; from pathlib import Path; from test_incremental import prepared"
    work += "\ndays, out = map(Path, sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        f"{work}\nprepared(days, out, sorted(days.glob('*.parquet')))",
        str(days),
        str(out),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as running:
        deadline = time.monotonic() + 60
        while not (unfinished / "frames" / "00000.parquet").exists():
            assert running.poll() is None, running.stderr.read() if running.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(running.pid, signal.SIGKILL)
    assert not out.exists()
    assert not (unfinished / manifest.MANIFEST).exists()
    subprocess.run(command, env=environment, check=True)
    assert not unfinished.exists()
    assert contents(out) == contents(whole)
