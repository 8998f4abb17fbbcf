"""The two roles, retriever and ranker: their sections of the config, how their models are built, fed and judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from embeddings import catalogue, collisions, optim
from embeddings.batch import Batch
from embeddings.catalogue import Catalogue, Shape
from embeddings.collisions import Managed
from features import manifest, registry
from features.encoder import load_schema
from features.errors import InputError
from features.examples import Examples
from features.schema import Schema
from features.settings import Settings
from recsys import distributed
from recsys.data import Place, RankingReader
from recsys.losses import Links
from recsys.metrics import next_item_metrics, outcome_metrics, rank_of
from recsys.sequences import NextItemReader, SequenceReader
from recsys.tasks import RankingLoss, RankingTask, RetrievalLoss, RetrievalTask

Role = Literal["retriever", "ranker"]

NEXT = "next"
"""The label of a ranker of what was retrieved: whether the candidate is what came next."""

TOGETHER = "together.json"
"""Beside examples that are lists: how many rows that follow each other are one."""


class LoopConfig(Settings):
    """The section [<role>.train]."""

    epochs: int = Field(default=20, gt=0)
    """At most so many passes over the training part."""
    patience: int = Field(default=5, gt=0)
    """Stop after so many validations without a better one."""
    batch_size: int = Field(default=128, gt=0)
    """Rows of a global batch: windows of history, or examples."""
    seed: int = 0
    """Of initial weights, order and dropout."""
    workers: int = Field(default=1, ge=0)
    """Threads of each process that read and encode examples while it trains; 0: none, the training waits for them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the dense layers' matrix products: bf16 computes them under autocast; weights and tables are as they are."""
    validate_every: int | None = Field(default=None, gt=0)
    """Batches from one validation to the next; None: one at the end of every epoch, which there is in any case."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Batches from one checkpoint to the next; None: one after every validation, which there is in any case."""
    keep: int = Field(default=2, gt=0)
    """How many of the last checkpoints to keep, beside the best."""
    asynchronous: bool = True
    """Whether checkpoints are written while training goes on, from a copy in host memory."""
    max_skipped: int = Field(default=10, ge=0)
    """How many batches in a row may have a loss that is not finite, and be skipped, before training stops."""
    log_every: int = Field(default=50, gt=0)
    """Batches from one point of the curves to the next."""


class RetrieverLoop(LoopConfig):
    """The section [retriever.train]."""

    refit: bool = False
    """Whether to train anew on training and validation part together, for as many epochs as validation has chosen."""

    valid_rows: int = Field(default=5000, gt=0)
    """Questions asked in each validation, at most."""


class RankerLoop(LoopConfig):
    """The section [ranker.train]."""

    epochs: int = Field(default=5, gt=0)
    """At most so many passes over the training part."""
    patience: int = Field(default=2, gt=0)
    """Stop after so many validations without a better one."""
    batch_size: int = Field(default=1024, gt=0)
    """Examples of a global batch."""


class ModelConfig(Settings):
    """What [retriever] and [ranker] have in common."""

    kind: str
    """The file in `recsys/models`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """The model's own section, checked by its Config."""
    optimizer: optim.Config = optim.Config()
    """The optimizers."""
    train: LoopConfig = LoopConfig()
    """The loop."""


class RetrieverConfig(ModelConfig):
    """The section [retriever]."""

    kind: str = "sequential"
    """The file in `recsys/models`."""
    items: catalogue.Config = catalogue.Config()
    """What is known of items beside their embedding."""
    loss: RetrievalLoss = RetrievalLoss()
    """The loss."""
    train: RetrieverLoop = RetrieverLoop()  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    """The loop."""

    @model_validator(mode="after")
    def _check(self) -> "RetrieverConfig":
        if self.loss.kind == "binary" and self.items.graph is not None and self.items.links:
            raise ValueError("loss.kind = 'binary' trains no links of a graph; set items.links = false")
        return self


class RankerConfig(ModelConfig):
    """The section [ranker]."""

    kind: str = "dlrm"
    """The file in `recsys/models`."""
    loss: RankingLoss = RankingLoss()
    """The loss."""
    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Of a ranker of what was retrieved: the share of the people whose lists validate it."""
    train: RankerLoop = RankerLoop()  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    """The loop."""


@dataclass(frozen=True)
class Job:
    """Everything that training needs to know about its role."""

    task: nn.Module
    reader: SequenceReader | RankingReader
    validate: Callable[[nn.Module], dict[str, float]] | None
    """None where nothing is to be chosen."""
    better: Callable[[dict[str, float]], float]
    """Of a validation's metrics; larger is better."""
    metric: str
    """What `better` looks at."""
    label: str | None
    """The task whose predictions are probabilities; None for none."""


def build_model(config: ModelConfig, role: Role, made_for: Schema | Shape, device: torch.device) -> nn.Module:
    """The model that a section names, for a schema (ranker) or a catalogue's shape (retriever), tables on `device`.

    Raises:
        InputError: there is no such model, or it has another role.
    """
    module = registry.load("recsys.models", config.kind, f"{role}.kind")
    if role != module.ROLE:
        raise InputError(f"{role}.kind = {config.kind!r} is a {module.ROLE}; choose a {role}")
    return module.build(module.Config(**config.model), made_for, device)


def build_task(
    config: ModelConfig, schema: Schema, device: torch.device, managed: Managed, maps: torch.device | None = None
) -> RetrievalTask | RankingTask:
    """The model with its loss, as it is trained and checkpointed.

    Args:
        config: the section of the model.
        schema: of the examples.
        device: of the tables.
        managed: tables whose ids have no bound; those of this model are replaced by managed ones.
        maps: of their maps of ids; None: as the tables.
    """
    task = _build_task(config, collisions.resolve(schema, managed), device)
    collisions.manage(task, managed, maps)
    return task


def _build_task(config: ModelConfig, schema: Schema, device: torch.device) -> RetrievalTask | RankingTask:
    if isinstance(config, RetrieverConfig):
        return RetrievalTask(build_model(config, "retriever", Shape.of(schema, config.items), device))
    assert isinstance(config, RankerConfig)
    return RankingTask(build_model(config, "ranker", schema, device), schema, config.loss)


def open_job(
    config: ModelConfig, managed: Managed, examples: Path, device: torch.device, *, refit: bool = False
) -> Job:
    """The task on the meta device, and this rank's readers of a split.

    Args:
        config: the section of the model.
        managed: tables whose ids have no bound.
        examples: directory of the split.
        device: of training.
        refit: whether the retriever's reader goes over the validation part too.

    Raises:
        InputError: the validation part has fewer rows than there are processes.
    """
    schema = load_schema(examples)
    place = Place(torch.distributed.get_rank(), torch.distributed.get_world_size())
    loop = config.train
    task = build_task(config, schema, torch.device("meta"), managed)
    if isinstance(config, RetrieverConfig):
        prepared = manifest.read(examples.parent) or {}
        if config.model.get("time") and not prepared.get("has_clock", True):
            raise InputError("retriever.model.time = true, but the log has positions, no times; set it to false")
        sequences = examples / "sequences"
        part = "known" if refit else "train"
        known = open_catalogue(config, examples, part)
        reader = SequenceReader(
            sequences / f"{part}.parquet",
            known,
            loop.batch_size,
            loop.seed,
            config.loss.candidates,
            place,
            loop.workers,
            config.items.cold,
            config.items.drawn,
        )
        questions = NextItemReader(
            sequences / "valid.parquet", known, 4 * loop.batch_size, config.train.valid_rows, place
        )
        _require_rows(questions.rows, place, sequences / "valid.parquet")
        return Job(
            task=task,
            reader=reader,
            validate=None if refit else lambda model: validate_retrieval(model, questions, device),
            better=lambda found: found["ndcg@10"],
            metric="ndcg@10",
            label=None,
        )
    split, lists = Examples.open(examples), together(examples)
    training = RankingReader(split.of_part(0), loop.batch_size, loop.seed, place, loop.workers, lists)
    valid = RankingReader(split.of_part(1), 4 * loop.batch_size, loop.seed, place, loop.workers, lists)
    _require_rows(valid.rows // lists, place, examples)
    return Job(
        task=task,
        reader=training,
        validate=lambda model: validate_ranking(model, valid, device),
        better=lambda found: -found["logloss"] if lists == 1 else found["ndcg@10"],
        metric="logloss" if lists == 1 else "ndcg@10",
        label=schema.label,
    )


def together(examples: Path) -> int:
    """How many examples that follow each other are a list; 1: there are no lists."""
    return manifest.read_json(examples / TOGETHER)["together"] if (examples / TOGETHER).exists() else 1


def open_catalogue(config: RetrieverConfig, examples: Path, part: str | None = None) -> Catalogue:
    """What is known of items by the end of a part: `train`, `known` (training and validation), None: as was trained."""
    part = part or ("known" if config.train.refit else "train")
    windows = pl.read_parquet(examples / "sequences" / f"{part}.parquet", columns=["items"])["items"]
    return Catalogue.of(Examples.open(examples).encoder, windows, config.items)


def _require_rows(rows: int, place: Place, path: Path) -> None:
    if rows < place.world:
        raise InputError(
            f"{path}: {rows} rows cannot validate {place.world} processes; use a longer log or fewer processes"
        )


@torch.no_grad()
def validate_retrieval(model: nn.Module, questions: NextItemReader, device: torch.device) -> dict[str, float]:
    """Full ranking over the catalogue, items of the visible history left out; every rank gets the same numbers."""
    ranks: list[np.ndarray] = []
    for batch, histories, target_B in questions:
        batch = batch.to(device)
        _, outputs = model(batch)
        last_B = torch.from_numpy(np.cumsum(histories.lengths_B) - 1)
        score_BC = (outputs["user_ND"][last_B] @ outputs["candidates_CD"].T).float()
        if (links := Links.of(batch, outputs)) is not None:
            links.add_to(score_BC)
        score_BC = score_BC.cpu()
        score_BC[histories.rows_N, histories.items_N - 1] = -torch.inf
        target_B1 = target_B.astype(np.int64)[:, None] - 1
        ranks.append(rank_of(score_BC.numpy(), target_B1))
    return next_item_metrics(np.concatenate([rank for part in distributed.gathered(ranks) for rank in part]))


@torch.no_grad()
def validate_ranking(model: nn.Module, valid: RankingReader, device: torch.device) -> dict[str, float]:
    """Pointwise metrics of the label over the validation part, and `task/metric` of the other tasks.

    Every rank gets the same numbers.
    """
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch, user_B in valid.in_order():
        _, outputs = model(batch.to(device))
        assert batch.labels is not None
        predicted_BT = predictions(outputs["logits_BT"], valid.schema)
        steps.append((predicted_BT.cpu().numpy(), batch.labels["outcomes"].numpy(), user_B))
    parts = [part for step in zip(*distributed.gathered(steps), strict=True) for part in step]
    predicted, outcome, user = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = outcome_metrics(valid.schema, predicted, outcome, user)
    label = found.pop(valid.schema.label)
    others = {f"{name}/{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}
    if valid.together > 1:
        label |= list_metrics(predicted[:, 0], outcome[:, 0], valid.together)
    return {name: value for name, value in label.items() if name not in ("examples", "base_rate")} | others


def list_metrics(predicted_B: np.ndarray, right_B: np.ndarray, together: int) -> dict[str, float]:
    """Next-item metrics of lists of so many candidates by their predictions; ties share their mean place."""
    predicted_LR, right_LR = predicted_B.reshape(-1, together), right_B.reshape(-1, together)
    rank_L = rank_of(predicted_LR, right_LR.argmax(1)[:, None])
    return next_item_metrics(np.where(right_LR.any(1), rank_L, np.inf))


def predictions(logits_BT: Tensor, schema: Schema) -> Tensor:
    """What a ranker's outputs say: probabilities, or of tasks that are numbers these, standardised; float32 [B, T]."""
    logits_BT = logits_BT.detach().float()
    binary_T = torch.tensor(schema.binary, device=logits_BT.device)
    return torch.where(binary_T, torch.sigmoid(logits_BT), logits_BT)


def label_predictions(outputs: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(probability, label, weight) of a batch's first task; float32 [B] each."""
    assert batch.labels is not None
    truth_B = batch.labels["outcomes"][:, 0]
    weight_B = torch.ones_like(truth_B) if batch.weights is None else batch.weights
    return torch.sigmoid(outputs["logits_BT"][:, 0].detach().float()), truth_B, weight_B
