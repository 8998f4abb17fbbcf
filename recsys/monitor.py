"""What is seen of a training: a bar with its speed and the time left, curves in TensorBoard, recent metrics.

    tensorboard --logdir runs/<name>/tensorboard

Curves of the loss, the learning rate, the gradient's norm and speed have a point every `log_every` batches; so have NE,
AUC and calibration of the last `WINDOW` predictions, by TorchRec. What validations find, exact, stands beside them.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchrec.metrics.metric_module import RecMetricModule, generate_metric_module
from torchrec.metrics.metrics_config import MetricsConfig, RecComputeMode, RecMetricDef, RecMetricEnum, RecTaskInfo

from recsys import distributed
from recsys.console import console

WINDOW = 100_000
"""Predictions of the recent past, over all ranks; more where a batch has more."""

_METRICS = (RecMetricEnum.NE, RecMetricEnum.AUC, RecMetricEnum.CALIBRATION)


class RecentMetrics:
    """TorchRec's metrics of the last predictions of one task, and of all so far; all ranks compute at the same step.

    They are handed over many batches at a time, for a call costs as much as a small batch takes to train.
    """

    def __init__(self, task: str, batch_size: int, device: torch.device) -> None:
        """`batch_size`: predictions of a global batch."""
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        window = max(WINDOW, batch_size)
        self.task = task
        info = RecTaskInfo(name=task, label_name="label", prediction_name="probability", weight_name="weight")
        config = MetricsConfig(
            rec_tasks=[info],
            rec_metrics={name: RecMetricDef(rec_tasks=[info], window_size=window) for name in _METRICS},
            rec_compute_mode=RecComputeMode.UNFUSED_TASKS_COMPUTATION,
            throughput_metric=None,
            state_metrics=[],
        )
        self.module: RecMetricModule = generate_metric_module(
            RecMetricModule, config, -(-batch_size // world), world, rank, {}, device
        )
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, probability_B: Tensor, label_B: Tensor, weight_B: Tensor) -> None:
        """Predictions of a batch."""
        self._waiting.append((probability_B, label_B, weight_B))

    def flush(self) -> None:
        """Hand over what waits, so that the module's state holds all."""
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            probability, label, weight = (torch.cat(column) for column in columns)
            self.module.update({"probability": probability, "label": label, "weight": weight})
            self._waiting.clear()

    def compute(self) -> dict[str, float]:
        """`window_ne`, `window_auc`, `window_calibration`; `lifetime_ne`, `lifetime_calibration`: over all ranks.

        The window begins anew when a training is taken up; what holds for its lifetime is in the module's state.
        """
        self.flush()
        found: Any = self.module.compute()
        return {name.rpartition("|")[2]: float(value) for name, value in found.items()}


class Monitor:
    """The eyes of one training; every rank has one, the first one shows."""

    def __init__(self, title: str, curves: Path | None, total: int, done: int) -> None:
        """Show nothing yet.

        Args:
            title: split and role.
            curves: TensorBoard's directory; None: no curves.
            total: batches of the whole training, if nothing stops it.
            done: how many there have been.
        """
        shown = distributed.is_first()
        self.writer = SummaryWriter(str(curves), purge_step=done + 1) if shown and curves is not None else None
        self.bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}{task.fields[found]}"),
            console=console,
            disable=not (shown and console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(title, total=total, completed=done, speed="", found="")
        self._rows, self._since = 0, time.perf_counter()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()

    def step(self, rows: int) -> None:
        """One global batch of so many rows is done."""
        self._rows += rows
        self.bar.advance(self.task)

    def speed(self) -> float:
        """Rows a second since the last time this was asked."""
        now = time.perf_counter()
        rate = self._rows / max(now - self._since, 1e-9)
        self._rows, self._since = 0, now
        self.bar.update(self.task, speed=f"{rate:,.0f} samples/s")
        return rate

    def curve(self, values: dict[str, float], step: int) -> None:
        """Points of curves: name → value."""
        if self.writer is None:
            return
        try:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        except OSError as error:
            # A curve is not worth a training.
            console.print(f"  no more curves: {error}", style="yellow", highlight=False)
            self.writer = None

    def validated(self, number: int, loss: float, found: dict[str, float], step: int) -> None:
        """A validation is done: a line in a log, numbers on the bar, points in the curves.

        Args:
            number: of the validation, from 1.
            loss: mean of the training since the one before.
            found: its metrics.
            step: batches done.
        """
        self.curve({f"validation/{name}": value for name, value in found.items()}, step)
        numbers = {"loss": loss, **{name: found[name] for name in ("ndcg@10", "auc", "ne") if name in found}}
        text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.bar.update(self.task, found=f"  {text}")
        if distributed.is_first() and not console.is_terminal:
            console.print(f"  validation {number}: {text}", highlight=False)
