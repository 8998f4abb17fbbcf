"""Where a training stands, written down and taken up again: by the same processes, or by others under another plan."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from embeddings import sharding, tables
from features.encoder import load_schema
from features.errors import InputError
from recsys import checkpoint, distributed, logbook
from recsys.checkpoint import Checkpoints
from recsys.logbook import Logbook
from recsys.monitor import RecentMetrics
from recsys.roles import ModelConfig

IDENTITY = "identity"
"""What a checkpoint must have in common with a training that takes it up: layout and processes may differ."""


@dataclass(frozen=True)
class Training:
    """One model on one split; the same on every rank."""

    section: ModelConfig
    """The section of the model."""
    sharding: sharding.Config
    """What the planner may do."""
    tables: tables.Config
    """In which numbers tables are kept, and whose ids have no bound."""
    examples: Path
    """Directory of the split."""
    out: Path
    """Where the finished training goes: `<run>/checkpoints/<split>/<role>`."""
    run: Path
    """Where the logbook and the curves are."""
    refit: int | None = None
    """Epochs over training and validation part together, with nothing to choose; None: validation chooses."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest says beside the results; `data`, the fingerprint of what the examples were made from."""

    @property
    def name(self) -> str:
        """As the logbook has it: split and role."""
        return f"{self.out.parent.name}/{self.out.name}"

    def config(self) -> dict[str, Any]:
        """All sections, as plain values."""
        sections = {"model": self.section, "sharding": self.sharding, "tables": self.tables}
        return {name: section.model_dump(mode="json") for name, section in sections.items()}

    def identity(self) -> dict[str, Any]:
        """What weights depend on, but for the number of processes and the plan, which only change the order of sums."""
        found = self.config()
        del found["sharding"]
        loop = found["model"]["train"]
        for name in ("workers", "keep", "asynchronous", "log_every", "checkpoint_every"):
            del loop[name]
        data = {name: self.facts.get(name) for name in ("data", "environment")}
        return {**found, **data, "refit": self.refit, "schema": load_schema(self.examples).fingerprint}


@dataclass
class Progress:
    """Where a training stands: what a checkpoint says beside tensors and losses."""

    epoch: int = 0
    batch: int = 0
    """The next global batch of that epoch."""
    step: int = 0
    """Global batches so far, those skipped too."""
    updates: int = 0
    """Steps of the dense optimizer so far."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    validated: int = 0
    """Step of the last validation."""
    saved: int = 0
    """Step of the last checkpoint."""
    best: float | None = None
    """The best validation's score."""
    best_step: int = 0
    since_best: int = 0
    """Validations since then."""
    seconds: float = 0.0
    """Spent on steps so far, validations not counted."""
    validations: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each, with `step` and `epoch`."""


class Standing:
    """All that a training goes on from; every rank has one and calls its methods at the same step."""

    def __init__(
        self,
        training: Training,
        batches: int,
        model: DistributedModelParallel,
        optimizer: CombinedOptimizer,
        recent: RecentMetrics | None,
        checkpoints: Checkpoints,
        device: torch.device,
    ) -> None:
        """`batches`: of an epoch."""
        self.training, self.batches, self.model, self.optimizer = training, batches, model, optimizer
        self.recent, self.checkpoints, self.device = recent, checkpoints, device
        self.world, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.plan = sharding.describe(model)
        self.book = Logbook(training.run, training.name)
        self.progress = Progress()
        self.losses: list[float] = []
        """Of every step, over all ranks; not finite where the batch was skipped."""

    def note(self, kind: logbook.Kind, **facts: Any) -> None:
        """A line in the logbook, with where training stands."""
        if distributed.is_first():
            progress = self.progress
            self.book.write(kind, step=progress.step, epoch=progress.epoch, batch=progress.batch, **facts)

    def save(self) -> None:
        """Begin a checkpoint. A disk that is full costs the checkpoint, not the training: the next one may fit."""
        if self.progress.skipped_in_a_row and self.progress.best_step != self.progress.step:
            return  # what made the loss infinite may be in the weights, unless a validation has just shown otherwise
        self.wait()
        self.progress.saved = self.progress.step
        progress = asdict(self.progress) | {
            IDENTITY: self.training.identity(),
            "world": self.world,
            "plan": self.plan,
            "batches": self.batches,
        }
        self.checkpoints.save(self._state(), progress, np.array(self.losses), self.progress.best_step)

    def wait(self) -> None:
        """Until the checkpoint that was begun is whole, or is known to have failed."""
        try:
            written = self.checkpoints.wait()
        except OSError as error:
            self.note("not_saved", cause=str(error))
            return
        if written is not None:
            self.note("checkpoint", checkpoint=written)

    def require_best(self) -> None:
        """Refuse to end without the checkpoint that all of this was for.

        Raises:
            InputError: it could not be written, or is damaged.
        """
        best = checkpoint.unfinished(self.training.out) / checkpoint.name_of(self.progress.best_step)
        found = checkpoint.damage(best)
        if found is not None:
            raise InputError(
                f"{best}: the best checkpoint is not there as it was ({found}); make room on the disk and run "
                "`recsys train` again, which goes on from an earlier one"
            )

    def resume(self) -> None:
        """Take up the newest checkpoint that is whole and of this very training; otherwise make room for a new one."""
        folder, identity = checkpoint.unfinished(self.training.out), self.training.identity()
        for name in reversed(distributed.from_first(checkpoint.names(folder))):
            damage = checkpoint.damage(folder / name)
            if damage is not None:
                self._pass_over("damaged", name, damage)
                continue
            saved, losses = checkpoint.read(folder / name)
            unfit = self._unfit(folder, saved, identity)
            if unfit is None:
                self._take_up(folder / name, saved, losses)
                if distributed.is_first():
                    checkpoint.clear(folder, after=name)
                return
            self._pass_over("discarded", name, unfit)
        if distributed.is_first():
            checkpoint.clear(folder)
        torch.distributed.barrier()

    def _unfit(self, folder: Path, saved: dict[str, Any], identity: dict[str, Any]) -> str | None:
        changed = distributed.from_first(logbook.difference(saved[IDENTITY], logbook.plain(identity)))
        if changed:
            return f"it is of another training: {', '.join(changed)} changed"
        if saved["batches"] != self.batches:
            return f"an epoch had {saved['batches']} batches and has {self.batches} with {self.world} processes"
        if saved["best"] is not None and saved["best_step"] != saved["step"]:
            return checkpoint.damage(folder / checkpoint.name_of(saved["best_step"]))
        return None

    def _take_up(self, directory: Path, saved: dict[str, Any], losses: np.ndarray) -> None:
        state, rank = self._state(), str(torch.distributed.get_rank())
        for key, part in (("rng", rank), ("rng", f"cuda.{rank}"), ("metrics", rank)):
            # Another number of ranks has other generators and other shares of what was counted.
            if part in state.get(key, {}) and (
                saved["world"] != self.world or not checkpoint.has(directory, key, part)
            ):
                del state[key][part]
        checkpoint.restore(directory, state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if rank in state["rng"]:
            torch.set_rng_state(state["rng"][rank])
        if f"cuda.{rank}" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"][f"cuda.{rank}"], self.device)
        if self.recent is not None and rank in state["metrics"]:
            self.recent.module.load_state_dict(state["metrics"][rank])
        self.progress = Progress(**{name: saved[name] for name in asdict(self.progress)})
        self.losses = losses.tolist()
        if saved["world"] != self.world or saved["plan"] != logbook.plain(self.plan):
            self.note(
                "reshard",
                before={"world": saved["world"], "plan": saved["plan"]},
                after={"world": self.world, "plan": self.plan},
            )
        self.note("resume", checkpoint=directory.name)

    def _pass_over(self, kind: logbook.Kind, name: str, cause: str) -> None:
        if distributed.is_first():
            self.book.write(kind, checkpoint=name, cause=cause)

    def _state(self) -> dict[str, Any]:
        """Every tensor that what follows depends on."""
        rank = torch.distributed.get_rank()
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": {str(rank): torch.get_rng_state()},
        }
        if torch.cuda.is_available():
            state["rng"][f"cuda.{rank}"] = torch.cuda.get_rng_state(self.device)
        if self.recent is not None:
            self.recent.flush()
            state["metrics"] = {str(rank): dict(self.recent.module.state_dict())}
        return state
