"""Checkpoints of any world size and plan → one bundle, with tables as they are or of 8 or 4 bits, and what that costs.

    recsys export CONFIG --export.tables int8

Tables pass through in blocks of rows, so that the memory this takes depends on the dense layers and a block, not on the
size of the model. Where tables are quantised, their quality is measured beside that of the same tables in fp32,
which lie on the disk meanwhile: the validation part that chose the checkpoint, judged as training judges it.
"""

import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pydantic import Field
from torch import nn

from embeddings import collisions
from embeddings.batch import Columns
from embeddings.collisions import Managed
from embeddings.quantized import Form, check_dim, dequantize, quantize, table_names
from features import manifest
from features.encoder import load_schema
from features.errors import InputError
from features.examples import Examples, PartExamples
from features.schema import Schema
from features.settings import Settings
from recsys import bundle as bundles
from recsys import checkpoint, distributed, integrity, smoke
from recsys.calibration import Calibration
from recsys.data import Place, RankingReader
from recsys.index.tree import Tree
from recsys.models.hierarchical import Hierarchical
from recsys.roles import (
    ModelConfig,
    RankerConfig,
    RetrieverConfig,
    build_task,
    open_catalogue,
    together,
    validate_ranking,
    validate_retrieval,
)
from recsys.sequences import NextItemReader
from recsys.sources import fit_sources
from recsys.stored import StoredModel

CALIBRATED = 8192
"""Examples that are scored at a time to calibrate."""


class Config(Settings):
    """The section [export]."""

    tables: Form = "fp32"
    """How rows of tables are written: as they are, or with 8 or 4 bits a weight, and a scale and a bias a row."""
    overrides: dict[str, Form] = Field(default_factory=dict)
    """Table → how it is written, if not as the others."""
    calibrate: bool = False
    """Whether the ranker's probabilities are calibrated on the validation part."""
    valid_rows: int = Field(default=100_000, gt=0)
    """Questions, and about so many examples, of the validation part, on which the lost quality is measured and the
    ranker is calibrated."""

    def form(self, table: str) -> Form:
        """How a table is written."""
        return self.overrides.get(table, self.tables)


def export(
    examples: Path,
    ranked: Path,
    retriever: tuple[RetrieverConfig, Path],
    ranker: tuple[RankerConfig, Path],
    sources: dict[str, Settings],
    managed: Managed,
    config: Config,
    sections: dict[str, Any],
    out: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Put two checkpoints, of any world size and plan, and the split's examples together; whole or not at all.

    Args:
        examples: directory of the split.
        ranked: of what the ranker was trained on: the same, or lists of candidates.
        retriever: its section, and its checkpoint.
        ranker: likewise.
        sources: baseline → Config of each whose score is a feature.
        managed: tables whose ids have no bound.
        config: how tables are written.
        sections: of the run's config, for those who load the bundle.
        out: where the bundle goes.
        facts: what its manifest says beside what is returned.

    Returns:
        What stands under `export` in its manifest: `form`, the config's; of all tables `fp32_bytes`, `bytes`, `ratio`;
        `relative_error`, the RMS error of a weight over the RMS weight; `largest_error` of a weight; `tables`, the same
        of each by role and name; `quality`, of each role whose tables are not all fp32 the metrics on the validation
        part with tables in `fp32` and as `stored`.

    Raises:
        InputError: a checkpoint is missing or was trained on another schema, or a table's width has no such form.
    """
    roles: dict[str, tuple[ModelConfig, Path, Path]] = {
        "retriever": (*retriever, examples),
        "ranker": (*ranker, ranked),
    }
    for _, path, trained_on in roles.values():
        found = manifest.read(path)
        if found is not None and found["schema"] != load_schema(trained_on).fingerprint:
            raise InputError(
                f"{path} was trained on another schema than {trained_on} has now; run `recsys train` again"
            )
    schema = load_schema(ranked)
    facts = facts | {"schema": schema.fingerprint}
    with manifest.finished_directory(out, facts) as directory:
        for place, names in ((ranked, bundles.ENCODER), (examples, bundles.OF_SPLIT)):
            for name in names:
                source = place / name
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, directory / name)
        if sources:
            items = pl.read_parquet(examples / "items.parquet")
            fit_sources(sources, Examples.open(examples).interactions(0, 1), items, directory)
        manifest.write_json(directory / "config.json", sections)
        tables: dict[str, dict[str, Written]] = {}
        quality: dict[str, Any] = {}
        for role, (section, path, trained_on) in roles.items():
            stored = StoredModel(checkpoint.best_state(path))
            tables[role] = write_model(section, schema, managed, stored, config, directory / role)
            if any(table.form != "fp32" for table in tables[role].values()):
                quality[role] = _quality(section, trained_on, managed, path, config, directory)
            if isinstance(section, RetrieverConfig):
                write_catalogue(section, examples, managed, directory / role)
            elif config.calibrate:
                model = bundles.load_model(section, schema, managed, directory / role)
                _calibration(model, ranked, config.valid_rows).save(directory / role, schema)
        facts["export"] = {"form": config.tables, **_summary(tables), "quality": quality}
        facts["exported"] = datetime.now(UTC).isoformat(timespec="seconds")
        smoke.record(bundles.load_written(directory, facts))
        facts |= integrity.described(directory, facts)
    return facts["export"]


@dataclass(frozen=True)
class Written:
    """One table of a bundle."""

    form: Form
    rows: int
    dim: int
    bytes: int
    """Of its rows as written."""
    squares: float
    """Sum of the squares of its weights."""
    squared_error: float
    """Sum of the squares of what its weights are off by."""
    largest_error: float
    """The most that a weight is off by."""

    @property
    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "form": self.form,
            "rows": self.rows,
            "dim": self.dim,
            "bytes": self.bytes,
            "relative_error": _relative(self.squared_error, self.squares),
            "largest_error": self.largest_error,
        }


def write_model(
    section: ModelConfig, schema: Schema, managed: Managed, stored: StoredModel, config: Config, folder: Path
) -> dict[str, Written]:
    """Write one model's folder of a bundle; what was written, by the name of each table's weight.

    Args:
        section: of the model.
        schema: of the split.
        managed: tables whose ids have no bound.
        stored: its checkpoint.
        config: how tables are written.
        folder: is made.

    Raises:
        InputError: a table's width has no such form.
    """
    # Maps of ids are frozen from what they hold, and are small.
    model = build_task(section, schema, torch.device("meta"), managed, maps=torch.device("cpu")).model
    names = table_names(model)
    for name, table in names.items():
        check_dim(table, stored.shape(f"model.{name}")[1], config.form(table))
    folder.mkdir(exist_ok=True)
    state = collisions.answering(model.state_dict())
    stored.fill({f"model.{name}": tensor for name, tensor in state.items() if name not in names})
    collisions.freeze(model)
    dense = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    torch.save(dense, folder / bundles.DENSE)
    return {
        name: write_table(stored, f"model.{name}", config.form(table), folder / name) for name, table in names.items()
    }


def write_catalogue(
    section: RetrieverConfig, examples: Path, managed: Managed, folder: Path, part: str | None = None
) -> None:
    """Beside a written retriever: what it knows of items, and, if it is hierarchical, the tree of them.

    Args:
        section: of the retriever.
        examples: directory of the split.
        managed: tables whose ids have no bound.
        folder: of the written retriever.
        part: see `open_catalogue`.
    """
    catalogue = open_catalogue(section, examples, part)
    catalogue.save(folder / bundles.CATALOGUE)
    model = bundles.load_model(section, load_schema(examples), managed, folder)
    if isinstance(model, Hierarchical):
        with torch.inference_mode():
            vectors_ID = model.item_vectors(catalogue)
            tree = Tree.build(vectors_ID.numpy(), model.paths(vectors_ID), model.quantizer.sizes)
        tree.save(folder / bundles.TREE)


def _calibration(model: nn.Module, examples: Path, limit: int) -> Calibration:
    """Of a written ranker, on about so many examples of the validation part."""
    valid = _spread(Examples.open(examples).of_part(1), limit)
    logits: list[np.ndarray] = []
    outcomes: list[np.ndarray] = []
    for block in valid:
        columns = Columns.of(block, valid.schema)
        assert columns.labels is not None
        outcomes.append(columns.labels)
        for first in range(0, columns.rows, CALIBRATED):
            rows = np.arange(first, min(first + CALIBRATED, columns.rows))
            with torch.inference_mode():
                logits.append(model(columns.take(rows).batch())["logits_BT"].float().numpy())
    return Calibration.fitted(np.concatenate(logits), np.concatenate(outcomes), valid.schema)


def _spread(part: PartExamples, limit: int) -> PartExamples:
    """Whole blocks of a part, spread evenly over it, with about so many examples."""
    count = min(len(part.blocks), max(1, round(limit / part.rows.mean())))
    return replace(part, blocks=part.blocks[np.linspace(0, len(part.blocks) - 1, count).astype(np.int64)])


def write_table(stored: StoredModel, name: str, form: Form, folder: Path) -> Written:
    """Write one table's folder, block by block of its rows.

    Args:
        stored: the checkpoint.
        name: of the table in it.
        form: how its rows are written.
        folder: is made.
    """
    folder.mkdir()
    rows, dim = stored.shape(name)
    squares = squared_error = largest = 0.0
    size = 0
    with (folder / bundles.ROWS).open("wb") as file:
        for block_RD in stored.blocks(name):
            packed_RW = quantize(block_RD, form)
            packed = packed_RW.numpy()
            if not size:
                header = {"descr": packed.dtype.str, "fortran_order": False, "shape": (rows, packed.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            size += file.write(packed.data)
            error_RD = dequantize(packed_RW, form) - block_RD
            squares += float(torch.linalg.vector_norm(block_RD)) ** 2
            squared_error += float(torch.linalg.vector_norm(error_RD)) ** 2
            largest = max(largest, float(torch.linalg.vector_norm(error_RD, torch.inf)))
    written = Written(form, rows, dim, size, squares, squared_error, largest)
    manifest.write_json(folder / bundles.TABLE, written.facts)
    return written


def _summary(tables: dict[str, dict[str, Written]]) -> dict[str, Any]:
    every = [table for of_role in tables.values() for table in of_role.values()]
    fp32_bytes, size = sum(4 * table.rows * table.dim for table in every), sum(table.bytes for table in every)
    return {
        "fp32_bytes": fp32_bytes,
        "bytes": size,
        "ratio": fp32_bytes / size,
        "relative_error": _relative(sum(table.squared_error for table in every), sum(table.squares for table in every)),
        "largest_error": max(table.largest_error for table in every),
        "tables": {role: {name: table.facts for name, table in named.items()} for role, named in tables.items()},
    }


def _relative(squared_error: float, squares: float) -> float:
    return math.sqrt(squared_error / squares) if squares else 0.0


def _quality(
    section: ModelConfig, examples: Path, managed: Managed, path: Path, config: Config, folder: Path
) -> dict[str, dict[str, float]]:
    """Metrics of a checkpoint with tables in fp32 and as `config` has them; both are in `folder` for that time alone.

    Of a model that was trained anew on the validation part too it is the checkpoint of the training before.
    """
    schema = load_schema(examples)
    if isinstance(section, RetrieverConfig) and section.train.refit:
        path = checkpoint.choice(path)
        section = section.model_copy(update={"train": section.train.model_copy(update={"refit": False})})
    stored = StoredModel(checkpoint.best_state(path))
    found: dict[str, dict[str, float]] = {}
    for name, form in (("fp32", Config()), ("stored", config)):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            write_model(section, schema, managed, stored, form, Path(scratch))
            model = bundles.load_model(section, schema, managed, Path(scratch))
            found[name] = validate(section, examples, managed, model, config.valid_rows)
    return found


def validate(section: ModelConfig, examples: Path, managed: Managed, model: nn.Module, limit: int) -> dict[str, float]:
    """Judge a loaded model on the validation part as training judges it.

    Args:
        section: of the model.
        examples: directory of the split.
        managed: tables whose ids have no bound.
        model: from a bundle.
        limit: questions, or about so many examples (whole blocks of them), spread evenly over the part.
    """
    schema = load_schema(examples)
    task = build_task(section, schema, torch.device("meta"), managed)
    task.model = model
    task.eval()
    batch_size, cpu = 4 * section.train.batch_size, torch.device("cpu")
    found: dict[str, float] = {}

    def judge() -> None:
        if isinstance(section, RetrieverConfig):
            path = examples / "sequences" / "valid.parquet"
            known = open_catalogue(section, examples)
            questions = NextItemReader(path, known, batch_size, limit, Place())
            found.update(validate_retrieval(task, questions, cpu))
            return
        valid = _spread(Examples.open(examples).of_part(1), limit)
        reader = RankingReader(valid, batch_size, 0, Place(), section.train.workers, together(examples))
        found.update(validate_ranking(task, reader, cpu))

    distributed.launch(judge, distributed.Config())
    return found
