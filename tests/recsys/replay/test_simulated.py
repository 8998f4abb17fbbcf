"""Simulated A/B tests: correlations and draws against closed forms, and a world whose order of policies is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from features.datasets.synthetic import Config as WorldConfig
from features.datasets.synthetic import World
from features.errors import InputError
from recsys.console import console
from recsys.replay.dispatch import Progress
from recsys.replay.kinds import simulated
from recsys.replay.simulation import holdout, policies, population
from recsys.replay.simulation.agreement import Evidence, agreement, kendall, regret, spearman
from recsys.replay.simulation.policies import Policy

SHARED = {"kind": "sparse", "transform": "index"}
SYSTEM: dict[str, Any] = {
    "prepare": {
        "max_history": 20,
        "test_share": 0.3,
        "history_actions": ["click", "like", "share"],
        "label": {"name": "click", "actions": ["click", "like", "share"]},
    },
    "retriever": {
        "kind": "sequential",
        "model": {"dim": 8, "blocks": 1, "heads": 1},
        "train": {"epochs": 1, "batch_size": 64, "workers": 0, "asynchronous": False},
    },
    "ranker": {"kind": "dlrm", "train": {"epochs": 1, "workers": 0, "asynchronous": False}},
    "recommend": {"retrieved": 20},
    "features": [
        {"name": "user_id", "source": "user.index", "table": "user", **SHARED},
        {"name": "item_id", "source": "item.index", "table": "item", **SHARED},
        {"name": "history", "source": "request.history", "table": "item", **SHARED, "kind": "bag"},
    ],
}
# All items are equally likely in the log, so that its clicks favour nobody; and they differ much.
WORLD = WorldConfig(
    users=80,
    items=60,
    events=9_000,
    days=6,
    categories=6,
    dim=4,
    new_items=0,
    slate=5,
    seed=4,
    exploration=1,
    quality=1.5,
    taste_strength=4,
    base_rate=0.2,
    drift=0,
    trend=0,
    activity=0.5,
)
KINDS = {"chance": "random", "popular": "popularity", "truth": "oracle"}


def config(**settings: Any) -> simulated.Config:
    named = {name: Policy(kind=kind) for name, kind in KINDS.items()}
    given: dict[str, Any] = {"world": WORLD, "seeds": 1, "rounds": 2, "feeds": 150, "draws": 200, "system": SYSTEM}
    return simulated.Config(**given | {"policies": named} | settings)


def run(given: simulated.Config, directory: Path) -> dict[str, Any]:
    path = Path("simulated.toml")
    simulated.check(given, path)
    return simulated.run(given, path, directory, Progress(console))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    named = {name: Policy(kind=kind) for name, kind in KINDS.items()}
    trained = {"trained": Policy(kind="full", reference=True)}
    return run(config(policies=named | trained), tmp_path_factory.mktemp("simulated"))


@pytest.mark.parametrize("condition", ["without_feedback", "with_feedback"])
def test_truth_beats_popularity_beats_chance(found: dict[str, Any], condition: str) -> None:
    values = {name: own["online"][condition] for name, own in found["policies"].items()}
    for better, worse in (("truth", "popular"), ("popular", "chance")):
        assert values[better]["expected_clicks"]["low"] > values[worse]["expected_clicks"]["high"]
        assert values[better]["clicks"]["value"] > values[worse]["clicks"]["value"]
    for metric, one in found["agreement"][condition].items():
        assert one["spearman"]["value"] == one["kendall"]["value"] == 1, metric
        assert one["regret"]["value"] == 0


def test_what_is_written(found: dict[str, Any]) -> None:
    page = Path(found["report"])
    written = json.loads((page.parent / simulated.RESULT).read_text())
    assert written["verdict"] == found["verdict"]
    assert found["verdict"].replace("'", "&#39;") in page.read_text()
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "result.json"]
    assert [len(own["online"]["with_feedback"]["rounds"]) for own in found["policies"].values()] == [2] * 4


def test_same_seed_same_result(found: dict[str, Any], tmp_path: Path) -> None:
    again = run(config(), tmp_path)
    for name in KINDS:
        assert again["policies"][name] == found["policies"][name]
    assert again["agreement"] == found["agreement"]


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=(2, 40, 7)).astype(float)
    assert np.allclose(spearman(a, b), [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert np.allclose(kendall(a, b), [kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    same = np.ones((1, 4))
    assert spearman(same, np.arange(4.0)[None]) == kendall(same, np.arange(4.0)[None]) == 0
    assert regret(np.array([[3.0, 1, 2]]), np.array([[5.0, 8, 10]])) == 0.5


def test_interval_is_as_wide_as_the_evidence_is_poor() -> None:
    rng = np.random.default_rng(1)
    truth = np.linspace(0.1, 0.2, 6)

    def of(noise: float) -> dict[str, float]:
        gain = truth + noise * rng.standard_normal((200, 6))
        online = truth + noise / 10 * rng.standard_normal((5, 6))
        return agreement([Evidence(gain, np.ones(200), online)] * 2, 200, 0)["spearman"]

    assert of(0.0) == {"value": 1, "low": 1, "high": 1}
    poor = of(2.0)
    assert poor["low"] <= poor["value"] <= poor["high"]
    assert poor["high"] - poor["low"] > 0.5


def test_nobody_is_twice_among_requests_answered_together() -> None:
    world = World(WORLD)
    coming = population.visits(world, 0, 400, 12.0)
    assert (np.diff(coming.timestamp_R) > 0).all()
    assert coming.timestamp_R[0] >= WORLD.end_ms
    parts = list(population.together(coming.user_R))
    assert np.concatenate([coming.user_R[part] for part in parts]).tolist() == coming.user_R.tolist()
    assert all(len(set(coming.user_R[part])) == part.stop - part.start for part in parts)
    assert max(part.stop - part.start for part in parts) > 3


def test_clicks_and_the_estimate_from_the_log_are_the_truth(tmp_path: Path) -> None:
    given = config()
    world, log = World(WORLD), World(WORLD).events()
    resolved = simulated.run_of(given, "truth", Path("simulated.toml"))
    prepare = resolved.prepare.model_copy(update={"splits": ("time",)})
    resolved = resolved.model_copy(update={"prepare": prepare})
    examples = policies.prepare(world, log, resolved, tmp_path / "examples")
    held = holdout.cut(world, log, examples)
    truth = policies.fit(world, Policy(kind="oracle"), resolved, Path("simulated.toml"), examples, tmp_path / "truth")
    judged = holdout.judge(truth, held)
    users, times = held.user_R[:, None], held.timestamp_R[:, None]
    expected_R = world.expected_click(users, judged.feed_RS, np.arange(WORLD.slate), times).sum(1)
    error = judged.estimate_R.std() / np.sqrt(len(judged.estimate_R))
    assert abs(judged.estimate_R.mean() - expected_R.mean()) < 4 * error < 0.8 * expected_R.mean()

    coming = population.visits(world, 0, 600, 24.0)
    outcome = population.play(world, truth, coming, learns=False)
    shown = outcome.log
    preference = world.expected_click(shown["user_id"], shown["item_id"], shown["position"], shown["timestamp"])
    assert outcome.expected == pytest.approx(preference.sum() / 600)
    assert abs(outcome.clicks - outcome.expected) < 4 * np.sqrt((preference * (1 - preference)).sum()) / 600


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policies": {"a": Policy(kind="random"), "b": Policy(kind="gold")}}, "replay.policies.b.kind = 'gold'"),
        ({"policies": {"a": Policy(kind="random"), "b": Policy(kind="oracle", reference=True)}}, "less than 2"),
        ({"system": SYSTEM | {"dataset": {}}}, "unknown key replay.system.dataset"),
        ({"system": SYSTEM | {"retriever": {"kind": "dlrm"}}}, "replay.system.retriever.kind = 'dlrm' is a ranker"),
    ],
)
def test_bad_config_is_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        simulated.check(config(**settings), Path("simulated.toml"))
