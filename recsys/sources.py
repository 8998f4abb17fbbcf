"""Baselines beside a retriever, whose scores of its candidates are features: `retrieved.item_knn` and its like."""

from pathlib import Path

import numpy as np
import polars as pl

from embeddings.histories import Histories
from features import registry
from features.schema import RETRIEVED, FeatureSpec
from features.settings import Settings
from recsys.scorer import Scorer

OWN = ("score", "graph", "place", "user")
"""What the retriever itself says of a candidate: its score, what the graph has added to it, its place, from 1; and
of the person: their vector."""

FOLDER = "sources"


def named(specs: tuple[FeatureSpec, ...]) -> tuple[str, ...]:
    """The baselines whose scores are features, in the order of their names."""
    names = {spec.source.removeprefix(RETRIEVED) for spec in specs if spec.retrieved}
    return tuple(sorted(names - set(OWN)))


def fit_sources(configs: dict[str, Settings], interactions: pl.DataFrame, items: pl.DataFrame, directory: Path) -> None:
    """Count each baseline over interactions, for the vocabulary `items`, and write it where `load_sources` looks."""
    for name, config in configs.items():
        module = registry.load("recsys.baselines", name, "features")
        folder = directory / FOLDER / name
        folder.mkdir(parents=True)
        module.fit(config, interactions, items).save(folder)


def load_sources(directory: Path) -> dict[str, Scorer]:
    """By name, those that were written."""
    folders = sorted((directory / FOLDER).glob("*"))
    return {folder.name: registry.load("recsys.baselines", folder.name, "features").load(folder) for folder in folders}


def scores_of(scorer: Scorer, past: Histories, items_BR: np.ndarray) -> np.ndarray:
    """A scorer's scores of candidates alone; float32 [B, R]."""
    return np.take_along_axis(scorer.scores(past), items_BR, axis=1)
