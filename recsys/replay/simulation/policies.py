"""Policies fitted on a log, each a `Recommender`: chance, the truth, baselines, and what Feedline trains.

    prepared = prepare(world, log, run, directory / "prepared")
    recommender = fit(world, policy, run, prepared, directory / "full")

A policy that is trained goes the way of every run: examples, checkpoint, bundle. None of them needs the stages.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field
from torch import nn

from features import pipeline, registry
from features.datasets.synthetic import World
from features.events import RawLog, in_one_part
from features.examples import Examples
from features.online import Event, MemoryStore
from features.settings import Settings
from recsys import bundle as bundles
from recsys import checkpoint, export
from recsys.bundle import Bundle
from recsys.calibration import Calibration
from recsys.config import RunConfig, baseline_configs
from recsys.inference import Recommender, Request
from recsys.resume import Training
from recsys.retrieval import Retrieval
from recsys.roles import ModelConfig, RetrieverConfig, open_catalogue
from recsys.scorer import Scorer
from recsys.stored import StoredModel
from recsys.train import launch

SPLIT = "time"
TRAINED = ("retriever", "full")
KNOWING = ("random", "oracle")
"""Kinds whose scores come from the world and not from the log."""


class Policy(Settings):
    """A section [replay.policies.<name>]."""

    kind: str
    """`random`; `oracle`, which knows the true preferences; a file in `recsys/baselines`; `retriever`, which is
    trained; `full`: retriever and ranker."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What is other than in [replay.system], section by section."""
    reference: bool = False
    """Whether it is shown for comparison alone, and left out of the rank correlations."""


@dataclass(frozen=True)
class Reference:
    """Scores that no log is needed for: of the truth, or of chance."""

    world: World
    kind: str

    def scores(self, requests: list[Request], items: np.ndarray) -> np.ndarray:
        """float32 [B, I] of the items at the time of each request."""
        users = np.array([request.user_id for request in requests], dtype=np.int64)
        times = np.array([request.timestamp for request in requests], dtype=np.int64)
        if self.kind == "oracle":
            return self.world.preference_all(users, times)[:, items].astype(np.float32)
        seeds = zip(users.tolist(), times.tolist(), strict=True)
        drawn = [np.random.default_rng([self.world.config.seed, *seed]).random(len(items)) for seed in seeds]
        return np.array(drawn, dtype=np.float32).reshape(len(requests), len(items))


@dataclass(frozen=True, kw_only=True)
class ReferenceRetrieval(Retrieval):
    """A retriever that needs to know who asks, and no history."""

    reference: Reference
    item_ids: list[Any]

    def scores(self, requests: Sequence[Request], histories: Sequence[Sequence[Event]]) -> np.ndarray:
        """float32 [B, I + 1]; −inf for what must not be shown."""
        score_BI = super().scores(requests, histories)
        items = np.array(self.item_ids[1:], dtype=np.int64)
        found = np.pad(self.reference.scores(list(requests), items), ((0, 0), (1, 0)))
        return np.where(np.isfinite(score_BI), found, -np.inf).astype(np.float32)


def prepare(world: World, log: pl.DataFrame, run: RunConfig, out: Path) -> Path:
    """Examples of a log, as `recsys prepare` makes them; the directory of their split."""
    raw = RawLog(
        parts=in_one_part(log, "simulated"),
        items=world.items(),
        users=world.users(),
        source=f"simulated log, seed {world.config.seed}",
    )
    pipeline.prepare(raw, run.prepare, run.features, out, {"has_clock": True, "settings": ""})
    return out / SPLIT


def fit(world: World, policy: Policy, run: RunConfig, path: Path, examples: Path, out: Path) -> Recommender:
    """A policy as of the moment when the test part begins.

    Args:
        world: whose truth and chance references ask for.
        policy: which.
        run: its config.
        path: the config's file, for messages.
        examples: directory of the split.
        out: for checkpoints and bundle; what was there before is replaced.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sections = {
        name: getattr(run, name).model_dump(mode="json")
        for name in ("prepare", "retriever", "ranker", "tables", "recommend")
    }
    store = MemoryStore(retain=run.prepare.retain)
    if policy.kind in TRAINED:
        bundle = _trained(policy, run, sections, examples, out)
        recommender = Recommender(bundle, store, run.recommend, rank=policy.kind == "full")
    else:
        bundle = _counted(sections, examples)
        config = run.recommend.model_copy(update={"index": "exact"})
        if policy.kind in KNOWING:
            recommender = Recommender(bundle, store, config, _Nothing(bundle.items.height), rank=False)
            parts = {each.name: getattr(recommender.retrieval, each.name) for each in fields(recommender.retrieval)}
            reference = Reference(world, policy.kind)
            recommender.retrieval = ReferenceRetrieval(**parts, reference=reference, item_ids=recommender.item_ids)
        else:
            settings = baseline_configs(run, path)[policy.kind]
            known = Examples.open(examples).interactions(0, 1)
            module = registry.load("recsys.baselines", policy.kind, "kind")
            recommender = Recommender(bundle, store, config, module.fit(settings, known, bundle.items), rank=False)
    recommender.seed()
    return recommender


def test_events(examples: Path) -> list[Event]:
    """What happened in the test part, in order."""
    tail = Examples.open(examples).interactions(2)
    rows = tail.select("user_id", "item_id", "timestamp", "action", "value")
    return [Event(**row) for row in rows.iter_rows(named=True)]


@dataclass(frozen=True)
class _Nothing(Scorer):
    """Scores that say nothing."""

    columns: int

    def scores(self, histories: Any) -> np.ndarray:
        return np.zeros((len(histories.lengths_B), self.columns), dtype=np.float32)


def _counted(sections: dict[str, Any], examples: Path) -> Bundle:
    """What a recommender needs beside a retriever; examples have it all."""
    schema = Examples.open(examples).encoder
    plain = RetrieverConfig()
    return Bundle(
        directory=examples,
        facts={"has_clock": True},
        config=sections,
        encoder=schema,
        items=pl.read_parquet(examples / "items.parquet"),
        users=pl.read_parquet(examples / "users.parquet"),
        retriever=nn.Identity(),
        catalogue=open_catalogue(plain, examples, "train"),
        tree=None,
        sources={},
        ranker=nn.Identity(),
        calibration=Calibration.none(schema.schema),
    )


def _trained(policy: Policy, run: RunConfig, sections: dict[str, Any], examples: Path, out: Path) -> Bundle:
    section = run.retriever
    retriever = (section, _train(run, section, examples, out, "retriever"))
    facts = {"has_clock": True, "schema": Examples.open(examples).schema.fingerprint}
    managed = run.tables.managed
    bundle = out / "bundle"
    if policy.kind == "full":
        ranker = (run.ranker, _train(run, run.ranker, examples, out, "ranker"))
        export.export(
            examples, examples, retriever, ranker, {}, managed, run.export, sections, bundle, {"has_clock": True}
        )
        return bundles.load(bundle)
    bundle.mkdir()
    for name in (*bundles.ENCODER, *bundles.OF_SPLIT):
        source = examples / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, bundle / name)
    stored = StoredModel(checkpoint.best_state(retriever[1]))
    schema = Examples.open(examples).schema
    export.write_model(section, schema, managed, stored, run.export, bundle / "retriever")
    export.write_catalogue(section, examples, managed, bundle / "retriever")
    return bundles.load_retrieval(bundle, facts, sections, Examples.open(examples).encoder)


def _train(run: RunConfig, section: ModelConfig, examples: Path, out: Path, role: str) -> Path:
    training = Training(
        section=section,
        sharding=run.sharding,
        tables=run.tables,
        examples=examples.resolve(),
        out=(out / "checkpoints" / role).resolve(),
        run=out.resolve(),
    )
    launch(training, run.launch)
    return training.out
