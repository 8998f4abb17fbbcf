import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from features import pipeline
from features.datasets import synthetic
from features.schema import FeatureSpec


def feature(name: str, kind: Any, source: str, transform: str, **more: Any) -> FeatureSpec:
    return FeatureSpec(name=name, kind=kind, source=source, transform=transform, **more)


FEATURES = (
    feature("user_id", "sparse", "user.index", "index"),
    feature("item_id", "sparse", "item.index", "index", table="item"),
    feature("history", "bag", "request.history", "index", table="item"),
    feature("categories", "bag", "item.categories", "lookup"),
    feature("popularity", "dense", "request.item_events", "numeric"),
)


def prepared(out: Path, features: tuple[FeatureSpec, ...]) -> Path:
    """A small simulated world, split by time."""
    world = synthetic.Config(users=150, items=120, events=12_000, base_rate=0.2, seed=3)
    config = pipeline.Config(
        splits=("time",),
        max_history=12,
        history_actions=("click", "like", "share"),
        label=pipeline.Label(name="click", actions=("click", "like", "share")),
    )
    pipeline.prepare(synthetic.load(world), config, features, out, {})
    return out / "time"


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split whose bags are pooled by their means."""
    return prepared(tmp_path_factory.mktemp("synthetic") / "examples", FEATURES)


@pytest.fixture(scope="session")
def weighted_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, where the longer ago something was, the more it weighs."""
    weighted = FEATURES[2].model_copy(update={"weights": "request.history_gaps"})
    gaps = feature("gaps", "bag", "request.history_gaps", "quantile")
    return prepared(tmp_path_factory.mktemp("weighted") / "examples", (*FEATURES[:2], weighted, *FEATURES[3:], gaps))


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
