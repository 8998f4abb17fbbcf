"""A bundle: one directory that holds all that answers requests, for one split, memory-mapped on load.

manifest.json                   what it was made from, the fingerprint of its schema
config.json                     the sections of models and recommendation
schema.json, transforms.json, item_features.arrow, user_features.arrow   the encoder
items.parquet, users.parquet    the vocabularies, with titles
actions.json                    the action of each code
snapshot/                       histories and counters when the test part begins
retriever.pt, ranker.pt         weights, whole tables
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from features import manifest
from features.encoder import Encoder, load_schema
from features.errors import InputError
from recsys import checkpoint
from recsys.train import ModelConfig, RankerConfig, RetrieverConfig, build_task

CONTENTS = (
    *("schema.json", "transforms.json", "item_features.arrow", "user_features.arrow"),
    *("items.parquet", "users.parquet", "actions.json", "snapshot"),
)
"""What is taken from the examples as it is."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    directory: Path
    facts: dict[str, Any]
    """Its manifest."""
    config: dict[str, Any]
    """Sections `retriever`, `ranker`, `recommend`, `prepare`."""
    encoder: Encoder
    items: pl.DataFrame
    """`index, item_id` and what is known of items; row i is index i."""
    users: pl.DataFrame
    retriever: nn.Module
    ranker: nn.Module


def export(
    examples: Path,
    retriever: tuple[RetrieverConfig, Path],
    ranker: tuple[RankerConfig, Path],
    config: dict[str, Any],
    out: Path,
    facts: dict[str, Any],
) -> None:
    """Put two checkpoints, of any world size and plan, and the split's examples together; whole or not at all.

    Raises:
        InputError: a checkpoint is missing or was trained on another schema.
    """
    schema = load_schema(examples)
    for _, path in (retriever, ranker):
        found = manifest.read(path)
        if found is not None and found["schema"] != schema.fingerprint:
            raise InputError(f"{path} was trained on another schema than {examples} has now; run `recsys train` again")
    with manifest.finished_directory(out, facts | {"schema": schema.fingerprint}) as directory:
        for name in CONTENTS:
            source = examples / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, directory / name)
        for name, (section, path) in (("retriever", retriever), ("ranker", ranker)):
            task = build_task(section, schema, torch.device("cpu"))
            checkpoint.load_model(path, task)
            torch.save(task.model.state_dict(), directory / f"{name}.pt")
        manifest.write_json(directory / "config.json", config)


def load(directory: Path) -> Bundle:
    """Load a bundle onto the CPU; weights stay on disk until they are touched, shared by all processes of a host.

    Raises:
        InputError: there is no finished bundle, or its parts were made with different schemas.
    """
    facts = manifest.read(directory)
    if facts is None:
        raise InputError(f"{directory}: no bundle here; run `recsys export` first")
    encoder = Encoder.load(directory)
    if facts["schema"] != encoder.schema.fingerprint:
        raise InputError(
            f"{directory}: the bundle was made with schema {facts['schema']}, but its schema.json is "
            f"{encoder.schema.fingerprint}; run `recsys export` again"
        )
    config = manifest.read_json(directory / "config.json")
    return Bundle(
        directory=directory,
        facts=facts,
        config=config,
        encoder=encoder,
        items=pl.read_parquet(directory / "items.parquet"),
        users=pl.read_parquet(directory / "users.parquet"),
        retriever=_model(RetrieverConfig.model_validate(config["retriever"]), encoder, directory / "retriever.pt"),
        ranker=_model(RankerConfig.model_validate(config["ranker"]), encoder, directory / "ranker.pt"),
    )


def _model(section: ModelConfig, encoder: Encoder, weights: Path) -> nn.Module:
    model = build_task(section, encoder.schema, torch.device("meta")).model
    model.load_state_dict(torch.load(weights, mmap=True, weights_only=True), assign=True)
    return model.eval()


def item_counts(bundle: Bundle) -> np.ndarray:
    """Interactions of each item in the snapshot; int64 [items + 1]."""
    counts = pl.read_parquet(bundle.directory / "snapshot" / "items.parquet", columns=["item_id", "events"])
    return (
        bundle.items.select("item_id")
        .join(counts, on="item_id", how="left", maintain_order="left")["events"]
        .fill_null(0)
        .to_numpy()
    )
