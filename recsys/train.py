"""The training loop, the same for retriever and ranker: plan, shard, step, validate, keep the best."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from embeddings import optim, sharding
from embeddings.batch import Batch
from embeddings.init import initialise_tables
from features import registry
from features.encoder import load_schema
from features.errors import InputError
from features.examples import Examples
from features.manifest import write_json
from features.schema import Schema
from features.settings import Settings
from recsys import checkpoint, distributed
from recsys.console import console
from recsys.data import NextItemReader, Place, Position, RankingReader, SequenceReader
from recsys.metrics import next_item_metrics, pointwise_metrics, rank_of
from recsys.tasks import RankingTask, RetrievalLoss, RetrievalTask

Role = Literal["retriever", "ranker"]


class LoopConfig(Settings):
    """The section [<role>.train]."""

    epochs: int = Field(default=20, gt=0)
    """At most so many passes over the training part."""
    patience: int = Field(default=5, gt=0)
    """Stop after so many epochs without a better validation."""
    batch_size: int = Field(default=128, gt=0)
    """Rows of a global batch: windows of history, or examples."""
    seed: int = 0
    """Of initial weights, order and dropout."""
    workers: int = Field(default=1, ge=0)
    """Threads of each process that read and encode examples while it trains; 0: none, the training waits for them."""


class RetrieverLoop(LoopConfig):
    """The section [retriever.train]."""

    valid_rows: int = Field(default=5000, gt=0)
    """Questions asked in each validation, at most."""


class RankerLoop(LoopConfig):
    """The section [ranker.train]."""

    epochs: int = Field(default=5, gt=0)
    """At most so many passes over the training part."""
    patience: int = Field(default=2, gt=0)
    """Stop after so many epochs without a better validation."""
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
    loss: RetrievalLoss = RetrievalLoss()
    """The loss."""
    train: RetrieverLoop = RetrieverLoop()  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    """The loop."""


class RankerConfig(ModelConfig):
    """The section [ranker]."""

    kind: str = "dlrm"
    """The file in `recsys/models`."""
    train: RankerLoop = RankerLoop()  # pyright: ignore[reportIncompatibleVariableOverride] - it is frozen
    """The loop."""


@dataclass(frozen=True)
class Job:
    """Everything that training needs to know about its role."""

    task: nn.Module
    reader: SequenceReader | RankingReader
    validate: Callable[[DistributedModelParallel], dict[str, float]]
    better: Callable[[dict[str, float]], float]
    """Larger is better."""


def train(config: ModelConfig, shards: sharding.Config, examples: Path, out: Path, facts: dict[str, Any]) -> None:
    """Train one model on one split and leave its best checkpoint at `out`; every rank of a process group calls it.

    Args:
        config: the section of the model.
        shards: what the planner may do.
        examples: directory of the split.
        out: where the checkpoint goes, with `history.json` (loss of every step, validation of every epoch) and
            `position.json` (where in the epochs its state was saved).
        facts: what the checkpoint's manifest says beside the results.
    """
    device = distributed.device()
    torch.manual_seed(config.train.seed)
    job = _job(config, examples, device)
    optim.fuse(sharding.table_parameters(job.task), config.optimizer)
    model = sharding.shard(job.task, shards, device, config.train.batch_size)
    initialise_tables(model, config.train.seed)
    optimizer = optim.combine(model, config.optimizer)

    steps = len(job.reader)
    losses: list[float] = []
    validations: list[dict[str, float]] = []
    best, best_epoch = -np.inf, -1
    position = saved = Position(epoch=0, batch=0)
    started = time.perf_counter()
    with checkpoint.cleared_on_error(out), _Progress(config.train.epochs * steps, out) as progress:
        for epoch in range(config.train.epochs):
            model.train()
            parts: list[Tensor] = []
            for batch in job.reader.epoch(epoch):
                parts.append(_step(model, optimizer, batch.to(device)))
                position = position.after(steps)
                progress.step()
            losses += distributed.total(torch.stack(parts)).tolist()
            if not np.isfinite(losses[-len(parts) :]).all():
                raise InputError(
                    f"{out.name}: the loss is not finite in epoch {epoch}; lower optimizer.sparse_lr or dense_lr"
                )
            model.eval()
            validations.append(job.validate(model))
            score = job.better(validations[-1])
            if not np.isfinite(score):
                raise InputError(
                    f"{out.name}: validation is not finite in epoch {epoch}; lower the optimizer's learning rates"
                )
            progress.epoch(float(np.mean(losses[-len(parts) :])), validations[-1])
            if score > best:
                best, best_epoch, saved = score, epoch, position
                checkpoint.save_state(out, model, optimizer, saved)
            elif epoch - best_epoch >= config.train.patience:
                break
    seconds = time.perf_counter() - started
    if distributed.is_first():
        write_json(checkpoint.unfinished(out) / "history.json", {"loss": losses, "valid": validations})
        epochs = len(validations)
        facts |= {
            "schema": load_schema(examples).fingerprint,
            "epochs": epochs,
            "best_epoch": best_epoch,
            "position": asdict(saved),
            "valid": validations[best_epoch],
            "seconds": seconds,
            "rows_per_second": epochs * job.reader.rows / seconds,
            "parameters": sum(_size(value) for value in model.state_dict().values()),
            "plan": sharding.describe(model),
        }
        checkpoint.finish(out, facts)


def _step(model: DistributedModelParallel, optimizer: Any, batch: Batch) -> Tensor:
    """One update; the rank's part of the global mean loss. Gradients are averaged over ranks, hence the factor."""
    loss, _ = model(batch)
    optimizer.zero_grad()
    (loss * torch.distributed.get_world_size()).backward()
    optimizer.step()
    return loss.detach()


def build_model(config: ModelConfig, role: Role, schema: Schema, device: torch.device) -> nn.Module:
    """The model that a section names, tables on `device`.

    Raises:
        InputError: there is no such model, or it has another role.
    """
    module = registry.load("recsys.models", config.kind, f"{role}.kind")
    if role != module.ROLE:
        raise InputError(f"{role}.kind = {config.kind!r} is a {module.ROLE}; choose a {role}")
    return module.build(module.Config(**config.model), schema, device)


def build_task(config: ModelConfig, schema: Schema, device: torch.device) -> RetrievalTask | RankingTask:
    """The model with its loss, as it is trained and checkpointed."""
    if isinstance(config, RetrieverConfig):
        return RetrievalTask(build_model(config, "retriever", schema, device), config.loss, schema)
    return RankingTask(build_model(config, "ranker", schema, device), schema.label)


def _job(config: ModelConfig, examples: Path, device: torch.device) -> Job:
    schema = load_schema(examples)
    place = Place(torch.distributed.get_rank(), torch.distributed.get_world_size())
    loop = config.train
    task = build_task(config, schema, torch.device("meta"))
    if isinstance(config, RetrieverConfig):
        sequences = examples / "sequences"
        reader = SequenceReader(
            sequences / "train.parquet",
            schema.items,
            loop.batch_size,
            loop.seed,
            config.loss.sampled,
            place,
            loop.workers,
        )
        questions = NextItemReader(
            sequences / "valid.parquet", schema.items, 4 * loop.batch_size, config.train.valid_rows, place
        )
        _require_rows(questions.rows, place, sequences / "valid.parquet")
        return Job(
            task, reader, lambda model: validate_retrieval(model, questions, device), lambda found: found["ndcg@10"]
        )
    split = Examples.open(examples)
    training = RankingReader(split.of_part(0), loop.batch_size, loop.seed, place, loop.workers)
    valid = RankingReader(split.of_part(1), 4 * loop.batch_size, loop.seed, place, loop.workers)
    _require_rows(valid.rows, place, examples)
    return Job(task, training, lambda model: validate_ranking(model, valid, device), lambda found: -found["logloss"])


def _require_rows(rows: int, place: Place, path: Path) -> None:
    if rows < place.world:
        raise InputError(
            f"{path}: {rows} rows cannot validate {place.world} processes; use a longer log or fewer processes"
        )


@torch.no_grad()
def validate_retrieval(model: nn.Module, questions: NextItemReader, device: torch.device) -> dict[str, float]:
    """Full ranking over the catalogue, items of the visible history left out; every rank gets the same numbers."""
    ranks: list[np.ndarray] = []
    for batch, history_N, lengths_B, target_B in questions:
        _, outputs = model(batch.to(device))
        last_B = torch.from_numpy(np.cumsum(lengths_B) - 1)
        score_BC = (outputs["user_ND"][last_B] @ outputs["candidates_CD"].T).cpu()
        score_BC[np.repeat(np.arange(len(lengths_B)), lengths_B), history_N - 1] = -torch.inf
        target_B1 = target_B.astype(np.int64)[:, None] - 1
        ranks.append(rank_of(score_BC.numpy(), target_B1))
    return next_item_metrics(np.concatenate([rank for part in distributed.gathered(ranks) for rank in part]))


@torch.no_grad()
def validate_ranking(model: nn.Module, valid: RankingReader, device: torch.device) -> dict[str, float]:
    """Pointwise metrics over the validation part; every rank gets the same numbers."""
    steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch, user_B in valid.in_order():
        _, outputs = model(batch.to(device))
        assert batch.labels is not None
        probability_B = torch.sigmoid(outputs["logits_B"]).cpu().numpy()
        steps.append((probability_B, batch.labels[valid.schema.label].numpy(), user_B))
    parts = [part for step in zip(*distributed.gathered(steps), strict=True) for part in step]
    probability, label, user = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pointwise_metrics(probability, label, user)


def _size(value: Any) -> int:
    return int(np.prod(value.size()))


class _Progress:
    """On the first rank's stderr: a bar on a terminal, a line an epoch in a log."""

    def __init__(self, steps: int, out: Path) -> None:
        self.bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[found]}"),
            console=console,
            disable=not (distributed.is_first() and console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(f"{out.parent.name} {out.name}", total=steps, found="")
        self.epochs = 0

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self) -> None:
        """One batch is done."""
        self.bar.advance(self.task)

    def epoch(self, loss: float, found: dict[str, float]) -> None:
        """One epoch is done and validated."""
        self.epochs += 1
        numbers = {"loss": loss, **{name: found[name] for name in ("ndcg@10", "auc", "ne") if name in found}}
        text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.bar.update(self.task, found=text)
        if distributed.is_first() and not console.is_terminal:
            console.print(f"  epoch {self.epochs}: {text}", highlight=False)
