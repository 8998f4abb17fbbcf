from pathlib import Path

import pytest

from features import pipeline
from features.datasets import synthetic
from features.schema import FeatureSpec


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated world, prepared and split by time."""
    world = synthetic.Config(users=150, items=120, events=12_000, base_rate=0.2, seed=3)
    config = pipeline.Config(
        splits=("time",),
        max_history=12,
        history_actions=("click", "like", "share"),
        label=pipeline.Label(name="click", actions=("click", "like", "share")),
    )
    specs = (
        FeatureSpec(name="user_id", kind="sparse", source="user.index", transform="index"),
        FeatureSpec(name="item_id", kind="sparse", source="item.index", transform="index", table="item"),
        FeatureSpec(name="history", kind="bag", source="request.history", transform="index", table="item"),
        FeatureSpec(name="categories", kind="bag", source="item.categories", transform="lookup"),
        FeatureSpec(name="popularity", kind="dense", source="request.item_events", transform="numeric"),
    )
    out = tmp_path_factory.mktemp("synthetic") / "examples"
    pipeline.prepare(synthetic.load(world), config, specs, out, {})
    return out / "time"
