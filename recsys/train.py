"""The training loop, the same for retriever and ranker, and for one process or many.

Everything that a step does is a function of the seed, the config and the number of the step; what has been learned is
in the last checkpoint. Training that was killed therefore goes on as if nothing had happened: on CPU the weights are
those, bit by bit, of training that was never disturbed. What did happen is in the run's logbook.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchrec.optim.keyed import CombinedOptimizer

from embeddings import optim, precision, rowwise_adagrad, sharding
from embeddings.batch import Batch
from embeddings.init import initialise_tables
from features.encoder import load_schema
from features.errors import InputError
from features.manifest import write_json
from recsys import checkpoint, distributed, logbook
from recsys.data import on_device
from recsys.logbook import Logbook
from recsys.monitor import Monitor, RecentMetrics
from recsys.resume import Progress, Standing, Training
from recsys.roles import Job, label_predictions, open_job

PAGE_EVERY = 60.0
"""Seconds from one making of the logbook's page to the next, while nothing happens that a person waits for."""

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a training to stop."""


def launch(training: Training, config: distributed.Config) -> None:
    """Train in as many processes as the config says; those that are killed are started again.

    Raises:
        InputError: see `train`.
        distributed.WorkerDied: a process was killed, and again and again when started anew.
    """
    folder = checkpoint.unfinished(training.out)
    watch = distributed.Watch(
        progress=lambda: checkpoint.names(folder)[-1:],
        died=lambda cause: Logbook(training.run, training.name).write("crash", cause=cause),
    )
    distributed.launch(train, config, training, watch=watch)


def train(training: Training) -> None:
    """Train, and leave the last checkpoints and the best at `training.out`; every rank of a process group calls it.

    There is `history.json` beside them: the loss of every step, null where it was not finite, and every validation.

    Raises:
        InputError: the device cannot train what is asked for, the loss stays infinite, the disk is full at the end.
    """
    section, device = training.section, distributed.device()
    torch.manual_seed(section.train.seed)
    job = open_job(section, training.tables.managed, training.examples, device, refit=training.refit is not None)
    updates = section.train.epochs * -(-len(job.reader) // section.optimizer.accumulate)
    optim.check(section.optimizer, training.tables, device, updates, f"{training.out.name}.optimizer")
    sharding.check(training.sharding, section.optimizer.sparse, job.task, device)
    if device.type == "cpu":
        rowwise_adagrad.install()
    precision.set_precision(job.task, training.tables)
    optim.fuse(sharding.fused_parameters(job.task, training.sharding), section.optimizer)
    model = sharding.shard(job.task, training.sharding, device, section.train.batch_size, training.tables)
    initialise_tables(model, section.train.seed)
    optimizer = optim.combine(model, section.optimizer)
    aside = checkpoint.unfinished(training.out)
    with checkpoint.opened(aside, section.train.keep, asynchronous=section.train.asynchronous) as checkpoints:
        recent = None if job.label is None else RecentMetrics(job.label, section.train.batch_size, device)
        standing = Standing(training, len(job.reader), model, optimizer, recent, checkpoints, device)
        loop = Loop(standing, job, optimizer, updates, device)
        loop.run()
    if distributed.is_first():
        loop.finish()


class Loop:
    """One training from its last checkpoint, or from the beginning, to its end; reads top to bottom."""

    def __init__(
        self, standing: Standing, job: Job, optimizer: CombinedOptimizer, updates: int, device: torch.device
    ) -> None:
        """`updates`: steps of the dense optimizer in the whole training, if nothing stops it."""
        self.standing, self.job, self.optimizer = standing, job, optimizer
        self.updates, self.device, self.model = updates, device, standing.model
        self.training = standing.training
        self.section, self.config = self.training.section, self.training.section.train
        self.norm = math.nan
        """Of the last gradient that was looked at."""
        self.stop_signal: int | None = None
        self.page_written = 0.0

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self.standing.progress

    def run(self) -> None:
        """Take up the last whole checkpoint, if there is one of this training, and train to the end."""
        if distributed.is_first():
            self.standing.book.start(self.training.config(), schema=load_schema(self.training.examples).fingerprint)
            self._write_page()
        try:
            self.standing.resume()
            with self._signals(), self._monitor() as self.monitor:
                while not self._ended():
                    self._epoch()
            self.standing.wait()
            self.standing.require_best()
        except BaseException as error:
            self.standing.note("stop" if isinstance(error, KeyboardInterrupt) else "crash", cause=_words(error))
            self._write_page()
            raise
        self.standing.note("stop", cause=logbook.FINISHED)
        self._write_page()

    def finish(self) -> None:
        """Name the finished training; the first rank calls it."""
        progress, out = self.progress, self.training.out
        losses = [loss if math.isfinite(loss) else None for loss in self.standing.losses]
        write_json(checkpoint.unfinished(out) / "history.json", {"loss": losses, "valid": progress.validations})
        best = next(found for found in progress.validations if found["step"] == progress.best_step)
        facts = self.training.facts | {
            "best": checkpoint.name_of(progress.best_step),
            "schema": load_schema(self.training.examples).fingerprint,
            "epochs": math.ceil(progress.step / len(self.job.reader)),
            "best_epoch": int(best["epoch"]),
            "steps": progress.step,
            "skipped": progress.skipped,
            "valid": {name: value for name, value in best.items() if name not in ("step", "epoch")},
            "seconds": progress.seconds,
            "rows_per_second": progress.step / len(self.job.reader) * self.job.reader.rows / progress.seconds,
            "parameters": sum(
                math.prod(value.size()) for value in self.model.state_dict().values() if value.dtype.is_floating_point
            ),
            "world": self.standing.world,
            "plan": self.standing.plan,
        }
        checkpoint.finish(out, facts)

    def _ended(self) -> bool:
        if self.progress.since_best >= self.config.patience:
            return True
        return self.progress.epoch >= (self.training.refit or self.config.epochs)

    def _epoch(self) -> None:
        """The rest of an epoch."""
        progress, batches = self.progress, len(self.job.reader)
        accumulate = self.section.optimizer.accumulate
        started = time.perf_counter()
        for batch in on_device(self.job.reader.epoch(progress.epoch, progress.batch), self.device):
            first = progress.batch % accumulate == 0
            last = (progress.batch + 1) % accumulate == 0 or progress.batch + 1 == batches
            stop = self._step(batch, first=first, last=last)
            progress.step += 1
            progress.batch += 1
            if progress.batch == batches:
                progress.epoch, progress.batch = progress.epoch + 1, 0
            if progress.step % self.config.log_every == 0:
                self._log()
            if not last:
                continue
            ended = progress.batch == 0
            now = time.perf_counter()
            progress.seconds, started = progress.seconds + now - started, now
            if ended or _due(self.config.validate_every, progress.step - progress.validated):
                self._validate()
                self.standing.save()
                started = time.perf_counter()
            elif stop or _due(self.config.checkpoint_every, progress.step - progress.saved):
                self.standing.save()
            if stop:
                self.standing.wait()
                raise KeyboardInterrupt(f"asked to by {signal.Signals(stop).name}")
            if ended or self._ended():
                return
        raise RuntimeError(
            f"rank {torch.distributed.get_rank()} ran out of data before batch {progress.batch} of {batches}; "
            "every rank needs the same examples"
        )

    def _step(self, batch: Batch, *, first: bool, last: bool) -> int:
        """One global batch; the signal that asks some rank to stop, 0 for none.

        Gradients are averaged over ranks, and a rank's loss is its part of the global mean: hence the factor.
        """
        progress = self.progress
        if first:
            self.optimizer.zero_grad()
            self.pending = 0
            optim.set_rate(self.optimizer, self.section.optimizer, progress.updates, self.updates)
        with self._autocast():
            loss, outputs = self.model(batch)
        value, stop = self._agree(loss)
        self.standing.losses.append(value)
        if not math.isfinite(value):
            self._skip(value)
        else:
            progress.skipped_in_a_row = 0
            (loss * self.standing.world).backward()
            self.pending += 1
            if self.standing.recent is not None:
                self.standing.recent.add(*label_predictions(outputs, batch))
        if last and self.pending:
            self._update()
        assert batch.share is not None
        self.monitor.step(batch.share.rows)
        return stop

    def _update(self) -> None:
        config = self.section.optimizer
        if config.accumulate > 1 or config.clip_norm is not None:
            self.norm = float(optim.clip(self.optimizer, config, self.pending))
            if not math.isfinite(self.norm):
                # The tables have taken this gradient already: only an earlier checkpoint is without it.
                self.standing.note("not_finite", cause=f"the gradient's norm is {self.norm}")
                raise InputError(
                    f"{self.training.name}: the gradient is not finite in step {self.progress.step}; lower "
                    "optimizer.sparse_lr or dense_lr"
                )
        self.optimizer.step()
        self.progress.updates += 1

    def _agree(self, loss: Tensor) -> tuple[float, int]:
        """The global loss, and a signal that some rank has been sent, or 0.

        All ranks agree on them before any of them changes a table, which backward passes do.
        """
        sent = torch.tensor([float(self.stop_signal == number) for number in STOPPING], device=self.device)
        value, *stops = distributed.total(torch.cat([loss.detach().float().view(1), sent])).tolist()
        return value, next((number for number, ranks in zip(STOPPING, stops, strict=True) if ranks), 0)

    def _skip(self, value: float) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self.standing.note("not_finite", cause=f"the loss is {value}")
        if progress.skipped_in_a_row > self.config.max_skipped:
            raise InputError(
                f"{self.training.name}: the loss is not finite in {progress.skipped_in_a_row} batches in a row, up to "
                f"step {progress.step}; lower optimizer.sparse_lr or dense_lr, or look at the examples"
            )
        self.standing.note("skipped", batches=1)

    def _validate(self) -> None:
        progress = self.progress
        if self.job.validate is None:
            progress.validated = progress.best_step = progress.step
            progress.best = float(progress.step)
            progress.validations.append({"step": progress.step, "epoch": progress.epoch - (progress.batch == 0)})
            return
        self.model.eval()
        found = self.job.validate(self.model)
        self.model.train()
        score = self.job.better(found)
        if not math.isfinite(score):
            raise InputError(
                f"{self.training.name}: validation is not finite after step {progress.step}; lower the optimizer's "
                "learning rates"
            )
        since = np.array(self.standing.losses[progress.validated : progress.step])
        epoch = progress.epoch - (progress.batch == 0)
        progress.validated = progress.step
        progress.validations.append({"step": progress.step, "epoch": epoch, **found})
        self.monitor.validated(len(progress.validations), float(np.nanmean(since)), found, progress.step)
        self.standing.note("evaluation", metrics=found)
        if time.monotonic() - self.page_written > PAGE_EVERY:
            self._write_page()
        if progress.best is None or score > progress.best:
            progress.best, progress.best_step, progress.since_best = score, progress.step, 0
            self.standing.note("best", metric=self.job.metric, value=found[self.job.metric])
        else:
            progress.since_best += 1
            if progress.since_best >= self.config.patience:
                self.standing.note("early_stop", cause=f"{progress.since_best} validations without a better one")

    def _log(self) -> None:
        step = self.progress.step
        curves = {
            "training/loss": float(np.nanmean(self.standing.losses[-self.config.log_every :])),
            "training/samples_per_second": self.monitor.speed(),
            "training/rate": self.section.optimizer.schedule.factor(max(self.progress.updates - 1, 0), self.updates),
        }
        if self.section.optimizer.clip_norm is not None:
            curves["training/gradient_norm"] = self.norm
        if self.standing.recent is not None:
            found = self.standing.recent.compute()
            curves |= {f"{self.standing.recent.task}/{name}": value for name, value in found.items()}
        self.monitor.curve(curves, step)

    def _monitor(self) -> Monitor:
        progress = self.progress
        curves = self.training.run / "tensorboard" / self.training.name
        return Monitor(
            self.training.name,
            curves,
            (self.training.refit or self.config.epochs) * len(self.job.reader),
            progress.step,
        )

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """A SIGINT or SIGTERM is heeded after the step: a checkpoint is saved, then training stops."""

        def heed(number: int, frame: FrameType | None) -> None:
            del frame
            if number == signal.SIGINT and self.stop_signal == signal.SIGINT:
                raise KeyboardInterrupt("asked to stop at once")
            self.stop_signal = self.stop_signal or number

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, heed) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _write_page(self) -> None:
        """The logbook as a page; where there is no room for it the last one stays, and the logbook itself is whole."""
        self.page_written = time.monotonic()
        if distributed.is_first():
            with suppress(OSError):
                logbook.write_page(self.training.run)


def _due(every: int | None, passed: int) -> bool:
    return every is not None and passed >= every


def _words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
