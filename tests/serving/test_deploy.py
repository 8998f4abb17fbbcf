"""Bundles go into service and out of it while requests run: no error, no mixture, and what is damaged stays out."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features import manifest
from features.errors import InputError
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import config as configs
from recsys import integrity, smoke
from recsys.config import RunConfig
from recsys.inference import Request
from serving import rollout, verified
from serving.app import check
from serving.config import Config
from serving.deploy import deploy, rollback
from serving.deployed import Deployed
from tests.conftest import FinishedRun


@dataclass
class Served:
    """A run of its own that shares nothing with the finished one but the config."""

    config: RunConfig
    section: Config
    path: Path
    other: Path
    """A bundle that answers otherwise."""

    @property
    def folder(self) -> Path:
        return self.config.directory / "served"

    def deploy(self, *words: Any, **more: Any) -> dict[str, Any]:
        return deploy(self.config, self.section, self.path, *words, **more)

    def rollback(self) -> dict[str, Any]:
        return rollback(self.config, self.section)


@pytest.fixture(scope="module")
def other_bundle(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's bundle with a ranker whose last bias is another."""
    import torch

    place = tmp_path_factory.mktemp("other") / "bundle"
    shutil.copytree(finished_run.directory / "bundle" / "time", place)
    weights = torch.load(place / "ranker" / bundles.DENSE, weights_only=True)
    name = [name for name in weights if name.endswith("bias")][-1]
    weights[name] = weights[name] + 1.0
    torch.save(weights, place / "ranker" / bundles.DENSE)
    facts = manifest.read(place)
    assert facts is not None
    smoke.record(bundles.load(place))
    manifest.write_json(place / manifest.MANIFEST, facts | integrity.described(place, facts))
    return place


@pytest.fixture
def served(finished_run: FinishedRun, other_bundle: Path, tmp_path: Path) -> Served:
    options = [*finished_run.options, "--run.directory", str(tmp_path)]
    config = configs.load(finished_run.config, options)
    shutil.copytree(finished_run.directory / "bundle", config.directory / "bundle")
    return Served(config, check(config, finished_run.config), finished_run.config, other_bundle)


@pytest.fixture
def live(served: Served) -> Iterator[Deployed]:
    served.deploy()
    variants = Deployed(served.folder, MemoryStore())
    yield variants
    variants.close()


def test_what_is_deployed_is_what_was_exported_and_the_other_way_round(served: Served) -> None:
    found = served.deploy()
    assert found["variants"]["control"]["share"] == 1
    assert found["questions"] == 64
    first = Path(found["bundle"])
    assert first == served.folder / integrity_of(first)
    # Linked, not copied: replicas of both names share pages, and a disk holds it once.
    source = served.config.directory / "bundle" / "time"
    assert (first / "config.json").stat().st_ino == (source / "config.json").stat().st_ino
    shutil.rmtree(source)
    assert verified.require(first) > 0  # an inode with one name less was touched
    assert verified.require(first) == 0
    second = served.deploy(served.other)
    assert [part["bundle"] for part in second["variants"].values()] == [integrity_of(served.other)]
    back = served.rollback()
    assert (back["number"], back["variants"]) == (3, found["variants"])
    with pytest.raises(InputError, match="nothing was deployed before"):
        served.rollback()


def integrity_of(bundle: Path) -> str:
    return (manifest.read(bundle) or {})[integrity.FINGERPRINT]


def test_only_so_many_bundles_are_kept(served: Served) -> None:
    served.section = served.section.model_copy(update={"keep": 2})
    served.deploy()
    served.deploy(served.other)
    names = {path.name for path in served.folder.iterdir() if path.is_dir()}
    assert names == {integrity_of(served.other), integrity_of(served.config.directory / "bundle" / "time")}
    served.deploy(served.other)
    assert {path.name for path in served.folder.iterdir() if path.is_dir()} == {integrity_of(served.other)}


def test_what_does_not_answer_as_it_did_is_not_deployed(served: Served, tmp_path: Path) -> None:
    served.deploy()
    before = (served.folder / rollout.FILE).read_bytes()
    damaged = Path(shutil.copytree(served.other, tmp_path / "damaged"))
    rows = next(damaged.rglob("rows.npy"))
    flip(rows)
    with pytest.raises(InputError, match=r"rows\.npy: its content is not what was exported"):
        served.deploy(damaged)
    flip(rows)
    recorded = manifest.read_json(damaged / smoke.FILE)
    recorded["answers"][7]["scores"][0] += 1
    manifest.write_json(damaged / smoke.FILE, recorded)
    facts = manifest.read(damaged) or {}
    manifest.write_json(damaged / manifest.MANIFEST, facts | integrity.described(damaged, facts))
    with pytest.raises(InputError, match=r"1 of 64 recorded questions are answered differently, the first: question 8"):
        served.deploy(damaged)
    assert (served.folder / rollout.FILE).read_bytes() == before
    with pytest.raises(InputError, match="no bundle here"):
        served.deploy(tmp_path)


def flip(path: Path) -> None:
    """Change one byte where it lies."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 0xFF]))


def test_a_bundle_damaged_after_it_was_deployed_never_answers(served: Served, live: Deployed) -> None:
    told: list[str | None] = []
    live.on_change = lambda change: told.append(change.problem)
    present = live.control.model
    found = served.deploy(served.other)
    rows = next(Path(found["bundle"]).rglob("rows.npy"))
    rows.write_bytes(whole := rows.read_bytes())
    flip(rows)
    live.watch(0.02)
    wait_until(lambda: bool(told))
    time.sleep(0.2)
    assert len(told) == 1  # it is not tried again and again
    assert "rows.npy: its content is not what was exported" in (told[0] or "")
    assert live.state["problem"] == told[0]
    assert (live.state["asked"], live.state["deployment"]["number"]) == (2, 1)
    assert live.control.model is present
    assert present.recommender.recommend(Request(user_id=1, k=5)).items
    # A replica that starts now finds the one before, too.
    started = Deployed(served.folder, MemoryStore())
    assert started.control.model.name == present.name
    assert started.state["problem"] == told[0]
    rows.write_bytes(whole)
    assert live.refresh()
    assert told[1:] == [None]
    assert live.control.model.name == found["variants"]["control"]["bundle"][:8]


def wait_until(done: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_run_through_changes_without_error_or_mixture(served: Served, live: Deployed) -> None:
    """Every answer is, number for number, that of the model whose name it bears."""
    users = list(range(1, 6))
    now = 1_800_000_000_000
    expected: dict[str, dict[int, list[tuple[Any, float]]]] = {}
    for bundle in (served.config.directory / "bundle" / "time", served.other):
        alone = type(live).of_bundle(bundle, MemoryStore(), served.config.recommend).control.model
        alone.recommender.seed()
        expected[alone.name] = {
            user: [(item.item_id, item.score) for item in alone.recommender.recommend(ask(user, now)).items]
            for user in users
        }
    first, second = expected
    assert expected[first] != expected[second]
    answered: dict[str, int] = {first: 0, second: 0}
    problems: list[object] = []
    stop = threading.Event()
    turn = threading.Lock()  # a recommender is asked by one thread at a time

    def run() -> None:
        try:
            while not stop.is_set():
                for user in users:
                    with turn:
                        model = live.of(user).model
                        time.sleep(0)
                        items = model.recommender.recommend(ask(user, now)).items
                    if [(item.item_id, item.score) for item in items] != expected[model.name][user]:
                        problems.append((model.name, user))
                    answered[model.name] += 1
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    live.watch(0.02)
    served.deploy(served.other)
    wait_until(lambda: answered[second] > 5)
    served.rollback()
    before = answered[first]
    wait_until(lambda: answered[first] > before + 5 or bool(problems))
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def ask(user: int, now: int) -> Request:
    return Request(user_id=user, k=10, timestamp=now)


def test_an_experiment_begins_grows_and_ends(served: Served, live: Deployed) -> None:
    users = list(range(4000))
    control = live.control.model
    served.deploy(served.other, variant="B", share=0.1)
    assert live.refresh()
    assert live.control.model is control  # whoever is in no experiment notices nothing
    first = {user for user in users if live.of(user).name == "B"}
    assert 0.08 < len(first) / len(users) < 0.12
    other = live.of(next(iter(first))).model
    assert other.name != control.name
    served.deploy(served.other, variant="B", share=0.3)
    assert live.refresh()
    second = {user for user in users if live.of(user).name == "B"}
    assert first < second
    assert live.of(next(iter(first))).model is other
    served.deploy(served.other, variant="B", shadow=True)
    assert live.refresh()
    assert [shadow.name for shadow in live.shadows] == ["B"]
    assert {live.of(user).name for user in users} == {"control"}
    served.deploy(variant="B", share=0)
    assert live.refresh()
    assert (len(live.all), live.shadows) == (1, ())
    with pytest.raises(InputError, match="there is none of that name; there are: none"):
        served.deploy(variant="B", share=0)
    for words, says in (
        ({"variant": "B"}, "belong together"),
        ({"share": 0.5}, "belong together"),
        ({"share": 0.5, "shadow": True}, "a shadow answers nobody"),
        ({"variant": "control", "share": 0.5}, "take another name"),
    ):
        with pytest.raises(InputError, match=says):
            served.deploy(**words)


def test_a_deployment_that_is_taken_away_changes_nothing(served: Served, live: Deployed) -> None:
    (served.folder / rollout.FILE).rename(served.folder / "elsewhere")
    assert not live.refresh()
    assert "nothing is deployed here" in live.state["problem"]
    (served.folder / rollout.FILE).write_text("{")
    assert not live.refresh()
    assert "cannot be read" in live.state["problem"]
    (served.folder / "elsewhere").rename(served.folder / rollout.FILE)
    assert not live.refresh()
    assert live.state["problem"] is None
