"""Training that is killed, starved, poisoned and robbed of its disk: each with its defined outcome.

Faults are real: processes are killed, files cut, writes refused by the system. A run that was disturbed ends with the
weights, bit by bit, of one that was not, or says what has happened.
"""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

from embeddings import optim, sharding, tables
from embeddings.batch import Batch
from features.encoder import load_schema
from features.errors import InputError
from features.manifest import read_json
from recsys import checkpoint, distributed, logbook
from recsys.data import RankingReader
from recsys.resume import Training
from recsys.roles import RankerConfig, RankerLoop, build_task
from recsys.train import Loop, launch, train

STEPS = 88
"""Of the whole training: two epochs of 44 batches."""

CLOSE = 2e-5
"""Most that a weight may differ where the number of processes does: the order of sums."""


def training(examples: Path, out: Path, *, optimizer: dict[str, Any] | None = None, **loop: Any) -> Training:
    settings = {"epochs": 2, "batch_size": 255, "checkpoint_every": 3, "keep": 3, "patience": 5} | loop
    section = RankerConfig(
        optimizer=optim.Config(eps=1e-5, **(optimizer or {})), train=RankerLoop.model_validate(settings)
    )
    shards = sharding.Config(forms=("row_wise", "table_wise"))
    return Training(section, shards, tables.Config(), examples, out / "time" / "ranker", out)


def run(job: Training, nproc: int = 2, fault: Callable[[Loop, int], None] | None = None, **config: Any) -> None:
    """Train, with `fault` called before every step in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    watch = distributed.Watch(
        progress=lambda: checkpoint.names(checkpoint.unfinished(job.out))[-1:],
        died=lambda cause: logbook.Logbook(job.run, job.name).write("crash", cause=cause),
    )
    try:
        distributed.launch(faulty, distributed.Config(nproc=nproc, **config), job, fault, watch=watch)
    finally:
        torch.set_num_threads(threads)


def faulty(job: Training, fault: Callable[[Loop, int], None] | None) -> None:
    step = Loop._step

    def disturbed(self: Loop, batch: Any, **more: Any) -> int:
        if fault is not None:
            fault(self, self.progress.step)
        return step(self, batch, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", disturbed)
        train(job)


def weights(job: Training) -> dict[str, torch.Tensor]:
    task = build_task(job.section, load_schema(job.examples), torch.device("cpu"), {})
    checkpoint.load_model(job.out, task)
    return task.state_dict()


def losses(job: Training) -> list[float]:
    return read_json(job.out / "history.json")["loss"]


def kinds(job: Training) -> list[str]:
    return [entry.kind for entry in logbook.read(job.run / logbook.FILE)]


def causes(job: Training, kind: str) -> list[str]:
    return [entry.cause or "" for entry in logbook.read(job.run / logbook.FILE) if entry.kind == kind]


def assert_equal(one: Training, other: Training) -> None:
    assert losses(one) == losses(other)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def calm(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Two processes that nothing has disturbed."""
    job = training(examples, tmp_path_factory.mktemp("calm"))
    run(job)
    assert len(losses(job)) == STEPS
    return job


class Kill:
    """Kills itself at some steps, in one rank or the other, each once."""

    def __init__(self, folder: Path, at: dict[int, int]) -> None:
        self.folder, self.at = folder, at

    def __call__(self, loop: Loop, step: int) -> None:
        if self.at.get(step) == dist.get_rank():
            mark = self.folder / f"killed-{step}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def test_killed_ten_times_it_ends_as_if_it_had_not_been(examples: Path, tmp_path: Path, calm: Training):
    rng = np.random.default_rng(int(os.environ.get("FEEDLINE_SEED", time.time_ns())))
    at = {int(step): int(rng.integers(2)) for step in rng.choice(STEPS, size=10, replace=False)}
    job = training(examples, tmp_path)
    run(job, fault=Kill(tmp_path, at), restarts=10)
    assert len(list(tmp_path.glob("killed-*"))) == 10, at
    assert_equal(job, calm)
    assert sum("SIGKILL" in cause for cause in causes(job, "crash")) == 10
    assert kinds(job)[-1] == "stop"


class StopAt:
    """Asks to stop, as SIGTERM does, at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, loop: Loop, step: int) -> None:
        if step == self.at and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def half(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Two processes that were asked to stop in the middle of the second epoch."""
    job = training(examples, tmp_path_factory.mktemp("half"))
    with pytest.raises(KeyboardInterrupt):
        run(job, fault=StopAt(60))
    assert checkpoint.names(checkpoint.unfinished(job.out))[-1] == checkpoint.name_of(61)
    assert "SIGTERM" in causes(job, "stop")[-1]
    return job


def again(half: Training, out: Path) -> Training:
    """The same training, from a copy of what is there of it."""
    shutil.copytree(half.run, out, dirs_exist_ok=True)
    return training(half.examples, out)


@pytest.mark.parametrize("nproc", [1, 2, 3, 4])
def test_saved_on_two_processes_it_goes_on_with_any_number(half: Training, calm: Training, tmp_path: Path, nproc: int):
    job = again(half, tmp_path)
    run(job, nproc)
    if nproc == 2:
        assert_equal(job, calm)
        assert "reshard" not in kinds(job)
        return
    assert "reshard" in kinds(job)
    assert losses(job)[:61] == losses(calm)[:61]
    np.testing.assert_allclose(losses(job), losses(calm), atol=CLOSE, rtol=0)
    ours, theirs = weights(job), weights(calm)
    for name in (name for name in ours if "sparse_arch" in name):
        torch.testing.assert_close(ours[name], theirs[name], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(half: Training, calm: Training, tmp_path: Path, harm: str):
    job = again(half, tmp_path)
    newest, before = reversed(checkpoint.names(checkpoint.unfinished(job.out))[-2:])
    victim = next((checkpoint.unfinished(job.out) / newest / checkpoint.STATE).glob("__1_*.distcp"))
    content = victim.read_bytes()
    if harm == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        victim.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    else:
        victim.unlink()
    run(job)
    assert_equal(job, calm)
    assert victim.name in causes(job, "damaged")[0]
    resumed = [entry for entry in logbook.read(job.run / logbook.FILE) if entry.kind == "resume"]
    assert resumed[-1].facts["checkpoint"] == before


def test_another_config_begins_anew_and_says_why(half: Training, tmp_path: Path):
    job = again(half, tmp_path)
    other = training(half.examples, tmp_path, optimizer={"dense_lr": 5e-4})
    run(other, nproc=1)
    assert "model.optimizer.dense_lr" in causes(other, "discarded")[-1]
    assert len(losses(other)) == STEPS
    starts = [entry for entry in logbook.read(job.run / logbook.FILE) if entry.kind == "start"]
    assert starts[-1].facts["changed"]["model.optimizer.dense_lr"] == {"before": 1e-3, "after": 5e-4}


class FullDisk:
    """Lets no file grow beyond a few kilobytes between two steps, in the second process."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end

    def __call__(self, loop: Loop, step: int) -> None:
        if dist.get_rank() == 1 and step in (self.begin, self.end):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if step == self.begin else hard, hard))


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_not_the_training(
    examples: Path, tmp_path: Path, calm: Training
):
    job = training(examples, tmp_path)
    run(job, fault=FullDisk(10, 20))
    assert_equal(job, calm)
    failed = causes(job, "not_saved")
    assert failed
    assert all("File too large" in cause for cause in failed)
    assert not list(job.out.glob("*.unfinished"))


def test_a_disk_that_stays_full_is_told_at_the_end_and_the_training_taken_up(
    examples: Path, tmp_path: Path, calm: Training
):
    job = training(examples, tmp_path)
    with pytest.raises(InputError, match="best checkpoint"):
        run(job, fault=FullDisk(40, -1))
    run(job)
    assert_equal(job, calm)


class Poison:
    """Makes a rank's loss infinite at some steps."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def __call__(self, loop: Loop, step: int) -> None:
        dense = next(p for name, p in loop.model.named_parameters() if name.endswith("over_arch.head.bias"))
        if not hasattr(self, "calm"):
            self.calm = dense.detach().clone()
        if dist.get_rank() == 1:
            if step in self.steps:
                self.calm = dense.detach().clone() if torch.isfinite(dense).all() else self.calm
                dense.data.fill_(torch.nan)
            elif not torch.isfinite(dense).all():
                dense.data.copy_(self.calm)


def test_a_batch_whose_loss_is_no_number_is_skipped_by_all_ranks(examples: Path, tmp_path: Path, calm: Training):
    job = training(examples, tmp_path)
    run(job, fault=Poison(range(50, 52)))
    found = losses(job)
    assert [step for step, loss in enumerate(found) if loss is None] == [50, 51]
    assert found[:50] == losses(calm)[:50]
    assert found[52:] != losses(calm)[52:]
    assert kinds(job).count("skipped") == 2
    assert all(torch.isfinite(weight).all() for weight in weights(job).values())


def test_a_loss_that_stays_infinite_stops_the_training(examples: Path, tmp_path: Path):
    job = training(examples, tmp_path, max_skipped=3)
    with pytest.raises(InputError, match="4 batches in a row"):
        run(job, fault=Poison(range(50, STEPS)))
    assert "InputError" in causes(job, "crash")[-1]


def starved(job: Training) -> None:
    """Train, with a reader on the second rank that ends after five batches."""
    epoch = RankingReader.epoch

    def short(self: RankingReader, number: int, start: int = 0) -> Iterator[Batch]:
        return islice(epoch(self, number, start), 5 if self.place.rank == 1 else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankingReader, "epoch", short)
        train(job)


def test_a_rank_that_runs_out_of_data_does_not_hang_the_others(examples: Path, tmp_path: Path):
    job = training(examples, tmp_path)
    started = time.perf_counter()
    with pytest.raises(ProcessRaisedException):
        distributed.launch(starved, distributed.Config(nproc=2), job)
    assert time.perf_counter() - started < 60
    # The first rank was in step 5 when the second had nothing to add to it.
    assert "crash" in kinds(job)
    assert [entry.facts["step"] for entry in logbook.read(tmp_path / logbook.FILE) if entry.kind == "crash"] == [5]


def test_accumulation_stops_and_goes_on_between_steps_of_the_dense_optimizer(examples: Path, tmp_path: Path):
    sgd = {"sparse": "sgd", "sparse_lr": 1e-12, "dense": "sgd", "dense_lr": 0.1}
    small = training(examples, tmp_path / "small", optimizer={**sgd, "accumulate": 4}, epochs=1)
    run(small, nproc=1)
    # One optimizer step for four batches, and one for what is left of the epoch.
    assert len(losses(small)) == 44
    resumed = training(examples, tmp_path / "resumed", optimizer={**sgd, "accumulate": 4}, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        run(resumed, nproc=1, fault=StopAt(21))
    assert checkpoint.names(checkpoint.unfinished(resumed.out))[-1] == checkpoint.name_of(24)
    run(resumed, nproc=1)
    assert_equal(small, resumed)


def test_launch_trains_and_notes(examples: Path, tmp_path: Path):
    job = training(examples, tmp_path, epochs=1, precision="bf16")
    launch(job, distributed.Config())
    assert kinds(job)[0] == "start"
    assert kinds(job)[-1] == "stop"
    assert (tmp_path / "logbook.html").exists()
    assert list((tmp_path / "tensorboard" / "time" / "ranker").glob("events.*"))
