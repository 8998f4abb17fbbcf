"""A bundle: one directory that holds all that answers requests, for one split, memory-mapped on load.

manifest.json                   what it was made from, the fingerprint of its schema, the size of its tables and what
                                their form costs in quality, the checksum of every file: see `recsys.integrity`
config.json                     the sections of models and recommendation
schema.json, transforms.json, item_features.arrow, user_features.arrow   the encoder
items.parquet, users.parquet    the vocabularies, with titles
actions.json                    the action of each code
snapshot/                       histories and counters when the test part begins
smoke.json                      questions, and the answers that were given at export: see `recsys.smoke`
retriever/, ranker/             a model each
    dense.pt                    all weights but the tables'
    <table's parameter>/        a folder for each table, named as its weight in the model
        table.json              its form (fp32, int8 or int4), rows and columns, and how far off its rows are
        rows.npy                its rows: see `embeddings.quantized`

retriever/catalogue/            what the retriever knows of items: see `embeddings.catalogue`
sources/<baseline>/             what baselines have counted whose scores are features: see `recsys.sources`
retriever/tree/                 of a hierarchical retriever: its items by their paths, see `recsys.index.tree`

Whatever else belongs to one table has its place in that table's folder. `recsys.export` writes all of this.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from embeddings import collisions
from embeddings.catalogue import Catalogue
from embeddings.collisions import Managed
from embeddings.quantized import StoredTable, table_names, with_tables
from embeddings.tables import Config as TablesConfig
from features import manifest
from features.encoder import Encoder
from features.errors import InputError
from features.schema import Schema
from recsys.calibration import Calibration
from recsys.index.tree import Tree
from recsys.roles import ModelConfig, RankerConfig, RetrieverConfig, build_task, predictions
from recsys.scorer import Scorer
from recsys.sources import load_sources

DENSE, TABLE, ROWS = "dense.pt", "table.json", "rows.npy"
CATALOGUE, TREE = "catalogue", "tree"

ENCODER = ("schema.json", "transforms.json", "item_features.arrow", "user_features.arrow")
"""What is taken as it is from the examples that the ranker was trained on."""

OF_SPLIT = ("items.parquet", "users.parquet", "actions.json", "snapshot")
"""What is taken from those of the split."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle."""

    directory: Path
    facts: dict[str, Any]
    """Its manifest."""
    config: dict[str, Any]
    """Sections `retriever`, `ranker`, `tables`, `recommend`, `prepare`."""
    encoder: Encoder
    items: pl.DataFrame
    """`index, item_id` and what is known of items; row i is index i."""
    users: pl.DataFrame
    retriever: nn.Module
    catalogue: Catalogue
    """What the retriever knows of items."""
    tree: Tree | None
    """Its hierarchy of them, if it has one."""
    sources: dict[str, Scorer]
    """Baselines whose scores are features, by name."""
    ranker: nn.Module
    calibration: Calibration
    """Of the ranker."""

    def predictions(self, logits_BT: Tensor) -> Tensor:
        """What the ranker's outputs say, calibrated: see `recsys.roles.predictions`."""
        return predictions(self.calibration(logits_BT), self.encoder.schema)


def load(directory: Path) -> Bundle:
    """Load a bundle onto the CPU; weights stay on disk until they are touched, shared by all processes of a host.

    Raises:
        InputError: there is no finished bundle, or its parts were made with different schemas.
    """
    facts = manifest.read(directory)
    if facts is None:
        raise InputError(f"{directory}: no bundle here; run `recsys export` first")
    return load_written(directory, facts)


def load_written(directory: Path, facts: dict[str, Any]) -> Bundle:
    """The same of a directory whose manifest is still to be written."""
    encoder = Encoder.load(directory)
    if facts["schema"] != encoder.schema.fingerprint:
        raise InputError(
            f"{directory}: the bundle was made with schema {facts['schema']}, but its schema.json is "
            f"{encoder.schema.fingerprint}; run `recsys export` again"
        )
    config = manifest.read_json(directory / "config.json")
    managed = TablesConfig.model_validate(config["tables"]).managed
    ranker = load_model(RankerConfig.model_validate(config["ranker"]), encoder.schema, managed, directory / "ranker")
    retrieval = load_retrieval(directory, facts, config, encoder)
    return replace(retrieval, ranker=ranker, calibration=Calibration.load(directory / "ranker", encoder.schema))


def load_retrieval(directory: Path, facts: dict[str, Any], config: dict[str, Any], encoder: Encoder) -> Bundle:
    """What retrieves, from a directory with that part of a bundle; its ranker ranks nothing."""
    managed = TablesConfig.model_validate(config["tables"]).managed
    section, folder = RetrieverConfig.model_validate(config["retriever"]), directory / "retriever"
    return Bundle(
        directory=directory,
        facts=facts,
        config=config,
        encoder=encoder,
        items=pl.read_parquet(directory / "items.parquet"),
        users=pl.read_parquet(directory / "users.parquet"),
        retriever=load_model(section, encoder.schema, managed, folder),
        catalogue=Catalogue.load(folder / CATALOGUE),
        tree=Tree.load(folder / TREE) if (folder / TREE).exists() else None,
        sources=load_sources(directory),
        ranker=nn.Identity(),
        calibration=Calibration.none(encoder.schema),
    )


def load_model(section: ModelConfig, schema: Schema, managed: Managed, folder: Path) -> nn.Module:
    """A model from its folder; no weight is read before it is touched."""
    model = build_task(section, schema, torch.device("meta"), managed).model
    collisions.freeze(model)
    dense = torch.load(folder / DENSE, mmap=True, weights_only=True)
    tables = {name: _table(folder / name) for name in table_names(model)}
    model = with_tables(model, tables)
    model.load_state_dict(dense, assign=True)
    return model.eval()


def _table(folder: Path) -> StoredTable:
    # Copy on write, not read-only: torch warns of tensors that must not be written.
    rows = np.load(folder / ROWS, mmap_mode="c")
    return StoredTable(manifest.read_json(folder / TABLE)["form"], torch.from_numpy(rows))


def item_counts(bundle: Bundle) -> np.ndarray:
    """Interactions of each item in the snapshot; int64 [items + 1]."""
    counts = pl.read_parquet(bundle.directory / "snapshot" / "items.parquet", columns=["item_id", "events"])
    return (
        bundle.items.select("item_id")
        .join(counts, on="item_id", how="left", maintain_order="left")["events"]
        .fill_null(0)
        .to_numpy()
    )
